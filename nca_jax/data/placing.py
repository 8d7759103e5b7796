"""In which order rows of tokens come, and how those that a process reads become a Batch that is split over devices."""

import zlib
from collections.abc import Callable

import jax
import numpy as np
from grain.experimental import index_shuffle

from nca_jax.batch import Batch

ROUNDS = 4  # of the block cipher in index_shuffle; grain's own choice


def shuffled(row: int, total: int, name: str) -> tuple[int, int]:
    """(epoch, number) of a stream's row: each number below `total` once an epoch, in an order of (name, epoch)."""
    epoch, index = divmod(row, total)
    seed = zlib.crc32(f'{name}/{epoch}'.encode())
    return epoch, index_shuffle(index, max_index=total - 1, seed=seed, rounds=ROUNDS)


def place_rows(
    row_of: Callable[[int], tuple[np.ndarray, np.ndarray]],
    batch: int,
    length: int,
    sharding: jax.sharding.NamedSharding,
) -> Batch:
    """Makes the rows that this process holds, and no others.

    `row_of` gives a row's tokens (L+1,) and the weight (L+1,) of each of them as a target.
    """
    rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def cached(row: int) -> tuple[np.ndarray, np.ndarray]:
        if row not in rows:
            rows[row] = row_of(row)
        return rows[row]

    def part(cut: Callable) -> jax.Array:
        def local(index: tuple[slice, ...]) -> np.ndarray:
            return np.stack([cut(*cached(row)) for row in range(*index[0].indices(batch))])[:, index[1]]

        with jax.transfer_guard_host_to_device('allow'):  # this transfer is meant; the guard sees it as implicit
            return jax.make_array_from_callback((batch, length), sharding, local)

    return Batch(
        inputs_BxL=part(lambda tokens_L1, weights_L1: tokens_L1[:-1]),
        targets_BxL=part(lambda tokens_L1, weights_L1: tokens_L1[1:]),
        weights_BxL=part(lambda tokens_L1, weights_L1: weights_L1[1:]),
    )
