"""What `show` and `calibrate` share: flags, the experiment, and where results go."""

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any

from nca_jax import cli, files, progress
from nca_jax.errors import UserError, check

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
