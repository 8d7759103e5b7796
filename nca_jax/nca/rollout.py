"""Running a rule: from its weights and a key to the frames of one trajectory."""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from nca_jax import keys
from nca_jax.errors import check
from nca_jax.nca.rule import Rule, RuleSpec

EXACT = lax.Precision.HIGHEST
LARGEST_TABLE = 4096  # entries of a row's table: 192 kB a rule in all, still within a core's cache


@dataclasses.dataclass(frozen=True)
class RolloutSpec:
    """`burn_in` updates, then `frames` frames with `stride` updates between neighbours."""

    rule: RuleSpec
    burn_in: int
    stride: int
    frames: int

    def __post_init__(self):
        check(self.burn_in >= 0, 'burn_in', self.burn_in, 'not negative')
        check(self.stride >= 1, 'stride', self.stride, 'at least 1')
        check(self.frames >= 1, 'frames', self.frames, 'at least 1')


def start_grid(spec: RuleSpec, key: jax.Array) -> jax.Array:
    """The uint8 grid before the first update, (Y, X)."""
    shape = (spec.height, spec.width)
    if spec.start == 'uniform':
        return jax.random.randint(key, shape, 0, spec.colours, jnp.int32).astype(jnp.uint8)
    logits_C = jax.random.normal(keys.key(key, 'logits'), (spec.colours,))
    return jax.random.categorical(keys.key(key, 'cells'), logits_C, shape=shape).astype(jnp.uint8)


def fold(spec: RuleSpec, rule: Rule) -> jax.Array:
    """The 3x3 convolution as tables of what neighbours contribute to a cell's hidden channels.

    The one-hot cells enter linearly, so a cell's hidden channels are a sum of table entries. Small alphabets get one
    table per row of the neighbourhood, (3, C, C, C, H), read once for three neighbours; others one per neighbour,
    (3, 3, C, H). The bias is in the entries of the middle row (of the centre).
    """
    kernel_3x3xCxH = rule['w1']
    if spec.padding == 'channel_wrap':
        first, last = kernel_3x3xCxH[:, :, 0], kernel_3x3xCxH[:, :, -1]
        kernel_3x3xCxH = kernel_3x3xCxH[:, :, 1:-1].at[:, :, -1].add(first).at[:, :, 0].add(last)
    bias_CxH = jnp.broadcast_to(rule['b1'], kernel_3x3xCxH.shape[2:])
    kernel_3x3xCxH = kernel_3x3xCxH.at[1, 1].add(bias_CxH)
    if spec.colours**3 > LARGEST_TABLE:
        return kernel_3x3xCxH
    left, middle, right = kernel_3x3xCxH[:, 0], kernel_3x3xCxH[:, 1], kernel_3x3xCxH[:, 2]
    return left[:, :, None, None] + middle[:, None, :, None] + right[:, None, None, :]


def look_up(table: jax.Array, *colour_YxX: jax.Array) -> jax.Array:
    """`table[colour_YxX, ...]` without the bounds check that JAX's indexing pays for."""
    return table.at[colour_YxX].get(mode='promise_in_bounds')


def perceive_table(table: jax.Array, grid_YxX: jax.Array) -> jax.Array:
    """Hidden channels, (Y, X, H), by looking up every neighbour in the tables of `fold`."""
    hidden_YxXxH = 0.0
    for dy in range(3):
        if table.ndim == 5:
            row = look_up(table[dy], jnp.roll(grid_YxX, 1, 1), grid_YxX, jnp.roll(grid_YxX, -1, 1))
        else:
            row = sum(jnp.roll(look_up(table[dy, dx], grid_YxX), 1 - dx, 1) for dx in range(3))
        hidden_YxXxH = hidden_YxXxH + jnp.roll(row, 1 - dy, 0)
    return hidden_YxXxH


