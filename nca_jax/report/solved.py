"""Problems solved: pass@k of each arm in percent, what guessing reaches, and paired gains in percentage points."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from nca_jax.report import figures, page, stats, tables
from nca_jax.report.runs import BENCHMARK, Group, Run, Study, ks, members

# By arm and k (1 and the largest), for arms that share a seed with the baseline.
Gains = Mapping[tuple[str, int], stats.Comparison]
# Small models solve less than a percent.
DIGITS = 2
NOTE = (
    'pass@k: the chance that any of k answers to a problem is right, the mean over problems, and over tasks where '
    'there are several. Shown is the mean over seeds with its 95 % t interval in parentheses, cut at 0 and 100 %. It '
    'covers the chance of training and of sampling answers. All runs were asked the same problems, so that it does not '
    'say how far other problems would move the score. An arm with one seed has an interval over problems instead, '
    'which that run bootstrapped: it does not say how far other seeds would. "Before" is at step 0.'
)
GAIN_NOTE = (
    "Gains are the arm's pass@k minus the baseline's with the same seed, in percentage points, with 95 % t intervals "
    f'over the pairs; positive is better. {stats.EVIDENCE_NOTE}'
)
CHANCE_NOTE = (
    'By guessing: the chance that any of k uniform guesses among the choices of a problem is right. Normalised is '
    "(pass@k - c) / (1 - c), task by task and at least 0, so that 100 % is all right. The paper's takes the c of one "
    'guess for every k, so that k guesses alone score above 0; the other takes the c of k guesses.'
)
CAPTION = f'pass@k against k. {figures.GAIN_CAPTION}'


def compare(group: Group, baseline: str) -> Gains:
    """Every arm but the baseline against it. Holm's p is over all arms and both k."""

    def scores(arm: str, k: int) -> dict[int, float]:
        return {seed: 100 * run.solved[f'pass@{k}'] for seed, run in group.get(arm, {}).items()}

    others = itertools.product((arm for arm in group if arm != baseline), shown_ks(group))
    return stats.with_holm({(arm, k): stats.compare(arm, scores(arm, k), scores(baseline, k)) for arm, k in others})


def all_ks(group: Group) -> list[int]:
    """Each k for which the group has pass@k: the same in all runs, since others are refused."""
    return ks(members(group)[0].solved)


def shown_ks(group: Group) -> list[int]:
    """1 and the largest k."""
    return sorted({1, all_ks(group)[-1]})


def level(results: Sequence[Mapping[str, Any]], name: str) -> stats.Interval:
    """A share in percent with its interval over the seeds' results, cut at 0 and 100.

    A single result has its own interval over problems, nan where it recorded none.
    """
    interval = stats.t_interval([100 * result[name] for result in results])
    # A t interval doesn't know that shares end at 0 and 100.
    if interval.n > 1:
        return dataclasses.replace(interval, low=max(0.0, interval.low), high=min(100.0, interval.high))
    low, high = (100 * results[0].get(f'{name}_{end}', math.nan) for end in ('low', 'high'))
    return dataclasses.replace(interval, low=low, high=high)


def result_rows(group: Group, gains: Gains, baseline: str) -> list[dict[str, str]]:
    """One row an arm, the baseline first: pass@1 and the largest k's, before and after, and the paired gain."""
    runs = members(group)
    # Columns stand in every row, so one run that has a count decides for all; the others get a dash.
    before = any(run.solved_before for run in runs)
    losses = all(run.evaluator == BENCHMARK and run.trained and run.results('held_out') for run in runs)
    rows = []
    for arm, by_seed in group.items():
        c = gains.get((arm, 1))
        row = {'arm': arm, 'seeds': ' '.join(map(str, by_seed))}
        row['interval over'] = 'seeds' if len(by_seed) > 1 else 'problems'
        row |= {f'pass@{k}, %': _level_cell(by_seed, f'pass@{k}') for k in shown_ks(group)}
        if before:
            row |= {f'before: pass@{k}, %': _level_cell(by_seed, f'pass@{k}', before=True) for k in shown_ks(group)}
        # A loss tells more than a score where small models solve next to nothing.
        if losses:
            ends = [run.results('held_out')[-1]['loss'] for run in by_seed.values()]
            row['held-out loss, nats'] = tables.number(stats.t_interval(ends).mean)
        row[f'pass@1 over {baseline}, points'] = tables.ranged(*c.gain.shown, DIGITS) if c else tables.NONE
        rows.append(row | {'verdict': stats.verdict(c, arm, baseline)})
    return rows


def gain_rows(gains: Gains, baseline: str) -> list[dict[str, str]]:
    """One row a comparison and k: its spread, what could have been seen, p values, and the gain."""
    rows = []
    for (arm, k), c in gains.items():
        gain = {'gain, points': tables.ranged(*c.gain.shown, DIGITS), 'verdict': stats.verdict(c, arm, baseline)}
        rows.append({'score': f'pass@{k}'} | stats.evidence(c, baseline, DIGITS) | gain)
    return rows


def chance_rows(group: Group) -> list[dict[str, str]]:
    """One row an arm and k: pass@k, that of guessing, and two normalised scores. No rows for free-form answers."""
    chances = members(group)[0].solved
    if 'chance_pass@1' not in chances:
        return []
    return [
        {
            'arm': arm,
            'k': str(k),
            'pass@k, %': _level_cell(by_seed, f'pass@{k}'),
            'by guessing, %': tables.percent(chances[f'chance_pass@{k}'], DIGITS),
            "normalised, the paper's, %": _level_cell(by_seed, f'normalised@{k}'),
            'normalised by k guesses, %': _level_cell(by_seed, f'normalised_by_chance@{k}'),
        }
        for arm, by_seed in group.items()
        for k in shown_ks(group)
    ]


