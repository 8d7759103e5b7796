"""Control sources: noise, which holds nothing to learn, copying, which only needs induction, and Dyck words."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp

from nca_jax import keys
from nca_jax.batch import Vocab, check_vocab
from nca_jax.errors import check


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """Independent uniform tokens, all scored: no model can do better than ln(size) nats."""

    # Of the vocabulary.
    size: int

    def __post_init__(self):
        check(self.size >= 2, 'size', self.size, 'must be at least 2')
        check_vocab(self.size, 'size', self.size)

    @property
    def vocab(self) -> Vocab:
        return Vocab(self.size)


@dataclasses.dataclass(frozen=True)
class CopyConfig(NoiseConfig):
    """A row is a segment of noise, repeated to the length of the row."""

    # (low, high): the segment's length is uniform in low..high, both included.
    period: tuple[int, int]

    def __post_init__(self):
        super().__post_init__()
        low, high = self.period
        check(1 <= low <= high, 'period', self.period, 'must be (low, high) with 1 <= low <= high')


def copy_sequences(config: CopyConfig, length: int, keys_R: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int32 tokens (R, length), position of the first scored target (R))."""
    low, high = config.period

    def row(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        period = jax.random.randint(keys.key(key, 'period'), (), low, high + 1)
        # Drawn at the greatest length, since shapes are fixed.
        segment_P = jax.random.randint(keys.key(key, 'segment'), (high,), 0, config.size)
        # Target j is token j + 1. Targets in the first period carry no loss, since only repetition can be learnt.
        return segment_P[jnp.arange(length) % period], period - 1

    return jax.vmap(row)(keys_R)


def noise_sequences(config: NoiseConfig, length: int, keys_R: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int32 tokens (R, length), zeros (R))."""
    tokens_RxL = jax.vmap(lambda key: jax.random.randint(key, (length,), 0, config.size))(keys_R)
    return tokens_RxL, jnp.zeros(keys_R.shape, jnp.int32)


@dataclasses.dataclass(frozen=True)
class DyckConfig:
    """Brackets of several kinds, nested to a limited depth. Every token carries loss.

    Token i < kinds opens a bracket of kind i, token i + kinds closes one. A row is words one after another, the last
    one cut. Between depth 0, where the next token opens, and `depth`, where it closes, p_open decides if it opens.
    """

    # Uniform: exactly if it is a power of two and shuffle is off, else to 2^-24.
    kinds: int
    # The paper says "depth 1..16", read here as nesting of at most 16.
    depth: int
    p_open: float
    # A closing token closes any open bracket, each as likely (shuffle-Dyck), else the innermost.
    shuffle: bool

    def __post_init__(self):
        check(1 <= self.kinds <= 128, 'kinds', self.kinds, 'must be in 1..128: a token is kept in a byte')
        # A choice has 24 random bits, which a product with the depth must not exceed.
        check(1 <= self.depth <= 255, 'depth', self.depth, 'Dyck words must be allowed a depth in 1..255')
        # A coin has at most 8 random bits.
        exact = 0 < self.p_open < 1 and (self.p_open * 256).is_integer()
        check(exact, 'p_open', self.p_open, 'must be a multiple of 1/256 between 0 and 1, which are excluded')

    @property
    def vocab(self) -> Vocab:
        return Vocab(2 * self.kinds)


def dyck_sequences(config: DyckConfig, length: int, keys_R: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(uint8 tokens (R, length), zeros (R)), the first scored target of each row.

    A word is a walk that can't be skipped ahead, so one sequence is slow and only many at once are fast:
    - The walk is a scan over positions with the rows in the last axis. A step is a few operations on vectors.
    - A row's stack is a number with kinds as its digits, the top one lowest, in a few uint32 words. Opening shifts it
      up, closing shifts it down, both elementwise.
    - Random words are drawn before the scan: one a position, or one for four where a byte decides one (the paper's).
    - There the walk takes four positions a step, in two scans: first where brackets open, then their kinds. XLA
      computes each output of a step by its own expression from the step's inputs, so few outputs repeat little.
    """
    zeros_R = jnp.zeros(keys_R.shape, jnp.uint32)
    # As many words as hold `depth` digits.
    stack = (zeros_R,) * -(-config.depth * _digit(config) // 32)
    if _fits_a_byte(config):
        random_WxR = _random(keys_R, -(-length // 4))
        _, opened_WxR = jax.lax.scan(functools.partial(_four_coins, config), zeros_R, random_WxR)
        _, words_WxR = jax.lax.scan(functools.partial(_four_kinds, config), stack, opened_WxR)
        # A word holds four tokens, the first in its lowest byte.
        tokens_RxWx4 = jax.lax.bitcast_convert_type(words_WxR.T, jnp.uint8)
        tokens_RxL = tokens_RxWx4.reshape(len(keys_R), -1)[:, :length]
    else:
        step = functools.partial(_one_position, config)
        _, tokens_LxR = jax.lax.scan(step, (zeros_R, stack), _random(keys_R, length))
        tokens_RxL = tokens_LxR.T
    return tokens_RxL, zeros_R.astype(jnp.int32)


def _coin_bits(config: DyckConfig) -> int:
    """The fewest bits for a coin of exactly p_open."""
    return next(bits for bits in range(1, 9) if (config.p_open * 2**bits).is_integer())


def _digit(config: DyckConfig) -> int:
    """Bits of one entry of the stack, a kind: a power of two, so that no entry lies in two words."""
    # The fast path for few kinds moves whole bytes.
    if _fits_a_byte(config):
        return 8
    return next(bits for bits in (1, 2, 4, 8) if config.kinds <= 2**bits)


def _fits_a_byte(config: DyckConfig) -> bool:
    """Whether eight random bits decide a position exactly."""
    power_of_two = config.kinds & (config.kinds - 1) == 0
    return power_of_two and not config.shuffle and _coin_bits(config) + math.log2(config.kinds) <= 8


def _random(keys_R: jax.Array, words: int) -> jax.Array:
    """uint32 (words, R): column r is `jax.random.bits(keys_R[r], words)`."""
    data_Rx2 = jax.random.key_data(keys_R)
    place_WxR = jax.lax.broadcasted_iota(jnp.uint32, (words, len(keys_R)), 0)
    first_WxR, second_WxR = keys.threefry(
        (data_Rx2[None, :, 0], data_Rx2[None, :, 1]), jnp.zeros_like(place_WxR), place_WxR
    )
    return first_WxR ^ second_WxR


def _four_coins(config: DyckConfig, depth_R: jax.Array, random_R: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The depth after four positions, and the random word with bit 0 of each byte saying whether it opens."""
    # Bit 0 belonged to the coin, so it is free for the answer. The bits above the coin choose the kind.
    coin_bits, word_R = _coin_bits(config), random_R & jnp.uint32(0xFEFEFEFE)
    for shift in range(0, 32, 8):
        heads_R = ((random_R >> shift) & (2**coin_bits - 1)) < int(config.p_open * 2**coin_bits)
        opens_R = _opens(config, depth_R, heads_R)
        depth_R = jnp.where(opens_R, depth_R + 1, depth_R - 1)
        word_R |= opens_R.astype(jnp.uint32) << shift
    return depth_R, word_R


def _four_kinds(config: DyckConfig, stack: tuple, word_R: jax.Array) -> tuple[tuple, jax.Array]:
    """The stack after four positions, and their tokens in the bytes of a word.

    A digit is a byte. Four positions reach no deeper than the four digits of the first word, which grow to eight at
    most: `near` and `over`. Deeper digits move by -4, -2, 0, 2 or 4 places at once.
    """
    near_R, over_R, tokens_R = stack[0], jnp.zeros_like(word_R), jnp.zeros_like(word_R)
    for shift in range(0, 32, 8):
        opens_R = (word_R >> shift) & 1 == 1
        kind_R = (word_R >> (shift + _coin_bits(config))) & (config.kinds - 1)
        tokens_R |= jnp.where(opens_R, kind_R, (near_R & 0xFF) + config.kinds) << shift
        over_R, near_R = (
            jnp.where(opens_R, (over_R << 8) | (near_R >> 24), over_R >> 8),
            jnp.where(opens_R, (near_R << 8) | kind_R, (near_R >> 8) | (over_R << 24)),
        )
    # The number of the four positions that open says how far the deeper digits move: 2 * opens_R - 4.
    opens_R = jax.lax.population_count(word_R & 0x01010101)
    last = (*stack, jnp.zeros_like(word_R))
    moved = [jnp.where(opens_R == 0, last[1], near_R | jnp.where(opens_R == 1, last[1] << 16, 0))]
    before_R = jnp.where(opens_R == 3, over_R << 16, over_R)
    for this_R, after_R in itertools.pairwise(last[1:]):
        by_opens = (after_R, (this_R >> 16) | (after_R << 16), this_R, (before_R >> 16) | (this_R << 16), before_R)
        moved.append(functools.reduce(lambda x, n: jnp.where(opens_R == n, by_opens[n], x), range(1, 5), by_opens[0]))
        before_R = this_R
    return tuple(moved), tokens_R


def _opens(config: DyckConfig, depth_R: jax.Array, heads_R: jax.Array) -> jax.Array:
    return (depth_R == 0) | ((depth_R < config.depth) & heads_R)


def _one_position(config: DyckConfig, state: tuple, random_R: jax.Array) -> tuple[tuple, jax.Array]:
    """The next state and token, from 8 random bits for the coin and 24 for a choice."""
    depth_R, stack = state
    digit, choice_R = _digit(config), random_R & 0xFFFFFF
    opens_R = _opens(config, depth_R, (random_R >> 24) < int(config.p_open * 2**8))
    # One of n is floor(choice * n / 2^24).
    kind_R = (choice_R * config.kinds) >> 24
    # Digits that leave a word enter its neighbour: the lower one when opening, the upper one when closing.
    lower = (kind_R << (32 - digit), *stack[:-1])
    upper = (*stack[1:], jnp.zeros_like(kind_R))
    pushed = [(word_R << digit) | (other_R >> (32 - digit)) for word_R, other_R in zip(stack, lower, strict=True)]
    popped = [(word_R >> digit) | (other_R << (32 - digit)) for word_R, other_R in zip(stack, upper, strict=True)]
    top_R = stack[0] & (2**digit - 1)
    if config.shuffle:
        # Counted from the innermost bracket.
        top_R, popped = _taken_out(digit, stack, popped, (choice_R * depth_R) >> 24)
    stack = tuple(jnp.where(opens_R, up_R, down_R) for up_R, down_R in zip(pushed, popped, strict=True))
    depth_R = jnp.where(opens_R, depth_R + 1, depth_R - 1)
    return (depth_R, stack), jnp.where(opens_R, kind_R, top_R + config.kinds).astype(jnp.uint8)


def _taken_out(digit: int, stack: tuple, popped: list, closed_R: jax.Array) -> tuple[jax.Array, list]:
    """Digit `closed_R` of the stack, and the stack without it: lower digits stay, higher ones shift down."""
    per_word = 32 // digit
    word_R, offset_R = closed_R // per_word, (closed_R % per_word) * digit
    below_R = (jnp.uint32(1) << offset_R) - 1
    taken_R, left = jnp.zeros_like(closed_R), []
    for i, (old_R, shifted_R) in enumerate(zip(stack, popped, strict=True)):
        taken_R |= jnp.where(word_R == i, (old_R >> offset_R) & (2**digit - 1), 0)
        keep_R = jnp.where(word_R == i, below_R, jnp.where(word_R > i, jnp.uint32(2**32 - 1), 0))
        left.append((old_R & keep_R) | (shifted_R & ~keep_R))
    return taken_R, left
