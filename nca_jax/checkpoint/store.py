"""Where a run's checkpoints live: `<folder>/<step>/` holds the state (Orbax) and its manifest (JSON), in one commit.

Orbax never loses a committed step, but restores a flipped bit silently, casts a dtype silently and does not fall back
to an older step. So every restore is checked leaf by leaf against the manifest, and damage sends it one step back.
"""

import functools
import inspect
import itertools
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import flax.traverse_util
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from nca_jax import distributed, trees
from nca_jax.checkpoint import manifest as manifest_lib
from nca_jax.errors import UserError, check

ORBAX = os.path.dirname(ocp.__file__)
ORBAX_DETAILS = ' See full TensorStore details'  # pages follow it in a message
T = TypeVar('T')


class _Manager(ocp.CheckpointManager):
    """Orbax's own, which doesn't ask JAX whether to stop: the loop does, and only one may."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Store:
    """The checkpoints of one run. Owns the thread that writes them, so it must be closed; or use it as a context.

    The newest `keep` stay, and the `named` steps for good. When to save is the training loop's to decide.
    """

    def __init__(self, folder: epath.PathLike, keep: int, named: Iterable[int] = ()):
        check(keep >= 1, 'keep', keep, 'at least 1 checkpoint must stay')
        self.folder = _absolute(folder)
        policies = ocp.checkpoint_managers
        kept = policies.AnyPreservationPolicy([policies.LatestN(keep), policies.CustomSteps(sorted(named))])
        options = ocp.CheckpointManagerOptions(preservation_policy=kept, cleanup_tmp_directories=True)
        self._manager = _Manager(self.folder, options=options)

    def __enter__(self) -> 'Store':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps that are stored or being written, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: trees.Tree, manifest: Mapping[str, Any], wait: bool = False
    ) -> dict[str, Any] | None:
        """Starts writing the state and returns its completed manifest, or None when the step is stored already.

        `manifest` is JSON-able and holds no clock times. Returns as soon as the state is copied to the host, so its
        buffers may be donated; with `wait`, when it is committed. Raises what an earlier write failed with.
        """
        complete = None
        if step not in self._manager.all_steps():
            complete = manifest_lib.complete(manifest, step, state)
            items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), manifest=ocp.args.JsonSave(complete))
            with jax.transfer_guard('allow'):  # this copy to the host is meant, whatever guard the loop runs under
                self._manager.save(step, args=items, force=True)
        if wait:
            self.wait()
        return complete

    def restore(self, abstract: trees.Tree) -> tuple[trees.Tree, dict[str, Any]] | None:
        """State and manifest of the newest valid checkpoint, or None when there is no checkpoint at all.

        `abstract` carries the structure and every leaf's shape, dtype and sharding. Damaged checkpoints are named in a
        warning and, once a valid one is found, renamed to `<step>.damaged`, so that training can write the step anew.
        Raises UserError when all are damaged: a run never starts from scratch over its own remains.
        """
        self.wait()
        found = _newest(self.folder, self.steps(), lambda path: _load(path, abstract, partial=False))
        if found is None:
            return None
        (state, manifest), damaged = found
        self._set_aside(damaged)
        return state, manifest

    def wait(self) -> None:
        """Returns when everything is committed; raises what a write failed with."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        """Waits, then ends the writer."""
        self._manager.close()

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Renames damaged checkpoints to the first free one of `<step>.damaged`, `<step>.damaged-1`, ..."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                names = (f'{step}.damaged' + (f'-{again}' if again else '') for again in itertools.count())
                free = next(name for name in names if not (self.folder / name).exists())
                (self.folder / str(step)).rename(self.folder / free)
        multihost_utils.sync_global_devices('damaged checkpoints are set aside')
        self._manager.reload()


def committed(folder: epath.PathLike) -> list[int]:
    """The steps that Orbax committed to another run's folder, ascending. UserError when there is no such folder."""
    folder = _absolute(folder)
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder of checkpoints')
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(folder))


def read_manifest(folder: epath.PathLike, step: int | None = None) -> dict[str, Any]:
    """The manifest of a step, or of the newest that can be read. Nothing is written, and no array is read."""
    return _first(folder, step, _read_manifest)[0]


def saved_params(
    manifest: Mapping[str, Any], shardings: trees.Tree | None = None, weights: str = 'params'
) -> dict[str, jax.ShapeDtypeStruct]:
    """What parameters a checkpoint holds, `{path: shape struct}`; with the sharding of that path where one is given.

    `weights` is the subtree of the state: 'params', or 'ema', their average, of which there may be none.
    """
    layout, prefix = {} if shardings is None else trees.flatten(shardings), f'{weights}/'
    rows = {row['path'].removeprefix(prefix): row for row in manifest['leaves'] if row['path'].startswith(prefix)}
    return {
        path: jax.ShapeDtypeStruct(tuple(row['shape']), jnp.dtype(row['dtype']), sharding=layout.get(path))
        for path, row in rows.items()
    }


def restore_params(
    folder: epath.PathLike, step: int | None, paths: Collection[str], abstract: trees.Tree, weights: str = 'params'
) -> tuple[trees.Tree, dict[str, Any]]:
    """The parameters at `paths` as a nested dict, and the manifest; no other leaf is read. For `weights` see above.

    With `step` None the newest checkpoint in which these leaves are valid is taken, and newer ones are named in a
    warning. `abstract`, nested or by path, has the saved shape, the dtype and the sharding of at least these leaves.
    Raises UserError, naming the folder, when there is no folder, no such step or no valid checkpoint.
    """
    leaves = {path: leaf for path, leaf in trees.flatten(abstract).items() if path in paths}
    if len(leaves) != len(paths):
        raise KeyError(f'abstract lacks {sorted(set(paths) - set(leaves))}')
    if not leaves:
        return {}, read_manifest(folder, step)
    wanted = {weights: flax.traverse_util.unflatten_dict(leaves, sep='/')}
    (tree, manifest), _ = _first(folder, step, lambda path: _load(path, wanted, partial=True))
    return tree[weights], manifest


