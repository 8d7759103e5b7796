"""The automaton: a tiny random network maps a cell's neighbourhood to logits over its next colour, again and again."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from nca_jax import keys
from nca_jax.errors import FieldError, check

Rule = dict[str, jax.Array]
# Standard deviation of a unit normal truncated to [-2, 2].
TRUNCATED_STD = 0.87962566103423978
# A lower temperature would underflow to zero in float32.
MIN_TEMPERATURE = 1e-30
# (dy, dx) of the neighbourhood, in the order of the kernel.
OFFSETS = tuple(itertools.product((-1, 0, 1), repeat=2))
# Float32 on every backend: accelerators would round to bfloat16 or tf32, and the dynamics are chaotic.
EXACT = lax.Precision.HIGHEST
# Entries of a row's table. Three such tables take 192 kB, which still fits a core's cache.
MAX_TABLE = 4096
# Multiplications of a 1x1 convolution that are written out; more would be long to compile.
MAX_WRITTEN_OUT = 1024


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
            _, needed, _ = named_family(self.family)
            of_family = f'for the family {self.family!r}'
            check(self.colours == 2, 'colours', self.colours, f'2 {of_family}')
            check(self.padding == 'spatial', 'padding', self.padding, f"'spatial' {of_family}")
            check(self.features >= needed, 'features', self.features, f'at least {needed} {of_family}')


def init_rule(spec: RuleSpec, key: jax.Array) -> Rule:
    """A rule of the spec's family.

    Returns w1 (3, 3, channels, hidden), b1, w2 (hidden, features), b2, w3 (features, colours), b3, float32.
    """
    channels = spec.colours + 2 * (spec.padding == 'channel_wrap')
    shapes = {
        'w1': (3, 3, channels, spec.hidden),
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
    place_3x3, codes, rule = named_family(spec.family)
    if rule is None:
        lives_Z = jax.random.bernoulli(key, 0.5, (codes,))
    else:
        lives_Z = jnp.array([bool(rule >> code & 1) for code in range(codes)])
    # All values are small integers, exact in float32.
    w1, w2, w3 = map(jnp.zeros, shapes.values())
    # The first hidden channel is the code z.
    w1 = w1.at[:, :, 1, 0].set(jnp.array(place_3x3, jnp.float32))
    # The features are relu(z + 1), relu(z), relu(z - 1), ...
    w2 = w2.at[0, :codes].set(1.0)
    biases['b2'] = biases['b2'].at[:codes].set(1.0 - jnp.arange(codes))
    # Colour 1's logit is piecewise linear in z, 1 where the cell lives and -1 where it dies; colour 0's is 0. The
    # weight of a relu is the change of slope at its kink.
    slope_Z = jnp.diff(jnp.where(lives_Z, 1.0, -1.0), prepend=0.0)
    w3 = w3.at[:codes, 1].set(jnp.diff(slope_Z, prepend=0.0))
    return {'w1': w1, 'w2': w2, 'w3': w3} | biases


def named_family(name: str) -> tuple[Sequence[Sequence[int]], int, int | None]:
    """(place_3x3, codes, rule) of 'elementary', 'life', or one rule: 'elementary:N', 'life:B.../S...'.

    They have two colours. A neighbourhood's code, the sum of place * cell, is one of 0 to codes - 1. Bit z of `rule`
    says whether a cell with code z lives next; None draws a rule. Raises FieldError for other names.
    """
    kind, _, code = name.partition(':')
    if kind == 'elementary' and (not code or (code.isdecimal() and int(code) < 256)):
        return ((0, 0, 0), (4, 2, 1), (0, 0, 0)), 8, int(code) if code else None
    life = re.fullmatch(r'B([0-8]*)/S([0-8]*)', code)
    if kind == 'life' and (not code or life):
        # The centre counts 9, so that codes 0-8 are those of dead cells and 9-17 those of living ones.
        born, survives = life.groups() if life else ('', '')
        rule = sum(1 << int(digit) for digit in set(born)) + sum(1 << 9 + int(digit) for digit in set(survives))
        return ((1, 1, 1), (1, 9, 1), (1, 1, 1)), 18, rule if code else None
    allowed = 'random, elementary, life, elementary:0 to elementary:255, or life:B3/S23 and such'
    raise FieldError('family', name, allowed)


@dataclasses.dataclass(frozen=True)
class RolloutSpec:
    """`burn_in` updates, then `frames` frames with `stride` updates from one to the next."""

    rule: RuleSpec
    burn_in: int
    stride: int
    frames: int

    def __post_init__(self):
        check(self.burn_in >= 0, 'burn_in', self.burn_in, 'not negative')
        check(self.stride >= 1, 'stride', self.stride, 'at least 1')
        check(self.frames >= 1, 'frames', self.frames, 'at least 1')


def start_grid(spec: RuleSpec, key: jax.Array) -> jax.Array:
    """The grid before the first update, uint8 (Y, X)."""
    shape = (spec.height, spec.width)
    if spec.start == 'uniform':
        return jax.random.randint(key, shape, 0, spec.colours, jnp.int32).astype(jnp.uint8)
    logits_C = jax.random.normal(keys.key(key, 'logits'), (spec.colours,))
    return jax.random.categorical(keys.key(key, 'cells'), logits_C, shape=shape).astype(jnp.uint8)


def look_up(table: jax.Array, index_YxX: jax.Array) -> jax.Array:
    # Without the bounds check of JAX's indexing.
    return table.at[index_YxX].get(mode='promise_in_bounds')


def shifted(grid_YxX: jax.Array, dy: int, dx: int) -> jax.Array:
    """For each cell of the torus, the cell dy rows below and dx columns to the right."""
    return jnp.roll(grid_YxX, (-dy, -dx), (0, 1))


def make_perceive(spec: RuleSpec, rule: Rule) -> Callable[[jax.Array], jax.Array]:
    """The 3x3 convolution `grid_YxX -> hidden_YxXxH` over one-hot colours, computed as `spec.perceive` says."""
    kernel_3x3xCxH = rule['w1']
    if spec.padding == 'channel_wrap':
        # The outermost channels see the last and the first colour.
        first, last = kernel_3x3xCxH[:, :, 0], kernel_3x3xCxH[:, :, -1]
        kernel_3x3xCxH = kernel_3x3xCxH[:, :, 1:-1].at[:, :, -1].add(first).at[:, :, 0].add(last)
    # Exactly one colour of the centre cell is hot, so the bias is added once.
    bias_CxH = jnp.broadcast_to(rule['b1'], kernel_3x3xCxH.shape[2:])
    kernel_3x3xCxH = kernel_3x3xCxH.at[1, 1].add(bias_CxH)
    colours, hidden = kernel_3x3xCxH.shape[2:]

    # For machines that multiply faster than they look up.
    def by_product(grid_YxX: jax.Array) -> jax.Array:
        colour_9xS = jnp.stack([shifted(grid_YxX, dy, dx).reshape(-1) for dy, dx in OFFSETS])
        seen_9xCxS = jax.nn.one_hot(colour_9xS, colours, axis=1)
        kernel_9xCxH = kernel_3x3xCxH.reshape(9, colours, hidden)
        return jnp.einsum('ncs,nch->sh', seen_9xCxS, kernel_9xCxH, precision=EXACT).reshape(*grid_YxX.shape, hidden)

    def by_cells(grid_YxX: jax.Array) -> jax.Array:
        return sum(look_up(kernel_3x3xCxH[dy + 1, dx + 1], shifted(grid_YxX, dy, dx)) for dy, dx in OFFSETS)

    if spec.perceive == 'one_hot':
        return by_product
    if colours**3 > MAX_TABLE:
        return by_cells
    # A row's three cells together are one of C^3, so a third of the look-ups finds the same sums: table (3, C^3, H).
    left, middle, right = kernel_3x3xCxH[:, 0], kernel_3x3xCxH[:, 1], kernel_3x3xCxH[:, 2]
    table = left[:, :, None, None] + middle[:, None, :, None] + right[:, None, None, :]
    table = table.reshape(3, -1, hidden)

    def by_rows(grid_YxX: jax.Array) -> jax.Array:
        row_YxX = (shifted(grid_YxX, 0, -1) * colours + grid_YxX) * colours + shifted(grid_YxX, 0, 1)
        return sum(look_up(table[dy + 1], shifted(row_YxX, dy, 0)) for dy in (-1, 0, 1))

    return by_rows


def weigh(planes: Sequence[jax.Array], kernel_IxJ: jax.Array, bias_J: jax.Array) -> list[jax.Array]:
    """A 1x1 convolution of I planes into J."""
    inputs, outputs = kernel_IxJ.shape
    if inputs * outputs > MAX_WRITTEN_OUT:
        product_JxS = jnp.einsum('is,ij->js', jnp.stack(planes), kernel_IxJ, precision=EXACT)
        return list(product_JxS + bias_J[:, None])
    # Planes times numbers: XLA fuses them into loops over cells, which fill the vector lanes as small matrices can't.
    return [sum((plane * kernel_IxJ[i, j] for i, plane in enumerate(planes)), start=bias_J[j]) for j in range(outputs)]


def colour_logits(spec: RuleSpec, rule: Rule, hidden_SxH: jax.Array, colour_S: jax.Array) -> list[jax.Array]:
    """Logits of the next colours of S cells, before the temperature: one plane (S) per colour."""
    hidden = [hidden_SxH[:, channel] for channel in range(spec.hidden)]
    features = [jax.nn.relu(plane) for plane in weigh(hidden, rule['w2'], rule['b2'])]
    logits = weigh(features, rule['w3'], rule['b3'])
    if spec.identity_bias:
        logits = [plane + spec.identity_bias * (colour_S == colour) for colour, plane in enumerate(logits)]
    return logits


def sample(spec: RuleSpec, logits: Sequence[jax.Array], key: jax.Array, step: jax.Array) -> jax.Array:
    """Next colours, int32 (S), from softmax(logits / temperature); `logits` has one plane (S) per colour."""
    if spec.temperature == 0:
        return jnp.argmax(jnp.stack(logits), 0).astype(jnp.int32)
    if spec.sampler == 'gumbel':
        return jax.random.categorical(keys.key(key, step), jnp.stack(logits) / spec.temperature, axis=0)
    # The inverse CDF, exact up to the 2^-23 grain of a float32 uniform number.
    # Subtracting before the division keeps small differences at low temperatures.
    largest_S = functools.reduce(jnp.maximum, logits)
    weights = [jnp.exp((logit_S - largest_S) / spec.temperature) for logit_S in logits]
    cumulative = list(itertools.accumulate(weights))
    threshold_S = keys.uniform(key, step.astype(jnp.uint32), largest_S.size) * cumulative[-1]
    # A colour of weight 0 is never drawn, since uniform * total < total.
    return sum((level_S <= threshold_S).astype(jnp.int32) for level_S in cumulative[:-1])


def rollout(spec: RolloutSpec, rule: Rule, key: jax.Array, start_YxX: jax.Array | None = None) -> jax.Array:
    """The frames of one trajectory, uint8 (T, Y, X); `start_YxX` replaces the random start."""
    family = spec.rule
    shape = (family.height, family.width)
    perceive = make_perceive(family, rule)
    update_key = keys.key(key, 'update')

    # The state carries the hidden channels: computed inside the update, the look-ups would be fused into the chain
    # below and done again for each of their uses.
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
