"""Trains one stage: `python -m nca_jax.main --config=experiments/FILE.py[:words] --workdir=DIR [--config.a.b=c]`.

    python -m nca_jax.main --config=experiments/nca_pretrain.py:size=10m,band=50+ --workdir=runs/nca
    python -m nca_jax.main --config=experiments/language.py:size=10m,parent=runs/nca --workdir=runs/code
    python -m nca_jax.main --config=experiments/nca_pretrain.py:smoke --workdir=runs/try   # a minute on a CPU

Each file in experiments/ says at its top what it is for, and in get_config which words it knows; a wrong word or field
is answered with those that are allowed. The same command resumes a run that stopped. Exit codes: 0 done, 1 stopped by a
loss that isn't finite, 2 bad input (one line says what), 75 stopped by SIGTERM with everything saved: start it again.

Several processes, on one machine or many, make one run: each is this command, and nca_jax/distributed.py says by which
variables they find each other. The folder of the run must be one that all of them see.
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from nca_jax import config as configs
from nca_jax import distributed, files, run, trees
from nca_jax import mesh as meshes
from nca_jax.checkpoint.manifest import environment
from nca_jax.checkpoint.store import Store
from nca_jax.config import Config
from nca_jax.errors import NotFiniteError, UserError
from nca_jax.model.config import step_flops
from nca_jax.nca.examples import write_examples
from nca_jax.progress import bars, silent
from nca_jax.train import loop, tracking
from nca_jax.train.metrics import MetricWriter, SilentWriter, evaluated
from nca_jax.train.profiler import Profiler, updates

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'An experiment, e.g. experiments/nca_pretrain.py:size=10m,smoke; --config.a.b=c changes one field.'
)
WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of this run: metrics, checkpoints, and what a report reads.')
BEFORE_RECORD = {
    'lock',
    'rules',
    'text',
    'problems',
    'tokenizer.json',
    'answers',
    'checkpoints',
}  # what a run makes before its run.json


def main() -> None:
    """The command line. Bad input ends it with one line and exit code 2, before any training."""
    logging.set_verbosity(logging.WARNING)
    flags.mark_flags_as_required(['config', 'workdir'])
    app.run(lambda argv: exit_on_user_error(train_from_flags, argv), flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's flag parsing, with mistakes in flags, words and fields told in one line."""
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, ValueError, AttributeError, KeyError, TypeError) as error:
        # What an experiment file raises arrives as a whole traceback, of which the last line says what is wrong.
        unknown = error.args[0] if error.args and isinstance(error.args[0], KeyError) else None  # a field's name
        said = str(error if unknown is None else unknown.args[0])
        sys.exit(fail(said.strip().splitlines()[-1].removeprefix('ValueError: ')))
    file = (config_flags.get_config_filename(flags.FLAGS['config']) or '').partition(':')[0]
    if file and not os.path.isfile(file):  # ml_collections would tell only when the config is first touched
        sys.exit(fail(f'--config={file}: no such file'))
    return rest


def exit_on_user_error(command, *args) -> None:
    """Runs `command`; a UserError or a loss that isn't finite becomes one line on stderr and a nonzero exit."""
    try:
        command(*args)
    except UserError as error:
        distributed.leave(fail(str(error)))
    except NotFiniteError as error:
        print(f'stopped: {error}', file=sys.stderr)
        distributed.leave(1)


def fail(line: str) -> int:
    print(f'error: {line}', file=sys.stderr)
    return 2


def train_from_flags(argv: list[str]) -> None:
    if argv[1:]:
        raise UserError(f'unexpected argument {argv[1]!r}; see --help')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(loop.EXIT_PREEMPTED))  # there is nothing to save yet
    distributed.initialise()
    preemption = loop.Preemption()
    config = configs.resolve(CONFIG.value)
    train(config, pathlib.Path(WORKDIR.value), preemption)