def _absolute(folder: epath.PathLike) -> epath.Path:
    """Orbax takes no relative path. A bucket's address is absolute, and `resolve` would mistake it for a file's."""
    path = epath.Path(folder)
    return path if path.is_absolute() else path.resolve()


def _first(folder: epath.PathLike, step: int | None, read: Callable[[epath.Path], T]) -> tuple[T, list[int]]:
    """`_newest` over a parent's folder, or over one step of it."""
    folder, steps = _absolute(folder), committed(folder)
    if step is not None and step not in steps:
        raise UserError(f'{folder}: no checkpoint of step {step}; there are {steps}')
    if step is not None:
        result, trouble = _attempt(read, folder / str(step))
        if trouble is not None:
            raise UserError(f'{folder}: step {step}: {trouble}; there are {steps}')
        return result, []
    found = _newest(folder, steps, read)
    if found is None:
        raise UserError(f'{folder}: no valid checkpoint; there is none at all')
    return found


def _newest(folder: epath.Path, steps: Iterable[int], read: Callable[[epath.Path], T]) -> tuple[T, list[int]] | None:
    """What `read` makes of the newest step that it can read, and the steps that it could not; None without steps."""
    damaged: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        result, trouble = _attempt(read, folder / str(step))
        if trouble is not None:
            damaged[step] = f'step {step}: {trouble}'
            continue
        if damaged:
            logging.warning('%s: going back to step %d, since %s', folder, step, '; '.join(damaged.values()))
        return result, list(damaged)
    if damaged:
        raise UserError(f'{folder}: no valid checkpoint; ' + '; '.join(damaged.values()))
    return None


def _attempt(read: Callable[[epath.Path], T], path: epath.Path) -> tuple[T | None, str | None]:
    """What `read` returns, and None; or None, and in one line why the checkpoint can't be read."""
    _ignore_abandoned_reads()
    try:
        return read(path), None
    except Exception as error:  # nothing narrower will do: of a truncated array Orbax raises just that
        if _is_of_the_machine(error):
            raise
        line = ' '.join(str(error).partition(ORBAX_DETAILS)[0].split())
        return None, line[:200] or type(error).__name__


def _is_of_the_machine(error: Exception) -> bool:
    """Whether it's the machine's trouble and not the file's, which may be whole if it can't be read just now."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError | NotADirectoryError)
    return isinstance(error, MemoryError | jax.errors.JaxRuntimeError | distributed.MachineError)


def _ignore_abandoned_reads() -> None:
    """Keeps Python from printing a page on every read that Orbax gave up because another one had failed.

    The pages come when TensorStore's threads let go of those reads, which may be long after: so the filter stays.
    """
    hook = sys.unraisablehook
    if getattr(hook, 'func', None) is not _unless_abandoned:
        sys.unraisablehook = functools.partial(_unless_abandoned, hook)


def _unless_abandoned(hook: Callable[[Any], object], event: Any) -> None:
    abandoned = inspect.iscoroutine(event.object) and event.object.cr_code.co_filename.startswith(ORBAX)
    late = event.object is None and str(event.exc_value) == 'Event loop is closed'  # a read that ended after its loop
    if not (abandoned or late):
        hook(event)


def _read_manifest(path: epath.Path) -> dict[str, Any]:
    manifest = json.loads((path / 'manifest' / 'metadata').read_text())
    if not isinstance(manifest, dict) or manifest.get('step') != int(path.name) or 'leaves' not in manifest:
        raise ValueError('its manifest is not one of this step')
    return manifest


def _load(path: epath.Path, abstract: trees.Tree, partial: bool) -> tuple[trees.Tree, dict[str, Any]]:
    """The abstract tree's leaves and the manifest; ValueError unless all agree with what the manifest says."""
    tree, manifest = distributed.on_all(lambda: _read(path, abstract, partial), _is_of_the_machine)
    saved = {row['path']: row for row in manifest['leaves']}
    for row in manifest_lib.leaf_table(tree):
        if row['checksum'] != saved[row['path']]['checksum']:
            raise ValueError(f'{row["path"]} is damaged: its checksum is wrong')
    return tree, manifest


def _read(path: epath.Path, abstract: trees.Tree, partial: bool) -> tuple[trees.Tree, dict[str, Any]]:
    """This process's shards of `_load`, before their checksums are compared."""
    manifest = _read_manifest(path)
    saved = {row['path']: row for row in manifest['leaves']}
    asked = {row['path']: row for row in trees.table(abstract)}
    if strange := asked.keys() - saved.keys() or (set() if partial else saved.keys() - asked.keys()):
        raise ValueError(f'{min(strange)} is {"not in it" if min(strange) in asked else "not expected in it"}')
    for name, row in asked.items():
        for field in ('shape', 'dtype'):
            if row[field] != saved[name][field]:
                raise ValueError(f'{name} has {field} {saved[name][field]} in it, not {row[field]}')
    layout = ocp.checkpoint_utils.construct_restore_args(abstract)
    request = ocp.args.PyTreeRestore(item=abstract, restore_args=layout, partial_restore=partial)
    # Without a Checkpointer, at whose barrier the others would wait for one process that finds its shards damaged.
    return ocp.PyTreeCheckpointHandler().restore(path / 'state', args=request), manifest
