"""A run's checkpoints: `<folder>/<step>/` holds the state (Orbax) and its manifest (JSON), committed together.

Orbax never loses a committed step. But it restores a flipped bit without a word, casts another dtype, and does not go
back to an older step. So each restored leaf is compared with the manifest, and damage leads to the step before.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import flax.traverse_util
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from nca_jax import distributed, trees
from nca_jax.checkpoint.manifest import leaf_table
from nca_jax.errors import UserError

Manifest = dict[str, Any]
T = TypeVar('T')


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, but it does not ask JAX whether to stop: the training loop asks, and only one may."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Store(contextlib.AbstractContextManager):
    """The checkpoints of one run, a context: it owns the thread that writes them.

    The newest `keep` stay, and the `named` steps for good. The training loop decides when to save.
    """

    def __init__(self, folder: epath.PathLike, keep: int, named: Iterable[int] = ()):
        self.folder = _absolute(folder)
        policies = ocp.checkpoint_managers
        kept = policies.AnyPreservationPolicy([policies.LatestN(keep), policies.CustomSteps(sorted(named))])
        # What a killed run left half-written goes at the next start.
        options = ocp.CheckpointManagerOptions(preservation_policy=kept, cleanup_tmp_directories=True)
        self._manager = _Manager(self.folder, options=options)

    def __exit__(self, *exception: object) -> None:
        """Waits for the write in flight."""
        self._manager.close()

    def save(self, step: int, state: trees.Tree, manifest: Mapping[str, Any], wait: bool = False) -> None:
        """Starts to write the state and the manifest, to which it adds `step` and `leaves`; skips a stored step.

        `manifest` is JSON-able and holds no clock times. Returns as soon as the state is copied to the host, so its
        buffers may be donated; with `wait`, when it is committed. Raises what an earlier write failed with.
        """
        if step not in self._manager.all_steps():
            # Checksums are of the state in memory, so that they also show what the way to the disk damages.
            content = {**manifest, 'step': step, 'leaves': leaf_table(state)}
            items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), manifest=ocp.args.JsonSave(content))
            # This copy to the host is meant, whatever guard the loop runs under.
            with jax.transfer_guard('allow'):
                # Forced: the loop has decided, and Orbax has no say in when to save.
                self._manager.save(step, args=items, force=True)
        # A stored step may still be on its way to the disk.
        if wait:
            self.wait()

    def restore(self, abstract: trees.Tree) -> tuple[trees.Tree, Manifest] | None:
        """State and manifest of the newest valid checkpoint, or None without any checkpoint.

        `abstract` carries the structure and every leaf's shape, dtype and sharding. A warning names damaged
        checkpoints, and once a valid one is found, they are renamed to `<step>.damaged`, so that training can write
        these steps again. Raises UserError when all are damaged: a run never starts from scratch over its own remains.
        """
        # A write in flight would be taken for a damaged checkpoint.
        self.wait()
        if not committed(self.folder):
            return None

        def choose(manifest: Manifest) -> trees.Tree:
            rows = trees.table(abstract), manifest['leaves']
            ours, theirs = ({row['path']: f'{row["dtype"]}{row["shape"]}' for row in side} for side in rows)
            for path in sorted(ours.keys() | theirs.keys()):
                # Orbax would cast another dtype, and would skip a leaf that only the checkpoint has.
                if ours.get(path) != theirs.get(path):
                    there, here = theirs.get(path, 'missing'), ours.get(path, 'missing')
                    raise ValueError(f'{path} is {there} in it and {here} in this run')
            return abstract

        result, damaged = _newest(self.folder, lambda path: _load(path, choose))
        if damaged:
            if distributed.is_first():
                for step in damaged:
                    # A step may have been damaged before: the first free name.
                    names = (f'{step}.damaged' + (f'-{again}' if again else '') for again in itertools.count())
                    free = next(name for name in names if not (self.folder / name).exists())
                    (self.folder / str(step)).rename(self.folder / free)
            # The others must not list the folder before it's done.
            multihost_utils.sync_global_devices('damaged checkpoints are set aside')
            self._manager.reload()
        return result

    def wait(self) -> None:
        """Returns when everything is committed; raises what a write failed with."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()


def committed(folder: epath.PathLike) -> list[int]:
    """The steps that Orbax committed to a folder, ascending. UserError if no such folder exists."""
    folder = _absolute(folder)
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder of checkpoints')
    return sorted(metadata.step for metadata in ocp.path.step.standard_name_format().find_all(folder))


def read_manifest(folder: epath.PathLike, step: int | None = None) -> Manifest:
    """The manifest of a step, or of the newest that can be read. Nothing is written, and no array is read."""
    return _newest(folder, _read_manifest, step)[0]


