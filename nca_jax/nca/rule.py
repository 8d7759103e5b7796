"""The automaton's rule: a tiny random network that maps a cell's neighbourhood to logits over its next colour."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp

from nca_jax.errors import check

Rule = dict[str, jax.Array]
STD_CUT_AT_TWO = 0.87962566103423978  # of a unit normal truncated to [-2, 2]


@dataclasses.dataclass(frozen=True)
class RuleSpec:
    """What all rules of a family share. The paper and the release differ in the last four of the fields so marked.

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
    perceive: 'table' looks neighbours up in the folded convolution, 'one_hot' multiplies by it; same function.
    """

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
        for field in ('height', 'width', 'hidden', 'features'):
            check(getattr(self, field) >= 1, field, getattr(self, field), 'at least 1')
        check(2 <= self.colours <= 256, 'colours', self.colours, '2 to 256 (a cell is one byte)')
        check(self.temperature >= 0, 'temperature', self.temperature, 'not negative; 0 takes the largest logit')
        check(math.isfinite(self.identity_bias), 'identity_bias', self.identity_bias, 'a finite number')
        for field, allowed in (
            ('padding', ('spatial', 'channel_wrap')),
            ('start', ('uniform', 'softmax')),
            ('sampler', ('inverse_cdf', 'gumbel')),
            ('perceive', ('table', 'one_hot')),
        ):
            check(getattr(self, field) in allowed, field, getattr(self, field), f'one of {", ".join(allowed)}')

    @property
    def channels(self) -> int:
        """Input channels of the 3x3 convolution."""
        return self.colours + 2 * (self.padding == 'channel_wrap')


def init_rule(spec: RuleSpec, key: jax.Array) -> Rule:
    """A random rule: kernels LeCun-normal (truncated, variance 1/fan_in), biases zero.

    Returns w1 (3, 3, channels, hidden), b1, w2 (hidden, features), b2, w3 (features, colours), b3, float32.
    """
    shapes = {
        'w1': (3, 3, spec.channels, spec.hidden),
        'w2': (spec.hidden, spec.features),
        'w3': (spec.features, spec.colours),
    }
    sizes = [math.prod(shape) for shape in shapes.values()]
    normal = jax.random.truncated_normal(key, -2, 2, (sum(sizes),)) / STD_CUT_AT_TWO  # one draw compiles much faster
    parts = jnp.split(normal, list(itertools.accumulate(sizes))[:-1])
    kernels = {
        name: part.reshape(shape) * math.prod(shape[:-1]) ** -0.5
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    return kernels | {name.replace('w', 'b'): jnp.zeros(shape[-1]) for name, shape in shapes.items()}
