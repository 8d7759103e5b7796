"""The folders of runs: the one that a run owns, and its parent's, from which it takes weights."""

import contextlib
import datetime
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from nca_jax import distributed, files, trees
from nca_jax.batch import Vocab
from nca_jax.checkpoint import graft
from nca_jax.checkpoint.store import read_manifest, restore_params, saved_params
from nca_jax.config import Config, InitFrom
from nca_jax.errors import UserError, check
from nca_jax.model import transformer
from nca_jax.train.loop import Program

# The record of a run's beginning, and the lock of the process that trains it.
RECORD, LOCK = 'run.json', 'lock'


def checkpoints(folder: str | pathlib.Path) -> pathlib.Path:
    """Where a run keeps its checkpoints."""
    return pathlib.Path(folder).absolute() / 'checkpoints'


def read_record(folder: str | pathlib.Path) -> dict[str, Any]:
    """The `run.json` of a run. Raises UserError where it is missing or not JSON."""
    return files.read_json(pathlib.Path(folder) / RECORD)


def write_record(folder: pathlib.Path, about: dict[str, Any]) -> None:
    """Writes `run.json` once: a resumed run keeps the record of its beginning."""
    if not (folder / RECORD).exists():
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        files.write(folder / RECORD, json.dumps(about | {'started': started}, indent=1))


def check_data(folder: pathlib.Path, data: dict[str, Any]) -> None:
    """Raises UserError where the folder's run began with other data (hashes by name)."""
    if (folder / RECORD).exists() and (before := read_record(folder)['data']) != data:
        raise UserError(f'{folder}: is a run on other data ({before}, now {data}); choose another --workdir')


@contextlib.contextmanager
def owned(folder: pathlib.Path, identity: str) -> Iterator[None]:
    """Makes the folder and holds it for this run, through the run's first process.

    Raises UserError, on all processes, if another run holds it, or if it belongs to another config or to no run.
    """

    def busy() -> None:
        raise UserError(f'{folder} is in use by another process')

    def take() -> None:
        if not distributed.is_first():
            return
        files.make_folder(folder, '--workdir')
        # A run makes its lock first, so a folder with files and no lock is not a run's; a copied run has its record.
        foreign = sorted(entry.name for entry in folder.iterdir())
        if foreign and LOCK not in foreign and RECORD not in foreign:
            raise UserError(f'{folder} is not empty and not a run: it holds {foreign[0]}; choose another --workdir')
        held.enter_context(files.lock(folder / LOCK, busy))
        if (folder / RECORD).exists() and (owner := read_record(folder)['identity']) != identity:
            another = f'the run of another config (identity {owner[:12]}, this one is {identity[:12]})'
            raise UserError(f'{folder} holds {another}; choose another --workdir or restore the config')

    with contextlib.ExitStack() as held:
        distributed.first(take)
        yield


# The parent: the run that another one starts from.


def read_parent(init_from: InitFrom | None) -> dict[str, Any] | None:
    """The manifest of the checkpoint that a run starts from; None if it starts from scratch.

    Raises UserError where the parent is missing, has no valid checkpoint, or hasn't finished while no step is named.
    """
    if init_from is None:
        return None
    manifest = read_manifest(checkpoints(init_from.run), init_from.step)
    # A parent that is still training would give other weights at every start.
    if init_from.step is None and manifest['step'] < manifest['stop']:
        progress = f'is at step {manifest["step"]} of {manifest["stop"]}'
        raise UserError(f'{init_from.run} {progress}: finish it, or name the step in config.init_from.step')
    has_weights = bool(saved_params(manifest, weights=init_from.weights))
    allowed = f"must be 'params': {init_from.run} kept no average of them (its optimizer.ema is None)"
    check(has_weights, 'config.init_from.weights', init_from.weights, allowed)
    return manifest


def check_layers(config: Config, parent: dict[str, Any]) -> None:
    """Raises FieldError where carried layers would not fit, or would compute something else than in the parent."""
    # Paths and layers don't depend on the vocabulary, so a table of one row will do.
    plan = config.init_from.entries
    if not graft.carries_layers(plan, transformer.abstract_params(config.model, Vocab(1))):
        return
    names = ['width', 'heads', 'ffn', 'rope_theta', 'norm_eps']
    # A plan that chooses layers may carry some of them into a model of another depth.
    if not any(entry.layers for entry in plan):
        names.insert(0, 'layers')
    for name in names:
        theirs, ours = parent['config']['model'][name], getattr(config.model, name)
        allowed = f'must be {theirs}, as in {config.init_from.run}, whose layers are carried'
        check(ours == theirs, f'config.model.{name}', ours, allowed)


def carry(
    config: Config, program: Program, fresh: dict, parent: dict[str, Any], say: Callable[[str], None]
) -> tuple[dict, dict[str, Any]]:
    """`fresh` parameters with the parent's in place wherever the plan carries them, and the lineage for manifests.

    Only carried leaves are read. Raises UserError where shapes or vocabularies don't fit.
    """
    init_from, abstract = config.init_from, program.abstract.params
    saved, sizes = saved_params(parent), (parent['vocab_size'], program.data.vocab.size)
    pieces = graft.resolve(init_from.entries, saved, abstract, *sizes)
    carried = graft.carried(pieces)
    # Carried tables must stand for the same tokens, which shapes can't tell.
    tokenizers = {data['tokenizer'] for data in (parent['data'], program.data.hashes) if 'tokenizer' in data}
    if len(tokenizers) > 1 and not carried.isdisjoint(graft.VOCAB_AXIS):
        allowed = f"must be that of {init_from.run}, because its tables are carried; '' takes it"
        raise UserError(f'config.data.tokenizer: {allowed}')
    # Only these leaves are read, straight into the shards that training uses.
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    layout = {path: sharding for path, sharding in trees.flatten(shardings).items() if path in carried}
    source, _ = restore_params(checkpoints(init_from.run), parent['step'], layout, init_from.weights)
    # An average is kept in float32, and the parameters may have another dtype.
    source = trees.map_with_path(lambda path, leaf: leaf.astype(saved[path].dtype), source)
    params, report = graft.graft(source, fresh, pieces, program.data.vocab.size, shardings)
    for line in graft.lines(report):
        say(line)
    lineage = {name: parent[name] for name in ('identity', 'name', 'step', 'tokens')}
    return params, lineage | {'weights': init_from.weights, 'plan': init_from.plan, 'graft': report}
