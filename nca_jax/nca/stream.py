"""Batches of automata: token sequences, each a fresh trajectory of an accepted rule."""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nca_jax import distributed, keys
from nca_jax.batch import Batch, to_batch
from nca_jax.nca import bank, patches, score
from nca_jax.nca.config import NCAConfig
from nca_jax.nca.rollout import rollout
from nca_jax.progress import Progress, silent

# Of the process that searches ahead, so that it leaves the cores to training.
NICENESS = 10


def sequence(
    config: NCAConfig, length: int, root: jax.Array, split: str, epoch: jax.Array, index: jax.Array, number: jax.Array
) -> jax.Array:
    """The first `length` tokens of trajectory `number` under the rule that is candidate `index`, int32 (length)."""
    # Rounded up: the last grid may be cut.
    frames = -(-length // config.tokens_per_grid)
    rule = score.candidate(config.rule, root, rules_split(config, split), epoch, index)
    frames_TxYxX = rollout(config.rollout(frames), rule, keys.key(root, 'rollout', split, number))
    tokens_L = patches.encode(config.vocab, frames_TxYxX)[:length]
    return shuffle(config, tokens_L, keys.key(root, 'shuffle', split, number))


def rules_split(config: NCAConfig, split: str) -> str:
    """The split that a split's trajectories take their rules from."""
    return split if config.held_out == 'rules' else 'train'


def shuffle(config: NCAConfig, tokens_L: jax.Array, key: jax.Array) -> jax.Array:
    """The tokens in the order of the control `config.shuffle`."""
    size = config.tokens_per_grid
    if config.shuffle == 'tokens':
        # Delimiters stay where they are, so that only the dynamics are gone.
        place_L = np.arange(tokens_L.size) % size
        patch_places = np.flatnonzero((place_L > 0) & (place_L < size - 1))
        return tokens_L.at[patch_places].set(jax.random.permutation(key, tokens_L[patch_places]))
    if config.shuffle == 'frames':
        # A cut last grid stays, since another one's place has more tokens.
        complete = tokens_L.size // size * size
        grids_TxS = tokens_L[:complete].reshape(-1, size)
        return tokens_L.at[:complete].set(jax.random.permutation(key, grids_TxS).reshape(-1))
    return tokens_L


def make_sequences(config: NCAConfig, length: int, split: str, sharding: NamedSharding) -> Callable:
    """A jitted `(root, names_Bx3) -> tokens_BxL`; a row's names are its epoch, candidate and sequence number."""
    rows = sharding.spec[0] if sharding.spec else None
    # Look-ups are slow on TPUs; elsewhere 'auto' is 'table'.
    if config.rule.perceive == 'auto' and sharding.mesh.devices.flat[0].platform == 'tpu':
        config = dataclasses.replace(config, rule=dataclasses.replace(config.rule, perceive='one_hot'))

    # Each device computes its own rows.
    # Blocks of one shape, the last one padded, on any number of devices: another shape may round differently.
    def local(root, names_Bx3):
        count = names_Bx3.shape[0]
        padded_Bx3 = jnp.pad(names_Bx3, ((0, -count % config.stream_block), (0, 0)))
        return jax.lax.map(
            lambda names: sequence(config, length, root, split, *names), padded_Bx3, batch_size=config.stream_block
        )[:count]

    specs = {'in_specs': (PartitionSpec(), PartitionSpec(rows)), 'out_specs': PartitionSpec(rows)}
    return jax.jit(jax.shard_map(local, mesh=sharding.mesh, check_vma=False, **specs))


def epochs(config: NCAConfig, batch: int, steps: int) -> int:
    """The number of banks that the first `steps` batches take their rules from."""
    per_epoch = config.rules_per_epoch * config.trajectories_per_rule
    # A run of no steps has a bank too, whose hash its manifest holds.
    return max(1, -(-steps * batch // per_epoch)) if config.fresh_rules else 1


def start_search(candidates: score.Candidates, folder: Path) -> BaseProcess:
    """Starts a process that searches a bank and saves it in its file. It ends when this process ends."""
    # A fork would copy JAX's locks without the threads that hold them.
    process = multiprocessing.get_context('spawn').Process(target=_search, args=(candidates, folder), daemon=True)
    process.start()
    return process


def _search(candidates: score.Candidates, folder: Path) -> None:
    """The work of that process: `bank.bank` on the CPU, at low priority."""
    # Signals to the parent's group, such as a scheduler's, are meant for the parent alone.
    os.setsid()
    os.nice(NICENESS)
    jax.config.update('jax_platforms', 'cpu')

    def exit_with_parent() -> None:
        # A parent that is killed doesn't end its daemons.
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    # After an error no file is there, so the parent searches too and tells the error.
    with contextlib.suppress(Exception):
        bank.bank(candidates, folder)


class Banks:
    """The banks of a split: `banks(epoch)` is that epoch's. To be used by the main thread of every process.

    With a `folder`, which several processes need and must share, process 0 saves banks there, the others read them, and
    banks can be searched ahead. Raises UserError if processes disagree.
    """

    def __init__(
        self, config: NCAConfig, seed: int, split: str, folder: Path | None, epochs: int, progress: Progress = silent
    ):
        # Called with an epoch.
        self._candidates = functools.partial(score.Candidates, config, seed, rules_split(config, split))
        self._folder, self._epochs, self._progress = folder, epochs, progress
        # By epoch; None where the bank was saved before.
        self._searches: dict[int, BaseProcess | None] = {}
        # A batch may hold sequences of two epochs.
        self._bank = functools.lru_cache(maxsize=2)(self._get)

    def __call__(self, epoch: int) -> bank.Bank:
        return self._bank(epoch)

    def search_ahead(self, epoch: int) -> None:
        """Starts to search an epoch's bank beside training, unless that is done, under way or not needed."""
        if not distributed.is_first() or self._folder is None or epoch >= self._epochs or epoch in self._searches:
            return
        saved = bank.bank_path(self._candidates(epoch), self._folder).exists()
        self._searches[epoch] = None if saved else start_search(self._candidates(epoch), self._folder)

    def _get(self, epoch: int) -> bank.Bank:
        if search := self._searches.pop(epoch, None):
            search.join()
        candidates = self._candidates(epoch)
        result = distributed.first(lambda: bank.bank(candidates, self._folder, self._progress))
        if jax.process_count() > 1:
            distributed.agree(result.hash, f'{candidates.split} rules of epoch {epoch}')
        return result


def make_stream(
    config: NCAConfig, seed: int, split: str, batch: int, length: int, sharding: NamedSharding, banks: Banks
) -> Callable[[int], Batch]:
    """`stream(step) -> Batch` of `batch` sequences, sharded over axis 0 as `sharding` says.

    Row r of step s is sequence n = s * batch + r, with its own rollout key and the rule n modulo `rules_per_epoch` of
    its epoch's bank.
    """
    root = functools.cache(jax.jit(lambda: keys.key(seed), out_shardings=NamedSharding(sharding.mesh, PartitionSpec())))
    sequences = make_sequences(config, length + 1, split, sharding)
    cut = jax.jit(functools.partial(to_batch, first_loss_at=config.first_loss_at), out_shardings=sharding)
    per_epoch = config.rules_per_epoch * config.trajectories_per_rule

    def stream(step: int) -> Batch:
        number_B = step * batch + np.arange(batch)
        epoch_B = number_B // per_epoch if config.fresh_rules else np.zeros(batch, int)
        entry_B = number_B % per_epoch % config.rules_per_epoch
        index_B = [banks(int(epoch)).index_R[entry] for epoch, entry in zip(epoch_B, entry_B, strict=True)]
        # Rules are found while the device trains, so that the next epoch needn't wait for them.
        banks.search_ahead(int(epoch_B[-1]) + 1)
        names_Bx3 = np.stack([epoch_B, index_B, number_B], 1).astype(np.uint32)
        # These few integers are all that a batch transfers.
        with jax.transfer_guard_host_to_device('allow'):
            names = jax.make_array_from_callback(names_Bx3.shape, sharding, lambda rows: names_Bx3[rows])
        return cut(sequences(root(), names))

    return stream
