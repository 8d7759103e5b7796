"""From logits to a token: temperature, top-k, top-p. From tokens to the end of an answer: stop tokens and strings."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nca_jax.errors import check

# Infinity in float32, read as an integer: no probability has larger bits.
LARGEST_BITS = 0x7F800000


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Of the top_k likeliest tokens, the fewest whose share of the probability reaches top_p are kept, and all others that
    are as likely as the last of them.
    """

    # 0 is greedy.
    temperature: float
    # 1 keeps all tokens.
    top_p: float
    # 0 keeps all tokens.
    top_k: int

    def __post_init__(self):
        check(self.temperature >= 0, 'temperature', self.temperature, 'must be 0 (greedy) or above')
        check(0 < self.top_p <= 1, 'top_p', self.top_p, 'must be above 0, up to 1 (all)')
        check(self.top_k >= 0, 'top_k', self.top_k, 'must be 0 (all) or above')


def choose(sampling: Sampling, logits_BxV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """A token (B,) for each row of logits; `uniform_B` in [0, 1) decides. Masked logits are never chosen."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    # The token at which the running sum of p first exceeds uniform * sum(p). It is summed in blocks, so that rounding
    # doesn't grow with V and no long scan is needed.
    p_BxV, block = kept(sampling, logits_BxV), 32
    p_BxNxK = jnp.pad(p_BxV, ((0, 0), (0, -p_BxV.shape[-1] % block))).reshape(p_BxV.shape[0], -1, block)
    block_BxN = jnp.sum(p_BxNxK, axis=-1)
    end_BxN = jnp.cumsum(block_BxN, axis=-1)
    target_B = uniform_B * end_BxN[:, -1]
    number_B = _first_above(end_BxN, target_B, block_BxN)
    chosen_BxK = jnp.take_along_axis(p_BxNxK, number_B[:, None, None], axis=1)[:, 0]
    before_B = jnp.take_along_axis(end_BxN - block_BxN, number_B[:, None], axis=1)[:, 0]
    within_B = _first_above(before_B[:, None] + jnp.cumsum(chosen_BxK, axis=-1), target_B, chosen_BxK)
    return (number_B * block + within_B).astype(jnp.int32)


def kept(sampling: Sampling, logits_BxV: jax.Array) -> jax.Array:
    """Probabilities (B, V), not normalised, of the tokens that may be chosen; 0 for the rest."""
    p_BxV = jax.nn.softmax(logits_BxV / sampling.temperature, axis=-1)
    # In this order top_p is a share of what top_k left.
    if sampling.top_k:
        p_BxV = _likeliest(p_BxV, jnp.ones_like(p_BxV), jnp.full(p_BxV.shape[:1], sampling.top_k, jnp.float32))
    if sampling.top_p < 1:
        p_BxV = _likeliest(p_BxV, p_BxV, sampling.top_p * jnp.sum(p_BxV, axis=-1))
    return p_BxV


def _likeliest(p_BxV: jax.Array, weight_BxV: jax.Array, limit_B: jax.Array) -> jax.Array:
    """p where the likelier tokens weigh less than the limit, else 0.

    Positive floats are ordered as their bits are, so 31 halvings find the least p to keep: exact as a sort, and faster.
    """
    bits_BxV = jax.lax.bitcast_convert_type(p_BxV, jnp.int32)

    def halve(_, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # Tokens above `low` weigh at least the limit, those above `high` less.
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B) // 2
        above_B = jnp.sum(jnp.where(bits_BxV > middle_B[:, None], weight_BxV, 0), axis=-1)
        enough_B = above_B >= limit_B
        return jnp.where(enough_B, middle_B, low_B), jnp.where(enough_B, high_B, middle_B)

    bounds = jnp.full_like(limit_B, -1, jnp.int32), jnp.full_like(limit_B, LARGEST_BITS, jnp.int32)
    _, least_B = jax.lax.fori_loop(0, 31, halve, bounds)
    return jnp.where(bits_BxV >= least_B[:, None], p_BxV, 0)


def _first_above(sums_BxN: jax.Array, target_B: jax.Array, p_BxN: jax.Array) -> jax.Array:
    """The first index at which the sum exceeds the target."""
    possible_BxN = p_BxN > 0
    above_BxN = (sums_BxN > target_B[:, None]) & possible_BxN
    # Where rounding left no sum above the target, the last that is possible.
    last_B = p_BxN.shape[-1] - 1 - jnp.argmax(possible_BxN[:, ::-1], axis=-1)
    return jnp.where(jnp.any(above_BxN, axis=-1), jnp.argmax(above_BxN, axis=-1), last_B)


def make_stops(tokens: Sequence[int], strings: Sequence[str], pieces: Sequence[bytes]) -> np.ndarray:
    """The automaton next_SxV that ends answers: the state after each token in each state.

    Token t stands for the bytes pieces[t]. State 0 has read nothing of a stop string. The last state has read one of
    the stop tokens or a stop string, which may end within a token. No string may be empty.
    """
    next_Sx256 = _aho_corasick([string.encode() for string in strings])
    longest = max(map(len, pieces), default=0)
    byte_VxK = np.array([list(piece.ljust(longest, b'\0')) for piece in pieces], np.int64).reshape(len(pieces), longest)
    length_V = np.array(list(map(len, pieces)))
    next_SxV = np.repeat(np.arange(len(next_Sx256))[:, None], len(pieces), axis=1)
    # One byte of every token at a time, in all states at once.
    for place in range(longest):
        next_SxV = np.where(place < length_V, next_Sx256[next_SxV, byte_VxK[:, place]], next_SxV)
    # A stop token ends the answer; its bytes don't matter.
    next_SxV[:, list(tokens)] = len(next_Sx256) - 1
    return next_SxV.astype(np.int32)


def _aho_corasick(strings: Sequence[bytes]) -> np.ndarray:
    """The state (S, 256) after each byte: states are the strings' proper prefixes, and the last has read a string."""
    prefixes = sorted({string[:end] for string in strings for end in range(len(string))} | {b''}, key=len)
    state = {prefix: number for number, prefix in enumerate(prefixes)}
    done = len(prefixes)
    next_Sx256 = np.full((done + 1, 256), done)
    for prefix in prefixes:
        for byte in range(256):
            text = prefix + bytes([byte])
            if not text.endswith(tuple(strings)):
                # The longest suffix that may still become a stop string; b'' always is one.
                suffixes = (text[i:] for i in range(len(text) + 1))
                next_Sx256[state[prefix], byte] = next(state[suffix] for suffix in suffixes if suffix in state)
    return next_Sx256


def cut(text: str, strings: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((place for string in strings if (place := text.find(string)) >= 0), default=len(text))]
