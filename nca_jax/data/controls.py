"""Controls without a structure of their own: copying, which needs induction alone, and noise, which has nothing."""

import dataclasses

import jax
import jax.numpy as jnp

from nca_jax import keys
from nca_jax.batch import Vocab
from nca_jax.errors import check


@dataclasses.dataclass(frozen=True)
class CopyConfig:
    """A row is a segment of uniform tokens, repeated to the length of the row.

    Its period is uniform in low..high, both included. Targets in the first period have weight 0: the repetition is what
    can be learnt.
    """

    size: int
    period: tuple[int, int]

    def __post_init__(self):
        _check_size(self.size)
        low, high = self.period
        check(1 <= low <= high, 'period', self.period, 'must be (low, high) with 1 <= low <= high')

    @property
    def vocab(self) -> Vocab:
        return Vocab(self.size)


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """Independent uniform tokens, all scored: no model can do better than ln(size) nats."""

    size: int

    def __post_init__(self):
        _check_size(self.size)

    @property
    def vocab(self) -> Vocab:
        return Vocab(self.size)


def copy_sequences(config: CopyConfig, length: int, keys_R: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int32 tokens (R, length), the first scored target's position (R)); target j is token j + 1."""
    low, high = config.period

    def row(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        period = jax.random.randint(keys.key(key, 'period'), (), low, high + 1)
        segment_P = jax.random.randint(keys.key(key, 'segment'), (high,), 0, config.size)
        return segment_P[jnp.arange(length) % period], period - 1

    return jax.vmap(row)(keys_R)


def noise_sequences(config: NoiseConfig, length: int, keys_R: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int32 tokens (R, length), zeros (R))."""
    tokens_RxL = jax.vmap(lambda key: jax.random.randint(key, (length,), 0, config.size))(keys_R)
    return tokens_RxL, jnp.zeros(keys_R.shape, jnp.int32)


def _check_size(size: int) -> None:
    check(size >= 2, 'size', size, 'must be at least 2')
