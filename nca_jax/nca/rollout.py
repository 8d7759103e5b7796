"""Running a rule: from its weights and a key to the frames of one trajectory.

What it costs at the paper's size (10 colours, 4 hidden channels, 16 features): a token stands for 5.05 updates of a
cell (36 updates of 144 cells, 1,026 tokens). One update of a cell takes 224 multiply-adds, 10 exponentials of about 15
operations, half a Threefry block of about 80, and some 70 additions and comparisons: 480 operations, 2,430 a token. A
core with 16 float32 lanes that starts one vector operation a cycle needs at least 30 cycles a cell, 150 a token. One of
2.6 GHz was measured at 20 ns a cell, 52 cycles, 1.7 times the bound. Timed apart, the fused chain of convolutions and
sampling took 12 ns, random bits 1.5, and the look-ups, twelve loads that XLA doesn't vectorise, 7.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from nca_jax import bits, keys
from nca_jax.errors import check
from nca_jax.nca.rule import Rule, RuleSpec

EXACT = lax.Precision.HIGHEST
LARGEST_TABLE = 4096  # entries of a row's table: 192 kB a rule in all, still within a core's cache
LARGEST_CHAIN = 1024  # multiplications of a 1x1 convolution that are written out


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
    """The 3x3 convolution's kernel with the wrap-around of its channels and its bias (in the centre) folded in."""
    kernel_3x3xCxH = rule['w1']
    if spec.padding == 'channel_wrap':
        first, last = kernel_3x3xCxH[:, :, 0], kernel_3x3xCxH[:, :, -1]
        kernel_3x3xCxH = kernel_3x3xCxH[:, :, 1:-1].at[:, :, -1].add(first).at[:, :, 0].add(last)
    bias_CxH = jnp.broadcast_to(rule['b1'], kernel_3x3xCxH.shape[2:])
    return kernel_3x3xCxH.at[1, 1].add(bias_CxH)


def row_tables(kernel_3x3xCxH: jax.Array) -> jax.Array:
    """What the three cells of a row contribute together, (3, C^3, H): one-hot cells enter the convolution linearly."""
    left, middle, right = kernel_3x3xCxH[:, 0], kernel_3x3xCxH[:, 1], kernel_3x3xCxH[:, 2]
    table = left[:, :, None, None] + middle[:, None, :, None] + right[:, None, None, :]
    return table.reshape(3, -1, kernel_3x3xCxH.shape[-1])


def look_up(table: jax.Array, *colour_YxX: jax.Array) -> jax.Array:
    """`table[colour_YxX, ...]` without the bounds check that JAX's indexing pays for."""
    return table.at[colour_YxX].get(mode='promise_in_bounds')


def shifted(grid_YxX: jax.Array, dy: int, dx: int) -> jax.Array:
    """What lies dy rows below and dx columns to the right of each cell on the torus."""
    return jnp.roll(grid_YxX, (-dy, -dx), (0, 1))


def perceive_rows(table_3xNxH: jax.Array, grid_YxX: jax.Array, colours: int) -> jax.Array:
    """Hidden channels, (Y, X, H): one look-up for the three cells of each row of the neighbourhood."""
    row_YxX = (shifted(grid_YxX, 0, -1) * colours + grid_YxX) * colours + shifted(grid_YxX, 0, 1)
    return sum(look_up(table_3xNxH[dy + 1], shifted(row_YxX, dy, 0)) for dy in (-1, 0, 1))


def perceive_cells(kernel_3x3xCxH: jax.Array, grid_YxX: jax.Array) -> jax.Array:
    """Hidden channels, (Y, X, H): one look-up for each of the nine cells."""
    offsets = itertools.product((-1, 0, 1), repeat=2)
    return sum(look_up(kernel_3x3xCxH[dy + 1, dx + 1], shifted(grid_YxX, dy, dx)) for dy, dx in offsets)


def perceive_one_hot(kernel_3x3xCxH: jax.Array, grid_YxX: jax.Array) -> jax.Array:
    """Hidden channels, (Y, X, H), as the product of kernel and one-hot neighbours. For machines that multiply faster
    than they look up."""
    colours, hidden = kernel_3x3xCxH.shape[2:]
    offsets = itertools.product((-1, 0, 1), repeat=2)
    colour_9xS = jnp.stack([shifted(grid_YxX, dy, dx).reshape(-1) for dy, dx in offsets])
    seen_9xCxS = jax.nn.one_hot(colour_9xS, colours, axis=1)
    kernel_9xCxH = kernel_3x3xCxH.reshape(9, colours, hidden)
    return jnp.einsum('ncs,nch->sh', seen_9xCxS, kernel_9xCxH, precision=EXACT).reshape(*grid_YxX.shape, hidden)


