"""What the page says and in which order: findings in words, the table, the figures, then where it all came from."""

import math
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from nca_jax import errors
from nca_jax.report import figures, page, runs, solved, stats, style, tables, words

TITLE = 'nca_jax: what the runs support'
SMOKE = 'Smoke test: tiny models, minutes of training. The numbers on this page mean nothing.'
COMPLEXITY = ('edges', 'counts', 'band', 'candidates', 'accepted', 'bytes_per_token', 'score')
RESULT_NOTE = (
    'Loss is the mean over seeds ± the half-width of its 95 % t interval; that spread includes what the seeds of all '
    'arms share. Perplexity is exp of the mean loss. Gains are paired by seed (the same text batches), with 95 % t '
    'intervals in parentheses, and positive is better.'
)
COMPARISON_NOTE = (
    "Speed-up: the baseline's final token count over the tokens at which the arm crosses the baseline's final "
    'perplexity for the last time, per seed, then the mean; "all tokens" counts the tokens of earlier stages too. '
    'SD is that of the paired differences in nats, half-width that of their 95 % interval. Detectable: the true '
    'difference that a two-sided 5 % paired t test on as many seeds finds with 80 % power, if the spread is the '
    'observed one (noncentral t); with few seeds the spread itself is uncertain. Holm p corrects for the number of '
    'comparisons here.'
)


def comparisons(study: runs.Study) -> dict[str, stats.Comparison | None]:
    """Every arm against the study's baseline."""
    curves = {arm: {seed: run.curve() for seed, run in seeds.items()} for arm, seeds in study.arms.items()}
    earlier = {
        arm: {seed: study.earlier_tokens(run) for seed, run in seeds.items()} for arm, seeds in study.arms.items()
    }
    return stats.compare_all(curves, earlier, study.baseline)


def summary(study: runs.Study) -> str:
    """What the terminal shows: warnings, the table, the findings, and what was left out."""
    found = comparisons(study)
    parts = [SMOKE] if study.smoke else []
    parts += [
        tables.table(tables.result_rows(study, found)),
        tables.table(tables.comparison_rows(found, study.baseline)),
    ]
    gained = solved.all_gains(study)
    for name, group in study.solved.items():
        parts.append(f'Problems solved: {name}. {solved.about(group)}')
        parts += map(tables.table, _solved_tables(group, gained[name], study.baseline))
    findings = words.findings(study, found) + solved.findings(study, gained)
    parts += [page.plain('\n'.join(findings)), '\n'.join(words.left_out(study))]
    return '\n\n'.join(part for part in parts if part)


def make_blocks(study: runs.Study) -> list[page.Block]:
    """The whole page."""
    found, gained = comparisons(study), solved.all_gains(study)
    blocks: list[page.Block] = [page.Heading(TITLE, 1)]
    if study.smoke:
        blocks.append(page.Text(SMOKE, 'warning'))
    findings = words.findings(study, found) + solved.findings(study, gained)
    blocks.append(page.Bullets(findings or ['No run has finished.']))
    if study.left_out:
        blocks.append(page.Text('Left out: ' + '; '.join(words.left_out(study)) + '.', 'note'))
    if study.arms:
        blocks += _text_blocks(study, found)
    if study.solved:
        blocks += _solved_blocks(study, gained)
    if study.nca:
        blocks += _nca_blocks(study)
    if study.controls:
        blocks += [page.Heading('In place of the automata'), page.Table(tables.control_rows(study))]
    return blocks + _provenance(study)


def _text_blocks(study: runs.Study, found: dict[str, stats.Comparison | None]) -> list[page.Block]:
    blocks = [
        page.Heading('Results'),
        page.Table(tables.result_rows(study, found), emphasis=f'gain over {study.baseline}, nats'),
        page.Text(RESULT_NOTE, 'note'),
    ]
    if found:
        rows = tables.comparison_rows(found, study.baseline)
        blocks += [page.Table(rows), page.Text(COMPARISON_NOTE, 'note')]
    if caveats := words.caveats(study, found):
        blocks.append(page.Text(' '.join(caveats), 'note'))
    caption = (
        'Held-out loss against text tokens: mean over seeds with its 95 % t interval at each evaluation. '
        'The paired gain takes the baseline of the same seed away, and with it what seeds share; where its band leaves '
        'zero, the seeds support a difference at that one point.'
    )
    return [*blocks, _picture('learning_curves', caption, lambda theme: figures.learning_curves(study, theme))]


def _solved_blocks(study: runs.Study, gained: Mapping[str, solved.Gains]) -> list[page.Block]:
    blocks: list[page.Block] = [page.Heading('Problems solved')]
    for name, group in study.solved.items():
        blocks += [page.Heading(name, 3), page.Text(solved.about(group), 'note')]
        rows, *others = _solved_tables(group, gained[name], study.baseline)
        blocks += [page.Table(rows, emphasis=f'pass@1 over {study.baseline}, points'), *map(page.Table, others)]
        if caveats := solved.caveats(group, gained[name], study.baseline):
            blocks.append(page.Text(' '.join(caveats), 'note'))
        if len(solved.all_ks(group)) > 1:
            suffix = '' if len(study.solved) == 1 else '_' + re.sub(r'\W+', '_', name)
            caption = (
                f'{name}: pass@k against k. The paired gain takes the baseline of the same seed away, and with it what '
                'seeds share; where its band leaves zero, the seeds support a difference at that one k.'
            )
            blocks.append(
                _picture(f'pass_at_k{suffix}', caption, lambda theme, name=name: figures.pass_at_k(study, name, theme))
            )
    notes = [solved.NOTE]
    notes += [solved.GAIN_NOTE] if any(gained.values()) else []
    notes += [solved.CHANCE_NOTE] if any(map(solved.chance_rows, study.solved.values())) else []
    return blocks + [page.Text(note, 'note') for note in notes]


