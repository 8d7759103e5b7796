"""Flags, loading, tables and files for `show` and `calibrate`."""

import argparse
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from nca_jax import cli, files
from nca_jax.errors import check
from nca_jax.report import tables


def add_flags(parser: argparse.ArgumentParser, folder: str) -> None:
    cli.add_config(parser, 'experiments/nca_pretrain.py')
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path(folder), help=f'folder for files ({folder})')
    parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')


def load(args: argparse.Namespace):
    """The Config of an experiment on automata. Makes the folder --out."""
    # Here, since it imports JAX, which --help does without.
    from nca_jax import experiment

    config = experiment.load(args.config, args.changes)
    check(config.stage == 'nca', '--config', args.config, f"must be an experiment of stage 'nca', not {config.stage!r}")
    # Before the work, which takes a minute and would be lost.
    files.make_folder(args.out, '--out')
    return config


def save(
    args: argparse.Namespace, name: str, record: dict[str, Any], pictures: dict[str, bytes], report: Callable
) -> None:
    """Writes the pictures and the record into --out; prints `report(record)` or, with --json, the record.

    JSON holds lists for arrays and null for NaN and infinity; `report` sees the same.
    """
    text = json.dumps(record, default=lambda value: value.tolist())
    plain = json.loads(text, parse_constant=lambda name: None)
    printed = json.dumps(plain, allow_nan=False)
    # The record comes last: where it lies, all is there.
    contents = pictures | {name: printed + '\n'}
    for file, content in contents.items():
        files.write(args.out / file, content)
    print(printed if args.json else '\n'.join([report(plain), '', *(str(args.out / file) for file in contents)]))


def table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of plain records, one a column: their numbers and quantiles, without longer lists."""
    # In the order of the first column; what only later columns have comes last.
    names = {
        name: None
        for record in columns.values()
        for name, value in record.items()
        if not isinstance(value, list) or name.endswith(('quantiles', 'quartiles'))
    }
    rows = [
        {'': name.replace('_', ' ')} | {heading: cell(record.get(name)) for heading, record in columns.items()}
        for name in names
    ]
    return tables.table(rows)


def cell(value: float | list[float] | None) -> str:
    if isinstance(value, list):
        return ' / '.join(map(tables.number, value))
    # Integers are counts.
    return f'{value:,}' if isinstance(value, int) else tables.number(value)
