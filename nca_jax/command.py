"""What the commands that look at automata share: an experiment, a folder, and a table or one JSON object."""

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from nca_jax import cli, experiment
from nca_jax.config import Config
from nca_jax.errors import UserError, check
from nca_jax.progress import Progress, bars

EXPERIMENT = 'experiments/nca_pretrain.py'


@dataclasses.dataclass(frozen=True)
class Result:
    """record: what --json prints and the last file holds; files: the others, by name; text: for people."""

    record: dict[str, Any]
    files: dict[str, bytes]
    text: str


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[Config, argparse.Namespace, Progress], Result],
    record_file: str,
    argv: Sequence[str] | None,
) -> int:
    """Parses, works, writes the files into --out and prints: exit code 0, or 2 and one line for bad input.

    Adds --config, --seed, --out and --json to the parser; `args.changes` are the --config.a.b=c. The printed record
    names the files; bars go to stderr.
    """
    default = pathlib.Path('runs', parser.prog.rpartition('.')[2])
    parser.add_argument(
        '--config',
        default=EXPERIMENT,
        metavar='FILE[:WORDS]',
        help=f'an experiment of stage nca ({EXPERIMENT}); --config.a.b=c changes one field',
    )
    parser.add_argument('--seed', type=int, help="another seed than the experiment's")
    parser.add_argument('--out', type=pathlib.Path, default=default, help=f'folder ({default})')
    parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')
    args, args.changes = parser.parse_known_args(argv)
    try:
        config = load(args.config, args.changes, args.seed)
        prepare(args.out)
        with bars() as progress:
            result = work(config, args, progress)
        paths = [str(args.out / name) for name in (*result.files, record_file)]
        printed = json.dumps(result.record | {'files': paths}, allow_nan=False)
        write(args.out, result.files | {record_file: printed.encode() + b'\n'})
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    text = printed if args.json else '\n'.join([result.text, '', *paths])
    print(text.encode(errors='backslashreplace').decode())
    return 0


def load(chosen: str, changes: Sequence[str], seed: int | None) -> Config:
    """The experiment with its changes. UserError unless it is of stage 'nca'."""
    values = experiment.load_values(chosen, cli.split_changes(changes)[1])
    if seed is not None:
        values['seed'] = seed
    stage = values.get('stage')
    check(stage == 'nca', '--config', chosen, f"must be an experiment of stage 'nca', not {stage!r}")
    return experiment.from_dict(values)


def prepare(out: pathlib.Path) -> None:
    """Makes the folder, and proves before any work that files can be written into it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UserError(f'--out={out}: {error.strerror}') from None


def write(out: pathlib.Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        try:
            (out / name).write_bytes(content)
        except OSError as error:
            raise UserError(f'{out / name}: {error.strerror}') from None