def _solved_tables(group: solved.Group, found: solved.Gains, baseline: str) -> list[tables.Rows]:
    """The tables of one benchmark that have any rows, that of the results first."""
    shown = [
        solved.rows(group, found, baseline),
        solved.gain_rows(found, baseline),
        solved.chance_rows(group),
        solved.task_rows(group),
    ]
    return [rows for rows in shown if rows]


def _nca_blocks(study: runs.Study) -> list[page.Block]:
    blocks = [
        page.Heading('The automata'),
        page.Table(tables.nca_rows(study)),
        _picture(
            'nca_stage',
            'Left: loss on held-out rules. Right: accuracy of the next grid, every token predicted from the true ones '
            'before it, by the number of grids of the same automaton in context; solid: single cells, dotted: all '
            'cells of the grid at once. A rise with context is the rule being inferred.',
            lambda theme: figures.nca_stage(study, theme),
        ),
    ]
    shown = {run.arm: run for run in reversed(study.nca)}
    for arm, run in sorted(shown.items()):
        blocks += _automata_blocks(run, suffix='' if len(shown) == 1 else '_' + re.sub(r'\W+', '_', arm))
    return blocks


def _automata_blocks(run: runs.Run, suffix: str) -> list[page.Block]:
    path, found = run.folder / 'automata.npz', run.json('complexity.json')
    if found is None:  # it is written last
        return []
    missing = [field for field in COMPLEXITY if field not in found]
    if missing:
        raise errors.UserError(f'{run.folder / "complexity.json"}: field {missing[0]!r} is missing')
    for field in ('edges', 'counts', 'band'):
        if not all(isinstance(number, int | float) for number in found[field]):
            raise errors.UserError(f'{run.folder / "complexity.json"}: {field} must be numbers')
    blocks: list[page.Block] = []
    if path.is_file():
        arrays, score = _load(path), style.score_name(found['score'])
        caption = f'Nine rules of `{run.name}`, three a level, labelled with how complex their first frames are.'
        values = arrays['frames'], arrays['ratios'], arrays['level'], int(arrays['colours']), score
        blocks.append(_picture(f'automata{suffix}', caption, lambda theme: figures.automata(*values, theme)))
    caption = (
        f'{found["candidates"]:,} random rules before filtering, by {score_in_words(found)}. Only rules within the '
        'shaded band are used.'
    )
    blocks.append(_picture(f'complexity{suffix}', caption, lambda theme: figures.complexity(found, theme)))
    return blocks


def score_in_words(found: Mapping[str, Any]) -> str:
    """How complexity was measured."""
    if found['score'] == 'change_rate':
        return 'the share of their cells that change in an update'
    return f'the {found["score"]} ratio of their patch tokens, {found["bytes_per_token"]} bytes each'


def _load(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in ('frames', 'ratios', 'level', 'colours')}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise errors.UserError(f'{path}: not the automata of a run ({error})') from error


def _picture(name: str, caption: str, draw: Callable[[style.Theme], Figure]) -> page.Picture:
    images = []
    for theme in (style.LIGHT, style.DARK):
        with matplotlib.rc_context(style.settings(theme)):
            images.append(style.png(draw(theme)))
    return page.Picture(name, caption, *images)


def _provenance(study: runs.Study) -> list[page.Block]:
    blocks: list[page.Block] = [page.Heading('Where this comes from')]
    if not study.runs:
        return [*blocks, page.Text('No finished runs.')]
    versions = {}
    for run in study.runs:
        versions.setdefault(', '.join(f'{k} {v}' for k, v in run.about['versions'].items()), []).append(run.name)
    blocks.append(page.Table(tables.run_rows(study)))
    if plans := tables.plan_rows(study):
        blocks += [page.Heading('What was carried', 3), page.Table(plans)]
    if settings := tables.setting_rows(study):
        blocks += [page.Heading('Settings that differ between compared runs', 3), page.Table(settings)]
    of_text = {run.folder for by_seed in study.arms.values() for run in by_seed.values()}
    for name, group in study.solved.items():
        own = any(run.folder not in of_text for by_seed in group.values() for run in by_seed.values())
        if own and (settings := tables.differing_rows(group)):
            blocks += [page.Heading(f'Settings that differ between the runs on {name}', 3), page.Table(settings)]
    seconds = tables.seconds_rows(study)
    total = sum(sum(run.done.get('seconds', {}).values()) for run in study.runs)
    spent = f'{math.floor(total / 60):,} min {total % 60:.0f} s in all.'
    blocks += [page.Heading('Seconds by phase', 3), page.Table(seconds), page.Text(spent, 'note')]
    blocks.append(page.Heading('Versions', 3))
    for text, names in versions.items():
        blocks.append(page.Text(text + ('.' if len(versions) == 1 else f' ({", ".join(names)}).'), 'note'))
    return blocks
