"""The table of launch/SCALING.md: what of the paper's sizes fits on slices of 16 TPU chips, by their compiler.

    python -m experiments.benchmarks.scaling --results=runs/scaling.jsonl

Compiles every point with `python -m nca_jax aot`, one in a minute on two cores (two to six where layers are written
out), and keeps its records in --results: the same command goes on from there. It needs `libtpu`.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

from nca_jax import files

ROOT = pathlib.Path(__file__).parents[2]
SLICES = {'v4': 'v4:2x2x4', 'v5e': 'v5e:4x4', 'v5p': 'v5p:2x2x4', 'v6e': 'v6e:4x4'}
CHIPS = 16
LAYERS = {'400m': 24, '600m': 36, '1b6': 24}


class Knobs(NamedTuple):
    # Sequences a chip at a time.
    rows: int
    remat: str
    # Layers written out instead of a loop over them.
    unrolled: bool = False
    # Of 16 chips; the rest are replicas.
    fsdp: int = 1


RECIPES = {
    'as published': {},
    'dropout 0': {'dropout': 0.0, 'attention': 'splash'},
}
ALIKE = {chip: [Knobs(8, 'full')] for chip in SLICES}
POINTS = {
    ('400m', 'as published'): ALIKE,
    ('600m', 'as published'): ALIKE,
    ('1b6', 'as published'): {
        'v4': [Knobs(8, 'full')],
        'v5e': [Knobs(8, 'full', fsdp=4), Knobs(8, 'full', fsdp=2)],
        'v5p': [Knobs(8, 'full'), Knobs(8, 'projections')],
        'v6e': [Knobs(8, 'full'), Knobs(4, 'projections')],
    },
    ('400m', 'dropout 0'): {
        'v4': [Knobs(8, 'projections')],
        'v5e': [Knobs(4, 'projections')],
        'v5p': [Knobs(16, 'none')],
        'v6e': [Knobs(8, 'projections')],
    },
    ('600m', 'dropout 0'): {
        'v4': [Knobs(4, 'projections')],
        'v5e': [Knobs(4, 'projections')],
        'v5p': [Knobs(16, 'none')],
        'v6e': [Knobs(8, 'projections')],
    },
    ('1b6', 'dropout 0'): {
        'v4': [Knobs(4, 'projections')],
        'v5e': [
            Knobs(4, 'projections', fsdp=4),
            Knobs(4, 'projections', unrolled=True, fsdp=4),
            Knobs(8, 'full', fsdp=2),
        ],
        'v5p': [Knobs(8, 'full'), Knobs(8, 'projections'), Knobs(8, 'none', unrolled=True)],
        'v6e': [Knobs(8, 'full'), Knobs(4, 'projections'), Knobs(4, 'projections', unrolled=True)],
    },
}


def flags(size: str, chip: str, recipe: str, knobs: Knobs) -> list[str]:
    """The compilation of one point: a step of 512 sequences of the paper's second stage."""
    model = {'remat': knobs.remat, 'unroll': LAYERS[size] if knobs.unrolled else 1, **RECIPES[recipe]}
    changes = {f'model.{name}': value for name, value in model.items()}
    changes['train.accumulate'] = 512 // CHIPS // knobs.rows
    changes |= {'mesh.fsdp': knobs.fsdp, 'mesh.shard_optimizer': True}
    experiment = f'--config=experiments/language.py:size={size},corpus=openwebtext'
    words = [experiment, f'--topology={SLICES[chip]}', '--step-only', '--json']
    return [*words, *(f'--config.{name}={value}' for name, value in changes.items())]


def compiled(argv: list[str], results: pathlib.Path) -> dict:
    """`aot`'s record of one point, from the file or, with a line on stderr, from a compilation that is added to it."""
    for kept in files.read_records(results):
        if kept['flags'] == argv:
            return kept['record']
    print(' '.join(argv), file=sys.stderr, flush=True)
    command = [sys.executable, '-m', 'nca_jax', 'aot', *argv]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode > 1 or not done.stdout:
        sys.exit(f'error: aot ended with {done.returncode}')
    record = json.loads(done.stdout.splitlines()[-1])
    files.cut_partial_line(results)
    with results.open('a') as file:
        file.write(json.dumps({'flags': argv, 'record': record}) + '\n')
    return record


def line(size: str, chip: str, recipe: str, knobs: Knobs, record: dict) -> str:
    """A row of the table, in Markdown."""
    mesh = f'{record["mesh"]["data"]} x {record["mesh"]["fsdp"]}'
    pieces = f'{record["sequences_per_chip"]} x {record["accumulate"]}'
    needed = f'{record["hbm_bytes"] / 2**30:.1f}' if record['fits'] else 'does not fit'
    limit = f'{record["hbm_limit"] / 2**30:.1f}'
    remat = record['remat'] + (', written out' if knobs.unrolled else '')
    return f'| {" | ".join((size, chip, recipe, mesh, pieces, remat, needed, limit))} |'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', type=pathlib.Path, required=True, help='file of records, read and added to')
    results = parser.parse_args().results
    lines = []
    for (size, recipe), by_chip in POINTS.items():
        for chip, choices in by_chip.items():
            for knobs in choices:
                record = compiled(flags(size, chip, recipe, knobs), results)
                lines.append(line(size, chip, recipe, knobs, record))
    print('| size | chip | recipe | data x fsdp | sequences a chip x pieces | remat | GiB | of GiB |')
    print('|---' * 8 + '|')
    print('\n'.join(sorted(lines)))


if __name__ == '__main__':
    main()
