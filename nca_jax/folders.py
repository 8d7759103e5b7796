"""A run's folder: one owner at a time, one config, one set of data, and the record of its beginning (run.json)."""

import contextlib
import datetime
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from nca_jax import distributed, files
from nca_jax.errors import UserError

RECORD, LOCK = 'run.json', 'lock'


def checkpoints(folder: str | pathlib.Path) -> pathlib.Path:
    """Where a run keeps its checkpoints."""
    return pathlib.Path(folder).absolute() / 'checkpoints'


def read_record(folder: str | pathlib.Path) -> dict[str, Any]:
    """The `run.json` of a run. Raises UserError where it is missing or no such record."""
    path = pathlib.Path(folder) / RECORD
    if not path.exists():
        raise UserError(f'{folder} is no run: it has no {RECORD}')
    record = files.read_json(path)
    if not {'identity', 'config'} <= record.keys():
        raise UserError(f'{path}: not the record of a run, it lacks an identity or a config')
    return record


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
