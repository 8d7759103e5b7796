"""The stages before text: what each run learned of its automata, or of what stands in their place, in pictures too."""

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nca_jax import files
from nca_jax.errors import UserError
from nca_jax.report import figures, page, style, tables
from nca_jax.report.records import COMPLEXITY, check
from nca_jax.report.runs import Run
from nca_jax.report.study import Study

STAGE_CAPTION = (
    'Left: loss on held-out rules. Right: accuracy of the next grid, every token predicted from the true ones '
    'before it, by the number of grids of the same automaton in context; solid: single cells, dotted: all '
    'cells of the grid at once. A rise with context is the rule being inferred.'
)
# What each share that an evaluation records is called in tables.
NCA_COLUMNS = {
    'cells right, %': 'cell_accuracy',
    'grids right, %': 'grid_accuracy',
    'cells by copying, %': 'copy_accuracy',
}
CONTROL_COLUMNS = {'tokens right, %': 'accuracy', 'closing brackets right, %': 'close_accuracy'}


def stage_rows(runs: Sequence[Run], columns: Mapping[str, str]) -> list[dict[str, str]]:
    """One row a run; `columns` name the shares that its last evaluation recorded."""
    return [
        {
            'run': run.name,
            'stage': run.stage,
            'seed': str(run.seed),
            'tokens': f'{run.final["tokens"]:,}',
            'held-out loss, nats': tables.number(run.final['loss']),
            'uniform guess': tables.number(math.log(run.record['vocab_size'])),
            **{column: tables.percent(run.final.get(name)) for column, name in columns.items()},
        }
        for run in runs
    ]


def findings(study: Study) -> list[str]:
    """What the report says first: a sentence or two for each run."""
    return [_finding(run) for run in (*study.nca, *study.controls)]


def _finding(run: Run) -> str:
    first, last = run.evals[0], run.final
    uniform = math.log(run.record['vocab_size'])
    stage = 'automata' if run.stage == 'nca' else run.stage
    text = (
        f'The {stage} stage `{run.name}` brought its held-out loss to {last["loss"]:.3f} nats per '
        f'token after {last["tokens"]:,} tokens (a uniform guess: {uniform:.2f})'
    )
    if 'grid_accuracy' in last:
        text += f', and predicts {100 * last["cell_accuracy"]:.1f} % of cells'
        text += f' and {100 * last["grid_accuracy"]:.1f} % of whole grids'
    if run.stage == 'noise':
        return text + '. There is nothing to learn in it.'
    if last['loss'] > 0.95 * uniform or (len(run.evals) > 1 and last['loss'] > 0.98 * first['loss']):
        text += '. **It has hardly learned its task: conclude nothing about transfer from it**'
    return text + '.'


def blocks(study: Study) -> list[page.Block]:
    """The sections of the page; nothing where no first stage has finished."""
    sections: list[page.Block] = []
    if study.nca:
        sections += ['## The automata', tables.table(stage_rows(study.nca, NCA_COLUMNS))]
        sections.append(page.picture('nca_stage', STAGE_CAPTION, figures.nca_stage, study))
    # Seeds of one arm draw from the same kind of rules: the first shows them.
    shown = {run.arm: run for run in reversed(study.nca)}
    for arm, run in sorted(shown.items()):
        sections += _automata_pictures(run, page.suffix(arm, alone=len(shown) == 1))
    if study.controls:
        sections += ['## In place of the automata', tables.table(stage_rows(study.controls, CONTROL_COLUMNS))]
    return sections


def _automata_pictures(run: Run, suffix: str) -> list[page.Picture]:
    path = run.folder / 'complexity.json'
    # The run writes this file last, so without it the others may be half written.
    if not path.is_file():
        return []
    complexity, pictures = files.read_json(path), []
    check(complexity, COMPLEXITY, f'{path}')
    if (run.folder / 'automata.npz').is_file():
        arrays, score = _read_automata(run.folder / 'automata.npz'), style.score_name(complexity['score'])
        caption = f'Nine rules of `{run.name}`, three a level, labelled with how complex their first frames are.'
        pictures.append(page.picture(f'automata{suffix}', caption, figures.automata, arrays, score))
    caption = (
        f'{complexity["candidates"]:,} random rules before filtering, by {_measure(complexity)}. Only rules within the '
        'shaded band are used.'
    )
    return [*pictures, page.picture(f'complexity{suffix}', caption, figures.complexity, complexity)]


def _measure(complexity: dict[str, Any]) -> str:
    if complexity['score'] == 'change_rate':
        return 'the share of their cells that change in an update'
    return f'the {complexity["score"]} ratio of their patch tokens, {complexity["bytes_per_token"]} bytes each'


def _read_automata(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in ('frames', 'ratios', 'level', 'colours')}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path}: not the automata of a run ({error})') from error
