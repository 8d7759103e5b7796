"""The automaton's rule: a tiny random network that maps a cell's neighbourhood to logits over its next colour."""

import dataclasses
import itertools
import math
import re

import jax
import jax.numpy as jnp

from nca_jax.errors import FieldError, check

Rule = dict[str, jax.Array]
STD_CUT_AT_TWO = 0.87962566103423978  # of a unit normal truncated to [-2, 2]
COLDEST = 1e-30  # colder ones would be rounded to zero


@dataclasses.dataclass(frozen=True)
class RuleSpec:
    """What all rules of a family share. Where the paper and the release of its code differ, both values are given.

    family: 'random' networks; 'elementary' and 'life' automata, each rule drawn from all 256 of the first kind or all
        2^18 of the second; 'elementary:110' or 'life:B3/S23' for one rule. Elementary ones run in every row of the
        grid. These, too, are networks of the shapes below (see `outcome_rule`).
    groups: channel groups of the state; only 1, as in the paper.
    height, width: of the torus, in cells.
    colours: size of the alphabet (10 in the paper).
    hidden, features: channels after the 3x3 and after the first 1x1 convolution (4 and 16).
    padding: 'spatial' (paper), or 'channel_wrap' (release), where the wrap-around padding of the 3x3 convolution
        takes in the channel axis too, so that it sees colours + 2 channels.
    identity_bias: added to the logit of the cell's present colour (0).
    temperature: divides the logits (paper 1e-3, release 1e-4); 0 takes the largest one.
    start: 'uniform' cells (paper), or 'softmax' (release): i.i.d. from the softmax of one N(0, 1) logit vector per
        trajectory.
    sampler: 'inverse_cdf' draws one uniform per cell, 'gumbel' one per cell and colour; same distribution.
    perceive: 'table' looks neighbours up in the folded convolution, 'one_hot' multiplies by it; same function. 'auto'
        is one_hot on TPUs, where look-ups are slow, and table elsewhere.
    """

    family: str
    groups: int
    height: int
    width: int
    colours: int
    hidden: int
    features: int
    padding: str
    identity_bias: float
    temperature: float
    start: str
    sampler: str
    perceive: str

    def __post_init__(self):
        check(self.groups == 1, 'groups', self.groups, '1: automata of several channel groups are not supported')
        for field in ('height', 'width', 'hidden', 'features'):
            check(getattr(self, field) >= 1, field, getattr(self, field), 'at least 1')
        check(2 <= self.colours <= 256, 'colours', self.colours, '2 to 256 (a cell is one byte)')
        proper = self.temperature == 0 or COLDEST <= self.temperature < math.inf
        check(proper, 'temperature', self.temperature, f'not negative: 0 (the largest logit) or at least {COLDEST:g}')
        check(math.isfinite(self.identity_bias), 'identity_bias', self.identity_bias, 'a finite number')
        for field, allowed in (
            ('padding', ('spatial', 'channel_wrap')),
            ('start', ('uniform', 'softmax')),
            ('sampler', ('inverse_cdf', 'gumbel')),
            ('perceive', ('auto', 'table', 'one_hot')),
        ):
            check(getattr(self, field) in allowed, field, getattr(self, field), f'one of {", ".join(allowed)}')
        if self.family != 'random':
            known = known_family(self.family)
            check(self.colours == 2, 'colours', self.colours, f'2 for the family {self.family!r}')
            check(self.padding == 'spatial', 'padding', self.padding, f"'spatial' for the family {self.family!r}")
            least = known.outcomes
            check(self.features >= least, 'features', self.features, f'at least {least} for the family {self.family!r}')

    @property
    def channels(self) -> int:
        """Input channels of the 3x3 convolution."""
        return self.colours + 2 * (self.padding == 'channel_wrap')

    def for_platform(self, platform: str) -> 'RuleSpec':
        """With `perceive` decided for a platform of jax ('cpu', 'gpu', 'tpu')."""
        if self.perceive != 'auto':
            return self
        return dataclasses.replace(self, perceive='one_hot' if platform == 'tpu' else 'table')


