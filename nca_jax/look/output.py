"""What `show` and `calibrate` share: flags, the experiment, and where results go."""

import argparse
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nca_jax import cli, files, progress
from nca_jax.errors import check
from nca_jax.report import tables

EXPERIMENT = 'experiments/nca_pretrain.py'

# `(config, args, progress) -> (record, pictures by file name, text)`.
Work = Callable[..., tuple[dict[str, Any], dict[str, bytes], str]]


def add_flags(parser: argparse.ArgumentParser, folder: str) -> None:
    cli.add_config(parser, EXPERIMENT)
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path(folder), help=f'folder for files ({folder})')
    parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')


def run(args: argparse.Namespace, work: Work, record_file: str) -> None:
    """Writes what `work` returns into --out, the record as JSON, and prints the text or, with --json, the record."""
    from nca_jax import experiment  # here, since it imports JAX

    config = experiment.load(args.config, args.changes)
    check(config.stage == 'nca', '--config', args.config, f"must be an experiment of stage 'nca', not {config.stage!r}")
    # Before the work, which takes a minute and would be lost.
    files.make_folder(args.out, '--out')
    with progress.bars() as show_progress:
        record, pictures, text = work(config, args, show_progress)
    paths = [str(args.out / name) for name in (*pictures, record_file)]
    printed = json.dumps(record | {'files': paths}, allow_nan=False)
    # The record comes last: where it lies, all is there.
    for name, content in (pictures | {record_file: printed + '\n'}).items():
        files.write(args.out / name, content)
    print(printed if args.json else '\n'.join([text, '', *paths]))


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """The record as JSON holds it: lists for arrays, null for NaN and infinity."""
    text = json.dumps(record, default=lambda value: value.tolist())
    return json.loads(text, parse_constant=lambda name: None)


def table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of plain records, one a column, without their longer lists."""
    cells = {heading: dict(flatten(record)) for heading, record in columns.items()}
    # In the order of the first column; what only later columns have comes last.
    names = dict.fromkeys(itertools.chain.from_iterable(cells.values()))
    return tables.table([{'': name} | {of: column.get(name, '-') for of, column in cells.items()} for name in names])


def flatten(record: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, str]]:
    """Names in words and values as text."""
    for name, value in record.items():
        words = prefix + name.replace('_', ' ')
        match value:
            case dict():
                yield from flatten(value, f'{words}, ')
            case list() if name.endswith(('quantiles', 'quartiles')):
                yield words, ' / '.join(map(tables.number, value))
            case list():
                pass
            case None | float():
                yield words, tables.number(value)
            case int():
                yield words, f'{value:,}'
            case _:
                yield words, value