def saved_params(manifest: Manifest, weights: str = 'params') -> dict[str, jax.ShapeDtypeStruct]:
    """`{path: shape and dtype}` of a checkpoint's 'params', or of their average 'ema', which may have no leaf."""
    prefix = f'{weights}/'
    return {
        row['path'].removeprefix(prefix): jax.ShapeDtypeStruct(tuple(row['shape']), jnp.dtype(row['dtype']))
        for row in manifest['leaves']
        if row['path'].startswith(prefix)
    }


def restore_params(
    folder: epath.PathLike, step: int | None, shardings: trees.Tree, weights: str = 'params'
) -> tuple[trees.Tree, Manifest]:
    """The leaves of 'params' or 'ema' that `shardings` names, as a nested dict, and the manifest.

    `shardings`, nested or by path, has the sharding of each leaf to read; no other leaf is read. With `step` None the
    newest checkpoint in which these leaves are valid is taken, and a warning names newer ones. Raises UserError,
    naming the folder, when no such folder, no such step or no valid checkpoint exists.
    """
    shardings = trees.flatten(shardings)
    # Orbax reads no empty tree.
    if not shardings:
        return {}, read_manifest(folder, step)

    def choose(manifest: Manifest) -> trees.Tree:
        saved = saved_params(manifest, weights)
        if missing := shardings.keys() - saved.keys():
            raise ValueError(f'{weights}/{min(missing)} is not in it')
        leaves = {path: saved[path].update(sharding=sharding) for path, sharding in shardings.items()}
        return {weights: flax.traverse_util.unflatten_dict(leaves, sep='/')}

    (tree, manifest), _ = _newest(folder, lambda path: _load(path, choose), step)
    return tree[weights], manifest


def _absolute(folder: epath.PathLike) -> epath.Path:
    """Orbax takes no relative path. A bucket's address is absolute, and `resolve` would mistake it for a file's."""
    path = epath.Path(folder)
    return path if path.is_absolute() else path.resolve()


def _newest(folder: epath.PathLike, read: Callable[[epath.Path], T], only: int | None = None) -> tuple[T, list[int]]:
    """The result of `read` for the newest step that it can read, and the newer steps that it can't; or for step `only`.

    A warning names the damaged steps. Raises UserError if no step can be read.
    """
    folder, steps = _absolute(folder), committed(folder)
    if only is not None and only not in steps:
        raise UserError(f'{folder}: no checkpoint of step {only}; there are {steps}')
    damaged: dict[int, str] = {}
    # A named step has no substitute: its user meant these weights.
    for step in reversed(steps) if only is None else [only]:
        try:
            result = read(folder / str(step))
        # For a truncated array Orbax raises a bare Exception.
        except Exception as error:
            # A full disk or a lost process says nothing about the checkpoint, which must not be set aside for it.
            if _is_of_the_machine(error):
                raise
            # Orbax appends pages to some messages.
            line = ' '.join(str(error).split())[:200]
            damaged[step] = f'step {step}: {line or type(error).__name__}'
            continue
        if damaged:
            logging.warning('%s: going back to step %d, since %s', folder, step, '; '.join(damaged.values()))
        return result, list(damaged)
    if only is not None:
        raise UserError(f'{folder}: {damaged[only]}; there are {steps}')
    raise UserError(f'{folder}: no valid checkpoint; ' + ('; '.join(damaged.values()) or 'there is none at all'))


def _is_of_the_machine(error: Exception) -> bool:
    """Whether the machine failed, not the file: the file may be whole although it can't be read just now."""
    # A missing file is damage of the checkpoint.
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError | NotADirectoryError)
    return isinstance(error, MemoryError | jax.errors.JaxRuntimeError | distributed.MachineError)


def _read_manifest(path: epath.Path) -> Manifest:
    manifest = json.loads((path / 'manifest' / 'metadata').read_text())
    if not isinstance(manifest, dict) or manifest.get('step') != int(path.name) or 'leaves' not in manifest:
        raise ValueError('its manifest is not one of this step')
    return manifest


def _load(path: epath.Path, choose: Callable[[Manifest], trees.Tree]) -> tuple[trees.Tree, Manifest]:
    """The leaves that `choose` asks for, and the manifest; ValueError where a checksum differs."""

    def read() -> tuple[trees.Tree, Manifest]:
        manifest = _read_manifest(path)
        abstract = choose(manifest)
        request = ocp.args.PyTreeRestore(
            item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
        )
        # Not through a Checkpointer: at its barrier the others would wait for a process whose shards are damaged.
        return ocp.PyTreeCheckpointHandler().restore(path / 'state', args=request), manifest

    # The checksums are collective, so every process must have read its shards before.
    tree, manifest = distributed.on_all(read, _is_of_the_machine)
    # Orbax hands over a flipped bit without a word.
    saved = {row['path']: row['checksum'] for row in manifest['leaves']}
    for row in leaf_table(tree):
        if row['checksum'] != saved[row['path']]:
            raise ValueError(f'{row["path"]} is damaged: its checksum is wrong')
    return tree, manifest
