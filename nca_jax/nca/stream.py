"""Batches of automata: token sequences, each a fresh trajectory of an accepted rule."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nca_jax import keys
from nca_jax.batch import Batch, to_batch
from nca_jax.nca import bank as banks
from nca_jax.nca import patches
from nca_jax.nca.config import NCAConfig
from nca_jax.nca.rollout import rollout


def sequence(
    config: NCAConfig, length: int, root: jax.Array, split: str, epoch: jax.Array, index: jax.Array, number: jax.Array
) -> jax.Array:
    """The first `length` tokens of trajectory `number` with the rule that is candidate `index`, int32 (length)."""
    frames = -(-length // config.tokens_per_grid)
    rule = banks.candidate(config, root, split, epoch, index)
    frames_TxYxX = rollout(config.rollout(frames), rule, keys.key(root, 'rollout', split, number))
    return patches.encode(config.vocab, frames_TxYxX)[:length]


def make_sequences(config: NCAConfig, length: int, split: str, sharding: NamedSharding) -> Callable:
    """A jitted `(root, names_Bx3) -> tokens_BxL`; a row's names are its epoch, candidate and sequence number.

    Each device computes its own rows in blocks of `config.stream_block`, the last one padded, so that every block has
    one shape whatever the number of devices: roundings, and with them the tokens, stay the same.
    """
    rows = sharding.spec[0] if sharding.spec else None

    def one_block(root, names_Rx3):
        return jax.vmap(lambda names: sequence(config, length, root, split, *names))(names_Rx3)

    def local(root, names_Bx3):
        count = names_Bx3.shape[0]
        padded_Bx3 = jnp.pad(names_Bx3, ((0, -count % config.stream_block), (0, 0)))
        blocks_KxRx3 = padded_Bx3.reshape(-1, config.stream_block, 3)
        tokens_KxRxL = jax.lax.map(functools.partial(one_block, root), blocks_KxRx3)
        return tokens_KxRxL.reshape(-1, length)[:count]

    specs = {'in_specs': (PartitionSpec(), PartitionSpec(rows)), 'out_specs': PartitionSpec(rows)}
    return jax.jit(jax.shard_map(local, mesh=sharding.mesh, check_vma=False, **specs))


def make_stream(
    config: NCAConfig,
    seed: int,
    split: str,
    batch: int,
    length: int,
    sharding: NamedSharding,
    folder: Path | None,
    progress: banks.Progress | None = None,
) -> Callable[[int], Batch]:
    """`stream(step) -> Batch` of `batch` sequences, sharded over axis 0 as `sharding` says.

    Row r of step s is sequence s * batch + r, with its own rollout key; its rule is entry (s * batch + r) modulo
    `rules_per_epoch` of its epoch's bank. Banks are searched when an epoch is first reached, and kept in `folder`.
    """
    root = jax.device_put(keys.key(seed), NamedSharding(sharding.mesh, PartitionSpec()))
    sequences = make_sequences(config, length + 1, split, sharding)
    cut = jax.jit(functools.partial(to_batch, first_loss_at=config.first_loss_at), out_shardings=sharding)
    per_epoch = config.rules_per_epoch * config.trajectories_per_rule

    @functools.lru_cache(maxsize=2)
    def rules(epoch: int) -> np.ndarray:
        return banks.bank(config, seed, split, epoch, folder, progress).index_R

    def stream(step: int) -> Batch:
        number_B = step * batch + np.arange(batch)
        epoch_B = number_B // per_epoch if config.fresh_rules else np.zeros(batch, int)
        entry_B = number_B % per_epoch % config.rules_per_epoch
        index_B = [rules(int(epoch))[entry] for epoch, entry in zip(epoch_B, entry_B, strict=True)]
        names_Bx3 = np.stack([epoch_B, index_B, number_B], 1).astype(np.uint32)
        with jax.transfer_guard_host_to_device('allow'):  # these few integers are all that a batch transfers
            names = jax.make_array_from_callback(names_Bx3.shape, sharding, lambda rows: names_Bx3[rows])
        return cut(sequences(root, names))

    return stream