def task_rows(group: Group) -> list[dict[str, str]]:
    """One row a task, one column an arm: pass@1 in percent. None where the benchmark is one task."""
    # A benchmark of one task records no score under the task's name.
    names = [name for name in members(group)[0].solved if name.endswith('/pass@1')]
    return [
        {'task: pass@1, %': name.removesuffix('/pass@1')}
        | {arm: _level_cell(by_seed, name) for arm, by_seed in group.items()}
        for name in names
    ]


def findings(study: Study, gains: Mapping[str, Gains]) -> list[str]:
    baseline, sentences = study.baseline, []
    for name, group in study.solved.items():
        for (arm, k), c in gains[name].items():
            mean, low, high = c.gain.shown
            if k == 1:
                interval = f'{low:+.{DIGITS}f} to {high:+.{DIGITS}f}'
                change = f'{abs(mean):.{DIGITS}f} points {"higher" if mean >= 0 else "lower"}'
                claim = f'**{arm}** has {change} pass@1 on {name} than {baseline}'
                sentences.append(stats.finding(c, claim, interval, detectable=f'{c.detectable:.{DIGITS}f} points'))
            # One pair has nothing to say about larger k either.
            elif c.gain.n > 1:
                gain, verdict = tables.ranged(*c.gain.shown, DIGITS), stats.verdict(c, arm, baseline)
                sentences[-1] += f' In pass@{k} the gain is {gain} points: {verdict}.'
        sentences += stats.uncompared(group, baseline, f' on {name}') + _floor(name, group)
    return sentences


def pass_at_k(study: Study, benchmark: str) -> Figure:
    """pass@k against k by arm, mean and 95 % interval; beside it the paired gain over the baseline at each k."""
    group = study.solved[benchmark]
    numbers = all_ks(group)
    results = {arm: [run.solved for run in by_seed.values()] for arm, by_seed in group.items()}
    # Guessing does as well for every arm, since all were given the same problems. Open answers can't be guessed.
    chances = members(group)[0].solved
    one_seed = '; one seed: over problems' if any(len(by_seed) == 1 for by_seed in group.values()) else ''
    figure = figures.levels_and_gains(
        study,
        levels={arm: (numbers, [level(of_arm, f'pass@{k}') for k in numbers]) for arm, of_arm in results.items()},
        scores={
            arm: {seed: (numbers, [100 * run.solved[f'pass@{k}'] for k in numbers]) for seed, run in by_seed.items()}
            for arm, by_seed in group.items()
        },
        title='Problems solved in k answers',
        unit='% of problems',
        note=f'mean and 95 % interval over seeds{one_seed}',
        guessing=[100 * chances[f'chance_pass@{k}'] for k in numbers if f'chance_pass@{k}' in chances],
    )
    for axes in figure.axes:
        axes.set_xscale('log', base=2)
        axes.set(xlim=(numbers[0], numbers[-1]), xlabel='k, answers to a problem')
        figures.label_ticks(axes.xaxis, numbers, '{x:d}')
    return figure


def _floor(name: str, group: Group) -> list[str]:
    """A warning where scores are too near the bottom for their differences to mean much."""
    largest = all_ks(group)[-1]
    if all(run.solved[f'pass@{largest}'] == 0 for run in members(group)):
        return [f'**No problem of {name} was solved in any run: conclude nothing from it.**']
    # Guessing reaches the same for all arms, which answered the same problems.
    chance = 100 * members(group)[0].solved.get('chance_pass@1', 0.0)
    # Open answers can't be guessed, so their chance is 0; one arm above chance shows that the problems can be solved.
    if not chance or any(
        level([run.solved for run in by_seed.values()], 'pass@1').low > chance for by_seed in group.values()
    ):
        return []
    return [f'**On {name} no arm is above guessing ({chance:.1f} % pass@1) by its interval: conclude little from it.**']


def blocks(study: Study, gains: Mapping[str, Gains]) -> list[page.Block]:
    if not study.solved:
        return []
    section: list[page.Block] = ['## Problems solved']
    for name, group in study.solved.items():
        # All runs of a group answered the same problems in the same way.
        solved, protocol = members(group)[0].solved, members(group)[0].protocol
        sampling = protocol['sampling']
        asked = (
            f'{solved["problems"]:,} problems, {solved["samples"]:,} samples each of at most '
            f'{protocol["max_tokens"]:,} tokens, worked examples before each: {protocol["shots"]}, temperature '
            f'{sampling["temperature"]:g}, top_p {sampling["top_p"]:g}.'
        )
        results = result_rows(group, gains[name], study.baseline)
        section += [f'### {name}', asked, tables.table(results), page.Note(NOTE)]
        for rows, note in ((gain_rows(gains[name], study.baseline), GAIN_NOTE), (chance_rows(group), CHANCE_NOTE)):
            section += [tables.table(rows), page.Note(note)] if rows else []
        if rows := task_rows(group):
            section.append(tables.table(rows))
        if caveat := stats.caveat(group):
            section.append(page.Note(caveat))
        # One k makes no curve.
        if len(all_ks(group)) > 1:
            file = 'pass_at_k' + page.suffix(name, alone=len(study.solved) == 1)
            section.append(page.Picture(file, f'{name}: {CAPTION}', figures.render(pass_at_k, study, name)))
    return section


def _level_cell(by_seed: Mapping[int, Run], name: str, before: bool = False) -> str:
    """The mean of a score over seeds with its interval, in percent; with `before`, at step 0."""
    results = [run.solved_before if before else run.solved for run in by_seed.values()]
    # A mean over some of the seeds can't stand beside means over all.
    if None in results:
        return tables.NONE
    return tables.ranged(*level(results, name).shown, DIGITS, sign='-')
