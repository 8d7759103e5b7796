"""Batches of automata: token sequences, each a fresh trajectory of an accepted rule."""

import dataclasses
import functools
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nca_jax import distributed, keys
from nca_jax.batch import Batch, to_batch
from nca_jax.nca import bank, patches, score
from nca_jax.nca.automaton import rollout
from nca_jax.nca.config import NCAConfig
from nca_jax.progress import Progress, silent


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


def start_search(candidates: score.Candidates, folder: Path) -> subprocess.Popen:
    """Starts a process that does what `bank.bank` does, on the CPU at low priority, and leaves the bank in its file.

    It ends when this process ends or drops the result.
    """
    child = subprocess.Popen(
        [sys.executable, '-m', 'nca_jax.nca.stream'],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # After an error this process finds no file, searches itself, and shows the error.
        stderr=subprocess.DEVNULL,
        # Signals to this process's group, such as a scheduler's, are meant for this process alone.
        start_new_session=True,
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    pickle.dump((candidates, folder.absolute()), child.stdin)
    # The pipe stays open: its end tells the child that nobody waits for it.
    child.stdin.flush()
    return child


class Banks:
    """The banks of a split: `banks(epoch)` is that epoch's. To be used by the main thread of every process.

    With a `folder`, which several processes need and must share, process 0 saves banks there, the others read them, and
    the bank of the next epoch is searched ahead. Raises UserError if processes disagree.
    """

    def __init__(
        self, config: NCAConfig, seed: int, split: str, folder: Path | None, epochs: int, progress: Progress = silent
    ):
        # Called with an epoch.
        self._candidates = functools.partial(score.Candidates, config, seed, rules_split(config, split))
        self._folder, self._epochs, self._progress = folder, epochs, progress
        # The processes that search an epoch's bank.
        self._searches: dict[int, subprocess.Popen] = {}
        # A batch may hold sequences of two epochs.
        self._bank = functools.lru_cache(maxsize=2)(self._get)

    def __call__(self, epoch: int) -> bank.Bank:
        return self._bank(epoch)

    def _get(self, epoch: int) -> bank.Bank:
        if search := self._searches.pop(epoch, None):
            search.wait()
        candidates, following = self._candidates(epoch), self._candidates(epoch + 1)
        result = distributed.first(lambda: bank.bank(candidates, self._folder, self._progress))
        if jax.process_count() > 1:
            distributed.agree(result.hash, f'{candidates.split} rules of epoch {epoch}')
        # The next bank is searched while the device trains on this one.
        ahead = distributed.is_first() and self._folder is not None and following.epoch < self._epochs
        if ahead and following.epoch not in self._searches and not bank.bank_path(following, self._folder).exists():
            self._searches[following.epoch] = start_search(following, self._folder)
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
        names_Bx3 = np.stack([epoch_B, index_B, number_B], 1).astype(np.uint32)
        # These few integers are all that a batch transfers.
        with jax.transfer_guard_host_to_device('allow'):
            names = jax.make_array_from_callback(names_Bx3.shape, sharding, lambda rows: names_Bx3[rows])
        return cut(sequences(root(), names))

    return stream


# The child of `start_search`.
if __name__ == '__main__':

    def exit_with_parent() -> None:
        # Returns when the parent's end of the pipe is closed.
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    # Leaves the cores to training.
    os.nice(10)
    candidates, folder = pickle.load(sys.stdin.buffer)
    threading.Thread(target=exit_with_parent, daemon=True).start()
    bank.bank(candidates, folder)