def perceive_conv(spec: RuleSpec, rule: Rule, grid_YxX: jax.Array) -> jax.Array:
    """Hidden channels, (Y, X, H), by the plain convolution."""
    cells_YxXxC = jax.nn.one_hot(grid_YxX, spec.colours)
    pad = ((1, 1), (1, 1), (1, 1) if spec.padding == 'channel_wrap' else (0, 0))
    cells_YxXxC = jnp.pad(cells_YxXxC, pad, mode='wrap')
    hidden_YxXxH = lax.conv_general_dilated(
        cells_YxXxC[None], rule['w1'], (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision=EXACT
    )[0]
    return hidden_YxXxH + rule['b1'][None, None]


def hidden_channels(spec: RuleSpec, rule: Rule) -> Callable[[jax.Array], jax.Array]:
    """`grid_YxX -> hidden_YxXxH` as `spec.perceive` says; what doesn't depend on the grid is done here."""
    if spec.perceive == 'table':
        return functools.partial(perceive_table, fold(spec, rule))
    return functools.partial(perceive_conv, spec, rule)


def colour_logits(spec: RuleSpec, rule: Rule, hidden_YxXxH: jax.Array, grid_YxX: jax.Array) -> jax.Array:
    """Logits of the next colours before the temperature, (C, Y, X): sampling wants the colours as planes."""
    features_YxXxF = jnp.einsum('yxh,hf->yxf', hidden_YxXxH, rule['w2'], precision=EXACT) + rule['b2'][None, None]
    logits_CxYxX = jnp.einsum('yxf,fc->cyx', jax.nn.relu(features_YxXxF), rule['w3'], precision=EXACT)
    logits_CxYxX = logits_CxYxX + rule['b3'][:, None, None]
    if spec.identity_bias:
        logits_CxYxX = logits_CxYxX + spec.identity_bias * jax.nn.one_hot(grid_YxX, spec.colours, axis=0)
    return logits_CxYxX


def sample(spec: RuleSpec, logits_CxYxX: jax.Array, key: jax.Array) -> jax.Array:
    """Next colours, uint8 (Y, X), from softmax(logits / temperature).

    The inverse-CDF walk is exact down to the 2^-23 grain of a float32 uniform, at any temperature: the difference to
    the largest logit is formed before the division, and a colour of weight 0 is never taken, since u * total < total.
    """
    if spec.temperature == 0:
        return jnp.argmax(logits_CxYxX, 0).astype(jnp.uint8)
    if spec.sampler == 'gumbel':
        return jax.random.categorical(key, logits_CxYxX / spec.temperature, axis=0).astype(jnp.uint8)
    weights_CxYxX = jnp.exp((logits_CxYxX - logits_CxYxX.max(0)[None]) / spec.temperature)
    cumulative = list(itertools.accumulate(weights_CxYxX))
    threshold_YxX = jax.random.uniform(key, logits_CxYxX.shape[1:]) * cumulative[-1]
    return sum((level_YxX <= threshold_YxX).astype(jnp.uint8) for level_YxX in cumulative[:-1])


def rollout(spec: RolloutSpec, rule: Rule, key: jax.Array, start_YxX: jax.Array | None = None) -> jax.Array:
    """The frames of one trajectory, uint8 (T, Y, X); `jax.vmap` over rules and keys for many.

    `start_YxX` replaces the random start. All arithmetic is float32 at full precision on every backend.
    """
    family = spec.rule
    perceive = hidden_channels(family, rule)
    update_key = keys.key(key, 'update')

    def update(step, grid_YxX):
        logits_CxYxX = colour_logits(family, rule, perceive(grid_YxX), grid_YxX)
        return sample(family, logits_CxYxX, keys.key(update_key, step))

    def next_frame(grid_YxX, first_and_last):
        grid_YxX = lax.fori_loop(*first_and_last, update, grid_YxX)
        return grid_YxX, grid_YxX

    grid_YxX = start_grid(family, keys.key(key, 'start')) if start_YxX is None else start_YxX
    last_T = spec.burn_in + spec.stride * jnp.arange(spec.frames)
    first_T = jnp.concatenate([jnp.zeros_like(last_T[:1]), last_T[:-1]])
    return lax.scan(next_frame, grid_YxX, (first_T, last_T))[1]
