"""The automaton's rule: a tiny random network that maps a cell's neighbourhood to logits over its next colour."""

import dataclasses
import itertools
import math
import re

import jax
import jax.numpy as jnp

from nca_jax.errors import FieldError, check

Rule = dict[str, jax.Array]
# Standard deviation of a unit normal truncated to [-2, 2].
TRUNCATED_STD = 0.87962566103423978
# A lower temperature would underflow to zero in float32.
MIN_TEMPERATURE = 1e-30


@dataclasses.dataclass(frozen=True)
class RuleSpec:
    """A family of rules. Numbers in brackets are the paper's; the release of its code is named where it differs."""

    # 'random' networks; 'elementary' and 'life' automata, each rule drawn from all 256 or all 2^18 of them; or one
    # rule, such as 'elementary:110' or 'life:B3/S23'. Elementary rules run in every row of the grid.
    family: str
    # Cells of the torus (12 x 12).
    height: int
    width: int
    # Size of the alphabet (10).
    colours: int
    # Channels after the 3x3 convolution (4) and after the first 1x1 convolution (16).
    hidden: int
    features: int
    # 'spatial' (paper), or 'channel_wrap' (release): the wrap-around padding of the 3x3 convolution takes in the
    # channel axis too, so that it sees colours + 2 channels.
    padding: str
    # Added to the logit of the cell's present colour (0).
    identity_bias: float
    # Divides the logits (paper 1e-3, release 1e-4); 0 takes the largest logit.
    temperature: float
    # 'uniform' cells (paper), or 'softmax' (release): i.i.d. cells from the softmax of one N(0, 1) logit vector per
    # trajectory.
    start: str
    # 'inverse_cdf' draws one uniform number per cell, 'gumbel' one per cell and colour; the distribution is the same.
    sampler: str
    # 'table' looks neighbours up in the folded convolution, 'one_hot' multiplies by it; the function is the same.
    # 'auto' is one_hot on TPUs, where look-ups are slow, and table elsewhere.
    perceive: str

    def __post_init__(self):
        for field in ('height', 'width', 'hidden', 'features'):
            check(getattr(self, field) >= 1, field, getattr(self, field), 'at least 1')
        check(2 <= self.colours <= 256, 'colours', self.colours, '2 to 256 (a cell is one byte)')
        valid = self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf
        allowed = f'not negative: 0 (the largest logit) or at least {MIN_TEMPERATURE:g}'
        check(valid, 'temperature', self.temperature, allowed)
        check(math.isfinite(self.identity_bias), 'identity_bias', self.identity_bias, 'a finite number')
        for field, choices in (
            ('padding', ('spatial', 'channel_wrap')),
            ('start', ('uniform', 'softmax')),
            ('sampler', ('inverse_cdf', 'gumbel')),
            ('perceive', ('auto', 'table', 'one_hot')),
        ):
            check(getattr(self, field) in choices, field, getattr(self, field), f'one of {", ".join(choices)}')
        if self.family != 'random':
            needed = named_family(self.family).codes
            of_family = f'for the family {self.family!r}'
            check(self.colours == 2, 'colours', self.colours, f'2 {of_family}')
            check(self.padding == 'spatial', 'padding', self.padding, f"'spatial' {of_family}")
            check(self.features >= needed, 'features', self.features, f'at least {needed} {of_family}')

    @property
    def channels(self) -> int:
        """Input channels of the 3x3 convolution."""
        return self.colours + 2 * (self.padding == 'channel_wrap')


def init_rule(spec: RuleSpec, key: jax.Array) -> Rule:
    """A rule of the spec's family.

    Returns w1 (3, 3, channels, hidden), b1, w2 (hidden, features), b2, w3 (features, colours), b3, float32.
    """
    shapes = {
        'w1': (3, 3, spec.channels, spec.hidden),
        'w2': (spec.hidden, spec.features),
        'w3': (spec.features, spec.colours),
    }
    biases = {name.replace('w', 'b'): jnp.zeros(shape[-1]) for name, shape in shapes.items()}
    if spec.family == 'random':
        # LeCun-normal (truncated, variance 1/fan_in). One draw for all kernels compiles much faster than three.
        sizes = [math.prod(shape) for shape in shapes.values()]
        normal = jax.random.truncated_normal(key, -2, 2, (sum(sizes),)) / TRUNCATED_STD
        parts = jnp.split(normal, list(itertools.accumulate(sizes))[:-1])
        kernels = {
            name: part.reshape(shape) * math.prod(shape[:-1]) ** -0.5
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        return kernels | biases
    family = named_family(spec.family)
    if family.rule is None:
        lives_Z = jax.random.bernoulli(key, 0.5, (family.codes,))
    else:
        lives_Z = jnp.array([bool(family.rule >> code & 1) for code in range(family.codes)])
    # All values are small integers, exact in float32.
    w1, w2, w3 = map(jnp.zeros, shapes.values())
    # The first hidden channel is the code z.
    w1 = w1.at[:, :, 1, 0].set(jnp.array(family.place_3x3, jnp.float32))
    # The features are relu(z + 1), relu(z), relu(z - 1), ...
    w2 = w2.at[0, : family.codes].set(1.0)
    biases['b2'] = biases['b2'].at[: family.codes].set(1.0 - jnp.arange(family.codes))
    # Colour 1's logit is piecewise linear in z, 1 where the cell lives and -1 where it dies; colour 0's is 0. The
    # weight of a relu is the change of slope at its kink.
    slope_Z = jnp.diff(jnp.where(lives_Z, 1.0, -1.0), prepend=0.0)
    w3 = w3.at[: family.codes, 1].set(jnp.diff(slope_Z, prepend=0.0))
    return {'w1': w1, 'w2': w2, 'w3': w3} | biases


@dataclasses.dataclass(frozen=True)
class NamedFamily:
    """Two-colour automata in which the neighbourhood's code, the sum of place * cell, decides the next cell."""

    # The weight of each neighbour in the code.
    place_3x3: tuple[tuple[int, ...], ...]
    # Number of codes Z: 0 to Z - 1.
    codes: int
    # Bit z: whether a cell with code z lives next; None draws a rule.
    rule: int | None


def named_family(name: str) -> NamedFamily:
    """'elementary', 'life', or one rule: 'elementary:N', 'life:B.../S...'. Raises FieldError for other names."""
    kind, _, code = name.partition(':')
    if kind == 'elementary' and (not code or (code.isdecimal() and int(code) < 256)):
        return NamedFamily(((0, 0, 0), (4, 2, 1), (0, 0, 0)), 8, int(code) if code else None)
    life = re.fullmatch(r'B([0-8]*)/S([0-8]*)', code)
    if kind == 'life' and (not code or life):
        # The centre counts 9, so that codes 0-8 are those of dead cells and 9-17 those of living ones.
        born, survives = life.groups() if life else ('', '')
        rule = sum(1 << int(digit) for digit in set(born)) + sum(1 << 9 + int(digit) for digit in set(survives))
        return NamedFamily(((1, 1, 1), (1, 9, 1), (1, 1, 1)), 18, rule if code else None)
    allowed = 'random, elementary, life, elementary:0 to elementary:255, or life:B3/S23 and such'
    raise FieldError('family', name, allowed)
