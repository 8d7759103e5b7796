"""What `show` and `calibrate` share: flags, the experiment, and where results go."""

import argparse
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nca_jax import cli, files, progress
from nca_jax.errors import UserError, check
from nca_jax.report import tables

EXPERIMENT = 'experiments/nca_pretrain.py'

# `(config, args, progress) -> (record, pictures by file name, text)`.
Work = Callable[..., tuple[dict[str, Any], dict[str, bytes], str]]


def add_flags(parser: argparse.ArgumentParser, folder: str) -> None:
    cli.add_config(parser, EXPERIMENT)
    parser.add_argument('--seed', type=int, help="another seed than the experiment's")
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path(folder), help=f'folder for files ({folder})')
    parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')


def run(args: argparse.Namespace, work: Work, record_file: str) -> None:
    """Writes what `work` returns into --out, the record as JSON, and prints the text or, with --json, the record."""
    from nca_jax import experiment  # here, since it imports JAX

    values = experiment.load_values(args.config, args.changes)
    stage = values.get('stage')
    check(stage == 'nca', '--config', args.config, f"must be an experiment of stage 'nca', not {stage!r}")
    if args.seed is not None:
        values['seed'] = args.seed
    config = experiment.from_dict(values)
    files.make_folder(args.out, '--out')
    with progress.bars() as show_progress:
        record, contents, text = work(config, args, show_progress)
    paths = [str(args.out / name) for name in (*contents, record_file)]
    printed = json.dumps(record | {'files': paths}, allow_nan=False)
    contents[record_file] = printed + '\n'
    for name, content in contents.items():
        try:
            files.write(args.out / name, content)
        except IsADirectoryError as error:
            raise UserError(f'{args.out / name}: {error.strerror}') from None
    text = printed if args.json else '\n'.join([text, '', *paths])
    # A path may hold bytes that are no text.
    print(text.encode(errors='backslashreplace').decode())


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """The record as JSON holds it: lists for arrays, null for NaN and infinity."""
    text = json.dumps(record, default=lambda value: value.tolist())
    return json.loads(text, parse_constant=lambda name: None)


def table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of plain records, one a column: their single numbers and quantiles, by the names that JSON has."""
    flat = {heading: dict(flatten(record, '')) for heading, record in columns.items()}
    names = dict.fromkeys(name for column in flat.values() for name in column)
    return tables.table(
        [{'': name} | {heading: column.get(name, '-') for heading, column in flat.items()} for name in names]
    )


def flatten(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in record.items():
        words = prefix + name.replace('_', ' ')
        if isinstance(value, dict):
            yield from flatten(value, f'{words}, ')
        elif not isinstance(value, list):
            yield words, cell(value)
        # Longer lists are arrays.
        elif len(value) <= 3 and not any(isinstance(entry, list) for entry in value):
            yield words, ' / '.join(map(cell, value))


def cell(value: Any) -> str:
    if value is None or isinstance(value, float):
        return tables.number(value)
    return f'{value:,}' if isinstance(value, int) else value
