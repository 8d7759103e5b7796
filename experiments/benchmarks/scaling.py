"""The tables of launch/SCALING.md: the paper's sizes on slices of 16 TPU chips, by estimate.

    python -m experiments.benchmarks.scaling --results=runs/scaling.jsonl

Compiles every point with `nca_jax.scale.aot`, one in a minute on two cores (two to six where layers are written out),
and keeps what it found in --results: the same command goes on from there. Needs `libtpu`. Nothing of it is measured.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

HERE = pathlib.Path(__file__).parents[2]
SLICES = {'v4': 'v4:2x2x4', 'v5e': 'v5e:4x4', 'v5p': 'v5p:2x2x4', 'v6e': 'v6e:4x4'}
CHIPS = 16
STAGES = {'NCA': 163.84e6, 'OpenWebText': 17_234 * 512 * 1024, 'OpenWebMath': 8_000 * 512 * 1024, 'CodeParrot': 12.6e9}


class Knobs(NamedTuple):
    """rows: sequences a chip at a time; unrolled: layers written out; fsdp: of 16 chips, the rest are replicas."""

    rows: int
    remat: str
    unrolled: bool = False
    fsdp: int = 1


RECIPES = {
    'as published': {},
    'dropout 0, einsum': {'dropout': 0.0},
    'dropout 0': {'dropout': 0.0, 'attention': 'splash'},
}
# Of each size, recipe and chip what the page recommends, and what it was compared with.
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
    ('1b6', 'dropout 0, einsum'): {'v5p': [Knobs(8, 'full')], 'v6e': [Knobs(8, 'full')]},
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
LAYERS = {'400m': 24, '600m': 36, '1b6': 24}


def command(size: str, chip: str, recipe: str, knobs: Knobs) -> list[str]:
    """The compilation of one point: a step of 512 sequences of the paper's second stage."""
    model = {'remat': knobs.remat, 'unroll': LAYERS[size] if knobs.unrolled else 1, **RECIPES[recipe]}
    changes = {f'model.{name}': value for name, value in model.items()}
    changes['train.accumulate'] = 512 // CHIPS // knobs.rows
    changes |= {'mesh.fsdp': knobs.fsdp, 'mesh.shard_optimizer': True}
    experiment = f'--config=experiments/language.py:size={size},corpus=openwebtext'
    words = [experiment, f'--topology={SLICES[chip]}', '--step-only', '--json']
    return [*words, *(f'--config.{name}={value}' for name, value in changes.items())]


def compiled(asked: list[str], results: pathlib.Path) -> dict:
    """The record of one point, from the file or, with a line on stderr, from a compilation that is added to it."""
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    found = next((each['found'] for each in known if each['asked'] == asked), None)
    if found is None:
        print(' '.join(asked), file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, '-m', 'nca_jax.scale.aot', *asked], cwd=HERE, stdout=subprocess.PIPE, text=True
        )
        if done.returncode > 1 or not done.stdout:
            sys.exit(f'error: nca_jax.scale.aot ended with {done.returncode}')
        found = json.loads(done.stdout.splitlines()[-1])
        with results.open('a') as file:
            file.write(json.dumps({'asked': asked, 'found': found}) + '\n')
    return found


def line(point: tuple[str, str, str], knobs: Knobs, found: dict, best: bool) -> str:
    """A row of the table, in Markdown, with the knobs of the best of its size, chip and recipe in bold."""
    shape = f'{found["mesh"]["data"]} x {found["mesh"]["fsdp"]}'
    pieces = f'{found["sequences_per_chip"]} x {found["accumulate"]}'
    chosen = [shape, pieces, found['remat'] + (', written out' if knobs.unrolled else '')]
    if not found['fits']:
        return row(*point, *chosen, f'does not fit {found["hbm_limit"] / 2**30:.1f}', *[''] * (2 + len(STAGES)))
    rate = found['tokens_per_second_estimate']
    hours = (f'{tokens / rate / 3600:.1f}' for tokens in STAGES.values())
    memory = f'{found["hbm_bytes"] / 2**30:.1f} of {found["hbm_limit"] / 2**30:.1f}'
    mfu = f'{found["mfu_estimate"]:.1%}'
    if best:
        *chosen, mfu = (f'**{each}**' for each in (*chosen, mfu))
    return row(*point, *chosen, memory, mfu, f'{rate:,.0f}', *hours)


def row(*cells: str) -> str:
    return f'| {" | ".join(cells)} |'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--results', type=pathlib.Path, required=True, help='the file of what was found, read and added to'
    )
    results = parser.parse_args().results
    results.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for (size, recipe), by_chip in POINTS.items():
        for chip, choices in by_chip.items():
            found = {knobs: compiled(command(size, chip, recipe, knobs), results) for knobs in choices}
            best = max(choices, key=lambda knobs: found[knobs]['mfu_estimate'] or 0)
            lines += [line((size, chip, recipe), knobs, found[knobs], knobs is best) for knobs in choices]
    head = ('size', 'chip', 'recipe', 'data x fsdp', 'sequences a chip x pieces', 'remat', 'GiB', 'MFU', 'tokens/s')
    head += tuple(f'{stage}, h' for stage in STAGES)
    print(row(*head))
    print('|---' * len(head) + '|')
    print('\n'.join(sorted(lines)))


if __name__ == '__main__':
    main()
