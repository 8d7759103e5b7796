"""The stages before text: what each run learned of its automata, or of what stands in their place, in pictures too."""

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nca_jax import files
from nca_jax.errors import UserError
from nca_jax.report import figures, page, tables
from nca_jax.report.runs import Run, Study, require

STAGE_CAPTION = (
    'Left: loss on held-out rules. Right: accuracy of the next grid, every token predicted from the true ones '
    'before it, by the number of grids of the same automaton in context; solid: single cells, dotted: all '
    'cells of the grid at once. A rise with context is the rule being inferred.'
)
# What the report reads from complexity.json, and its types.
COMPLEXITY = {
    **dict.fromkeys(('edges', 'counts', 'band'), list),
    **dict.fromkeys(('candidates', 'accepted'), int),
    'score': str,
}
# The shares that the evaluations of one stage or another record, and their columns.
SHARES = {
    'cell_accuracy': 'cells right, %',
    'grid_accuracy': 'grids right, %',
    'copy_accuracy': 'cells by copying, %',
    'accuracy': 'tokens right, %',
    'close_accuracy': 'closing brackets right, %',
}


def stage_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """One row a run, with a column for each share that any of them recorded last."""
    shares = {name: column for name, column in SHARES.items() if any(name in run.final for run in runs)}
    return [
        {
            'run': run.name,
            'stage': run.stage,
            'seed': str(run.seed),
            'tokens': f'{run.final["tokens"]:,}',
            'held-out loss, nats': tables.number(run.final['loss']),
            'uniform guess': tables.number(math.log(run.record['vocab_size'])),
            **{column: tables.percent(run.final.get(name)) for name, column in shares.items()},
        }
        for run in runs
    ]


def findings(study: Study) -> list[str]:
    sentences = []
    for run in (*study.nca, *study.controls):
        last, uniform = run.final, math.log(run.record['vocab_size'])
        stage = 'automata' if run.stage == 'nca' else run.stage
        text = (
            f'The {stage} stage `{run.name}` brought its held-out loss to {last["loss"]:.3f} nats per '
            f'token after {last["tokens"]:,} tokens (a uniform guess: {uniform:.2f})'
        )
        # Automata alone have grids.
        if 'grid_accuracy' in last:
            text += f', and predicts {100 * last["cell_accuracy"]:.1f} % of cells'
            text += f' and {100 * last["grid_accuracy"]:.1f} % of whole grids'
        # Noise is a control whose loss can't fall: a warning that it didn't learn would mislead.
        if run.stage == 'noise':
            text += '. There is nothing to learn in it'
        elif last['loss'] > 0.95 * uniform:
            text += '. **It has hardly learned its task: conclude nothing about transfer from it**'
        sentences.append(f'{text}.')
    return sentences


def blocks(study: Study) -> list[page.Block]:
    runs = (*study.nca, *study.controls)
    sections: list[page.Block] = ['## Before the text', tables.table(stage_rows(runs))] if runs else []
    if study.nca:
        sections.append(page.Picture('nca_stage', STAGE_CAPTION, figures.render(figures.nca_stage, study)))
    # Seeds of one arm draw from the same kind of rules: the first shows them.
    shown = {run.arm: run for run in reversed(study.nca)}
    for arm, run in sorted(shown.items()):
        sections += _automata_pictures(run, page.suffix(arm, alone=len(shown) == 1))
    return sections


def _automata_pictures(run: Run, suffix: str) -> list[page.Picture]:
    path = run.folder / 'complexity.json'
    # The run writes this file last, so without it the others may be half written.
    if not path.is_file():
        return []
    found = files.read_json(path)
    require(found, COMPLEXITY, f'{path}')
    strips, score = _read_automata(run.folder / 'automata.npz'), f'score by {found["score"]}'
    caption = f'Nine rules of `{run.name}`, three a level, labelled with how complex their first frames are.'
    histogram = f'{found["candidates"]:,} random rules by {score}. Only rules within the shaded band are used.'
    return [
        page.Picture(f'automata{suffix}', caption, figures.render(figures.film_strips, *strips, score)),
        page.Picture(f'complexity{suffix}', histogram, figures.render(figures.complexity, found)),
    ]


def _read_automata(path: Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int]:
    """The frames and scores of an automata.npz by level of complexity, in order of score, and the number of colours."""
    try:
        with np.load(path) as arrays:
            frames, ratios, levels = arrays['frames'], arrays['ratios'], arrays['level']
            colours = int(arrays['colours'])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path}: not the automata of a run ({error})') from error
    blocks = {}
    for level in ('low', 'medium', 'high'):
        rows = np.flatnonzero(levels == level)
        rows = rows[np.argsort(ratios[rows])]
        blocks[f'{level} complexity'] = frames[rows], ratios[rows]
    return blocks, colours