def make_perceive(spec: RuleSpec, rule: Rule) -> Callable[[jax.Array], jax.Array]:
    """`grid_YxX -> hidden_YxXxH` as `spec.perceive` says; what doesn't depend on the grid is done here."""
    kernel_3x3xCxH = fold(spec, rule)
    if spec.perceive == 'one_hot':
        return functools.partial(perceive_one_hot, kernel_3x3xCxH)
    if spec.colours**3 > LARGEST_TABLE:
        return functools.partial(perceive_cells, kernel_3x3xCxH)
    return functools.partial(perceive_rows, row_tables(kernel_3x3xCxH), colours=spec.colours)


def weigh(planes: Sequence[jax.Array], kernel_IxJ: jax.Array, bias_J: jax.Array) -> list[jax.Array]:
    """A 1x1 convolution of I planes into J, as multiplications of planes by numbers.

    A fused chain of them keeps the machine's vectors full of cells, where products of such small matrices don't. Wide
    networks, whose chain would be long to compile, take the product.
    """
    inputs, outputs = kernel_IxJ.shape
    if inputs * outputs > LARGEST_CHAIN:
        product_JxS = jnp.einsum('is,ij->js', jnp.stack(planes), kernel_IxJ, precision=EXACT)
        return list(product_JxS + bias_J[:, None])
    return [sum((plane * kernel_IxJ[i, j] for i, plane in enumerate(planes)), start=bias_J[j]) for j in range(outputs)]


def colour_logits(spec: RuleSpec, rule: Rule, hidden_SxH: jax.Array, colour_S: jax.Array) -> list[jax.Array]:
    """Logits of the next colours of S cells before the temperature: one plane (S) per colour."""
    hidden = [hidden_SxH[:, channel] for channel in range(spec.hidden)]
    features = [jax.nn.relu(plane) for plane in weigh(hidden, rule['w2'], rule['b2'])]
    logits = weigh(features, rule['w3'], rule['b3'])
    if spec.identity_bias:
        logits = [plane + spec.identity_bias * (colour_S == colour) for colour, plane in enumerate(logits)]
    return logits


def sample(spec: RuleSpec, logits: Sequence[jax.Array], key: jax.Array, step: jax.Array) -> jax.Array:
    """Next colours, int32 (S), from softmax(logits / temperature); `logits` has one plane (S) per colour.

    The inverse-CDF walk is exact down to the 2^-23 grain of a float32 uniform, at any temperature: the difference to
    the largest logit is formed before the division, and a colour of weight 0 is never taken, since u * total < total.
    """
    if spec.temperature == 0:
        return jnp.argmax(jnp.stack(logits), 0).astype(jnp.int32)
    if spec.sampler == 'gumbel':
        return jax.random.categorical(keys.key(key, step), jnp.stack(logits) / spec.temperature, axis=0)
    largest_S = functools.reduce(jnp.maximum, logits)
    weights = [jnp.exp((logit_S - largest_S) / spec.temperature) for logit_S in logits]
    cumulative = list(itertools.accumulate(weights))
    threshold_S = bits.uniform(key, step.astype(jnp.uint32), largest_S.size) * cumulative[-1]
    return sum((level_S <= threshold_S).astype(jnp.int32) for level_S in cumulative[:-1])


def rollout(spec: RolloutSpec, rule: Rule, key: jax.Array, start_YxX: jax.Array | None = None) -> jax.Array:
    """The frames of one trajectory, uint8 (T, Y, X); `jax.vmap` over rules and keys for many.

    `start_YxX` replaces the random start. All arithmetic is float32 at full precision on every backend.
    """
    family = spec.rule
    shape = (family.height, family.width)
    perceive = make_perceive(family, rule)
    update_key = keys.key(key, 'update')

    def update(step, state):
        colour_S, hidden_SxH = state
        logits = colour_logits(family, rule, hidden_SxH, colour_S)
        colour_S = sample(family, logits, update_key, step)
        return colour_S, perceive(colour_S.reshape(shape)).reshape(-1, family.hidden)

    def next_frame(state, first_and_last):
        state = lax.fori_loop(*first_and_last, update, state)
        return state, state[0].astype(jnp.uint8)

    grid_YxX = start_grid(family, keys.key(key, 'start')) if start_YxX is None else start_YxX
    grid_YxX = grid_YxX.astype(jnp.int32)
    state = grid_YxX.reshape(-1), perceive(grid_YxX).reshape(-1, family.hidden)
    last_T = spec.burn_in + spec.stride * jnp.arange(spec.frames)
    first_T = jnp.concatenate([jnp.zeros_like(last_T[:1]), last_T[:-1]])
    return lax.scan(next_frame, state, (first_T, last_T))[1].reshape(-1, *shape)
