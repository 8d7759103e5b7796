"""Control sources: copying, which only needs induction, and noise, which holds nothing to learn."""

import dataclasses

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