def init_rule(spec: RuleSpec, key: jax.Array) -> Rule:
    """A rule of the spec's family.

    Returns w1 (3, 3, channels, hidden), b1, w2 (hidden, features), b2, w3 (features, colours), b3, float32.
    """
    if spec.family == 'random':
        return random_rule(spec, key)
    known = known_family(spec.family)
    if known.rule is None:
        outcome_Z = jax.random.bernoulli(key, 0.5, (known.outcomes,))
    else:
        outcome_Z = jnp.array([bool(known.rule >> number & 1) for number in range(known.outcomes)])
    return outcome_rule(spec, known.place_3x3, outcome_Z)


def random_rule(spec: RuleSpec, key: jax.Array) -> Rule:
    """A random network: kernels LeCun-normal (truncated, variance 1/fan_in), biases zero."""
    shapes = kernel_shapes(spec)
    sizes = [math.prod(shape) for shape in shapes.values()]
    normal = jax.random.truncated_normal(key, -2, 2, (sum(sizes),)) / STD_CUT_AT_TWO  # one draw compiles much faster
    parts = jnp.split(normal, list(itertools.accumulate(sizes))[:-1])
    kernels = {
        name: part.reshape(shape) * math.prod(shape[:-1]) ** -0.5
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    return kernels | {name.replace('w', 'b'): jnp.zeros(shape[-1]) for name, shape in shapes.items()}


def kernel_shapes(spec: RuleSpec) -> dict[str, tuple[int, ...]]:
    return {
        'w1': (3, 3, spec.channels, spec.hidden),
        'w2': (spec.hidden, spec.features),
        'w3': (spec.features, spec.colours),
    }


@dataclasses.dataclass(frozen=True)
class KnownFamily:
    """Two-colour automata whose next cell depends on one number, the sum of place * cell over the neighbourhood.

    place_3x3: the place of each neighbour in that number; outcomes: how many numbers there are; rule: bit z says
    what becomes of a cell whose neighbourhood has number z, or None for any rule.
    """

    place_3x3: tuple[tuple[int, ...], ...]
    outcomes: int
    rule: int | None


def known_family(name: str) -> KnownFamily:
    """'elementary', 'life', or one rule of theirs, 'elementary:N' or 'life:B.../S...'. FieldError for other names."""
    kind, _, code = name.partition(':')
    if kind == 'elementary' and (not code or (code.isdecimal() and int(code) < 256)):
        return KnownFamily(((0, 0, 0), (4, 2, 1), (0, 0, 0)), 8, int(code) if code else None)
    life = re.fullmatch(r'B([0-8]*)/S([0-8]*)', code)
    if kind == 'life' and (not code or life):
        born, survives = life.groups() if life else ('', '')
        rule = sum(1 << int(digit) for digit in set(born)) + sum(1 << 9 + int(digit) for digit in set(survives))
        return KnownFamily(((1, 1, 1), (1, 9, 1), (1, 1, 1)), 18, rule if code else None)
    raise FieldError(
        'family', name, 'random, elementary, life, elementary:0 to elementary:255, or life:B3/S23 and such'
    )


def outcome_rule(spec: RuleSpec, place_3x3: tuple[tuple[int, ...], ...], outcome_Z: jax.Array) -> Rule:
    """The network under which a cell of number z (see KnownFamily) becomes outcome_Z[z].

    Its first channel is z, its features are relu(z + 1), relu(z), relu(z - 1), ..., and the second colour's logit is
    the piecewise linear curve through 1 at the numbers that live and -1 at those that die; the first colour's is 0.
    All are small integers, exact in float32.
    """
    count = outcome_Z.size
    curve_Z = jnp.where(outcome_Z, 1.0, -1.0)
    slope_Z = jnp.diff(curve_Z, prepend=0.0)
    rule = {name: jnp.zeros(shape) for name, shape in kernel_shapes(spec).items()}
    rule['w1'] = rule['w1'].at[:, :, 1, 0].set(jnp.array(place_3x3, jnp.float32))
    rule['w2'] = rule['w2'].at[0, :count].set(1.0)
    rule['w3'] = rule['w3'].at[:count, 1].set(jnp.diff(slope_Z, prepend=0.0))
    biases = {name.replace('w', 'b'): jnp.zeros(kernel.shape[-1]) for name, kernel in rule.items()}
    return rule | biases | {'b2': biases['b2'].at[:count].set(1.0 - jnp.arange(count))}