def train(config: Config, folder: pathlib.Path, preemption: loop.Preemption) -> None:
    """One run in one folder, from wherever it stands to its end."""
    start = time.perf_counter()
    tracking.check_installed(config.track)
    mesh = meshes.make_mesh(config.mesh)
    run.check_fit(config, mesh)
    parent = run.parent_manifest(config.init_from)
    run.check_parent(config, parent)
    identity = configs.identity(config, parent)
    distributed.agree(identity, 'the config')
    with owned(folder, identity):
        data_start = time.perf_counter()
        with bars() if distributed.is_first() else contextlib.nullcontext(silent) as progress:
            program = run.build(config, mesh, folder, progress)
        distributed.agree(json.dumps(program.data, sort_keys=True), 'the data')
        check_data(folder, program.data)
        data_seconds = time.perf_counter() - data_start
        keep = {'keep': config.train.keep_last, 'named': program.plan.keep}
        with Store(run.checkpoints(folder), **keep) as store, meshes.use(mesh):
            state, lineage = run.start(program, store, parent, print if distributed.is_first() else lambda line: None)
            about = describe(config, program, identity, lineage)
            known = distributed.first(lambda: evaluated(folder, int(state.step)))
            writer = open_writer(config, program, folder, about, int(state.step))
            profiler = Profiler(updates(config.profile), folder / 'profile', print)
            try:
                loop.train(
                    state,
                    plan=program.plan,
                    train_step=program.train_step,
                    stream=program.stream,
                    evaluators=program.evaluators,
                    schedule=program.schedule,
                    flops=step_flops(config.model, program.vocab, config.train.batch),
                    store=store,
                    manifest=lambda step: about | {'tokens': step * program.plan.tokens_per_step},
                    writer=writer,
                    profiler=profiler,
                    preemption=preemption,
                    before={'prepare': time.perf_counter() - start - data_seconds, 'data': data_seconds},
                    evaluated=known,
                )
            finally:
                profiler.close()
                writer.close()


def open_writer(
    config: Config, program: run.Program, folder: pathlib.Path, about: dict[str, Any], step: int
) -> MetricWriter | SilentWriter:
    """Writes what a run says once, at its beginning, and opens what it says on its way: process 0 does both alone."""
    if not distributed.is_first():
        return SilentWriter()
    write_record(folder, about)
    if config.stage == 'nca':
        write_examples(config.data, config.seed, folder)
    title = f'{config.name}/{config.arm}/{config.seed}'
    tracker = tracking.make_tracker(config.track, about, folder, print)
    return MetricWriter(folder, step, program.plan.stop, title, tracker)


def describe(config: Config, program: run.Program, identity: str, lineage: dict | None) -> dict[str, Any]:
    """What run.json and every manifest of the run say about it."""
    return {
        'name': config.name,
        'arm': config.arm,
        'stage': config.stage,
        'seed': config.seed,
        'identity': identity,
        'config': configs.to_dict(config),
        'parent': lineage,
        'data': program.data,
        'vocab_size': program.vocab.size,
        'parameters': trees.count(program.abstract.params),
        'tokens_per_step': program.plan.tokens_per_step,
        'stop': program.plan.stop,
        **environment(),
    }


def write_record(folder: pathlib.Path, about: dict[str, Any]) -> None:
    """run.json, once: a resumed run keeps the record of its beginning."""
    path = folder / 'run.json'
    if not path.exists():
        record = about | {'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')}
        files.write(path, json.dumps(record, indent=1))


def check_data(folder: pathlib.Path, data: dict[str, Any]) -> None:
    """Raises UserError where the folder's run began with other data than this."""
    if (folder / 'run.json').exists() and (known := run.read_record(folder)['data']) != data:
        raise UserError(f'{folder}: is a run on other data {known}, which is now {data}; choose another --workdir')


@contextlib.contextmanager
def owned(folder: pathlib.Path, identity: str) -> Iterator[None]:
    """Holds the folder for this run, through its first process.

    Raises UserError, on all of its processes, if another run holds it, or if it isn't this config's.
    """
    with contextlib.ExitStack() as held:
        distributed.first(lambda: distributed.is_first() and held.enter_context(locked(folder, identity)))
        yield


@contextlib.contextmanager
def locked(folder: pathlib.Path, identity: str) -> Iterator[None]:
    """`owned` for one process."""
    try:
        if folder.exists():
            check_folder(folder, identity)
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / 'lock').open('w')
    except OSError as error:
        raise UserError(f'--workdir={folder}: {error.strerror}') from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f'{folder} is in use by another process') from None
        except OSError as error:  # a file system without locks
            raise UserError(f"--workdir={folder}: can't be locked: {error.strerror}") from None
        check_folder(folder, identity)  # again: another process may have begun a run in between
        yield


def check_folder(folder: pathlib.Path, identity: str) -> None:
    """Raises UserError for a folder that holds another config's run, or something else than a run's beginnings."""
    if not (folder / 'run.json').exists():
        foreign = sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.name not in BEFORE_RECORD and not entry.name.startswith('.run.json.')
        )
        if foreign:
            raise UserError(f'{folder} is not empty and not a run: it holds {foreign[0]}; choose another --workdir')
        return
    found = run.read_record(folder)['identity']
    if found != identity:
        raise UserError(
            f'{folder} holds the run of another config (identity {found[:12]}, this one is {identity[:12]}); '
            'choose another --workdir or restore the config'
        )


if __name__ == '__main__':
    main()
