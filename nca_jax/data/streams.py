"""Streams: `stream(step)` is the step-th Batch, of rows that are computed from keys or read by number.

Row r of step s has the number s * batch + r, and depends on it alone: batch size, devices and hosts can't change it.
"""

import functools
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from grain.experimental import index_shuffle
from jax.sharding import NamedSharding, PartitionSpec

from nca_jax import keys
from nca_jax.batch import Batch, to_batch

# A batch of 32 is far too little work for one call: rows are made for many steps at once, and steps are cut out.
BLOCK_TOKENS = 1 << 22

# `sequences(keys_R) -> (tokens_RxL1, first_loss_at_R)`: whole rows, each from its own key.
Sequences = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
# `row_of(number) -> (tokens_L1, weights_L1)`: a row, and the weight of each token as a target.
RowOf = Callable[[int], tuple[np.ndarray, np.ndarray]]


def make_computed_stream(
    sequences: Sequences, name: str, seed: int, split: str, batch: int, length: int, sharding: NamedSharding
) -> Callable[[int], Batch]:
    """`stream(step) -> Batch` of `batch` rows of length + 1 tokens, sharded over axis 0 as `sharding` says.

    Row n is computed from the key (seed, name, split, n). Steps in order cost their share of a block.
    """
    rows = sharding.spec[0] if sharding.spec else None
    by_step = NamedSharding(sharding.mesh, PartitionSpec(None, rows))
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    root = functools.cache(jax.jit(lambda: keys.key(seed, name, split), out_shardings=replicated))
    steps = max(1, BLOCK_TOKENS // (batch * (length + 1)))

    # Each device makes its own rows.
    def local(root: jax.Array, numbers_SxB: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys_R = jax.vmap(lambda number: keys.key(root, number))(numbers_SxB.ravel())
        tokens_RxL1, first_loss_at_R = sequences(keys_R)
        return tokens_RxL1.reshape(*numbers_SxB.shape, -1), first_loss_at_R.reshape(numbers_SxB.shape)

    specs = {'in_specs': (PartitionSpec(), by_step.spec), 'out_specs': (by_step.spec, by_step.spec)}
    make = jax.jit(jax.shard_map(local, mesh=sharding.mesh, check_vma=False, **specs))

    @functools.lru_cache(maxsize=2)
    def block(index: int) -> tuple[jax.Array, jax.Array]:
        numbers_SxB = np.arange(steps * batch, dtype=np.uint32).reshape(steps, batch) + np.uint32(index * steps * batch)
        # These few integers are all that a block transfers.
        with jax.transfer_guard_host_to_device('allow'):
            numbers = jax.make_array_from_callback(numbers_SxB.shape, by_step, lambda part: numbers_SxB[part])
        return make(root(), numbers)

    @functools.partial(jax.jit, out_shardings=sharding)
    def cut(tokens_SxBxL1: jax.Array, first_loss_at_SxB: jax.Array, step: jax.Array) -> Batch:
        # Widened only here, so that blocks stay in the narrow type of `sequences`.
        return to_batch(tokens_SxBxL1[step].astype(jnp.int32), first_loss_at_SxB[step])

    def stream(step: int) -> Batch:
        # The step within the block is a second transfer of an integer.
        index, within = divmod(step, steps)
        with jax.transfer_guard_host_to_device('allow'):
            return cut(*block(index), np.int32(within))

    return stream


def make_read_stream(row_of: RowOf, batch: int, length: int, sharding: NamedSharding) -> Callable[[int], Batch]:
    """`stream(step) -> Batch` of the rows that `row_of` reads, where each process reads those that it holds."""

    def stream(step: int) -> Batch:
        # The three arrays, and the devices that hold copies, share one reading of each row.
        @functools.cache
        def row(place: int) -> tuple[np.ndarray, ...]:
            tokens_L1, weights_L1 = row_of(step * batch + place)
            return tokens_L1[:-1], tokens_L1[1:], weights_L1[1:]

        def part(field: int) -> jax.Array:
            def local(index: tuple[slice, ...]) -> np.ndarray:
                return np.stack([row(place)[field] for place in range(*index[0].indices(batch))])[:, index[1]]

            return jax.make_array_from_callback((batch, length), sharding, local)

        # This transfer is meant; the guard sees it as implicit.
        with jax.transfer_guard_host_to_device('allow'):
            return Batch(*map(part, range(3)))

    return stream


def shuffled(number: int, total: int, name: str) -> tuple[int, int]:
    """(epoch, index) of a row: each index below `total` comes once an epoch, in an order of (name, epoch)."""
    epoch, place = divmod(number, total)
    # The order is computed, not stored, so that any step is found at once.
    seed = zlib.crc32(f'{name}/{epoch}'.encode())
    # So many rounds of the block cipher are grain's own choice.
    return epoch, index_shuffle(place, max_index=total - 1, seed=seed, rounds=4)
