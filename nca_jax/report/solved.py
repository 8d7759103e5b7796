"""How many problems each arm solves: pass@k over seeds, beside what guessing reaches, and against the baseline.

A group is the runs that were asked one benchmark, by arm and seed (Study.solved). Numbers are in percent, and gains in
percentage points. `largest` is the largest k of which the group has pass@k.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nca_jax.report import runs, stats, tables, words
from nca_jax.report.records import ks

Group = Mapping[str, Mapping[int, runs.Run]]
Gains = Mapping[str, Mapping[int, stats.ScoreGain] | None]

DIGITS = 2  # small models solve less than a percent
NOTE = (
    'pass@k: the chance that any of k answers to a problem is right, the mean over problems, and over tasks where '
    'there are several. Shown is the mean over seeds with its 95 % t interval in parentheses, cut at 0 and 100 %. It '
    'covers the chance of training and of sampling answers. All runs were asked the same problems, so that it does not '
    'say how far other problems would move the score. An arm with one seed has an interval over problems instead, '
    'which that run bootstrapped: it does not say how far other seeds would. "Before" is at step 0.'
)
GAIN_NOTE = (
    "Gains are the arm's pass@k minus the baseline's with the same seed, in percentage points, with 95 % t intervals "
    'over the pairs; positive is better. SD is that of the paired differences, half-width that of their interval. '
    'Detectable: the true difference that a two-sided 5 % paired t test on as many seeds finds with 80 % power, if the '
    'spread is the observed one. Holm p corrects for the comparisons of one benchmark. Where all pairs differ by the '
    'same there is no spread, and so no interval and no test.'
)
CHANCE_NOTE = (
    'By guessing: the chance that any of k uniform guesses among the choices of a problem is right. Normalised is '
    "(pass@k - c) / (1 - c), task by task and at least 0, so that 100 % is all right. The paper's takes the c of one "
    'guess for every k, so that k guesses alone score above 0; the other takes the c of k guesses.'
)


def all_gains(study: runs.Study) -> dict[str, Gains]:
    """`gains` of every group, by its name."""
    return {name: gains(group, study.baseline) for name, group in study.solved.items()}


def gains(group: Group, baseline: str) -> Gains:
    """Every arm but the baseline against it, {arm: {k: gain}} for k = 1 and the largest, None without a common seed.

    Holm's p is over all of them. Empty without the baseline.
    """
    if baseline not in group:
        return {}
    found: dict[str, dict[int, stats.ScoreGain] | None] = {}
    for arm in group:
        if arm != baseline:
            pairs = {k: gain(group, baseline, arm, k) for k in shown_ks(group)}
            found[arm] = pairs if all(pairs.values()) else None
    tested = [(arm, k) for arm, pairs in found.items() if pairs for k in pairs]
    adjusted = stats.holm([found[arm][k].p for arm, k in tested])
    for (arm, k), p in zip(tested, adjusted, strict=True):
        found[arm][k] = dataclasses.replace(found[arm][k], holm=p)
    return found


def gain(group: Group, baseline: str, arm: str, k: int) -> stats.ScoreGain | None:
    """An arm against the baseline in pass@k, without Holm's p; None without a common seed."""
    ours, theirs = ({s: run.solved[f'pass@{k}'] for s, run in group[a].items()} for a in (arm, baseline))
    return stats.score_gain(arm, ours, theirs)


def all_ks(group: Group) -> list[int]:
    """Each k of which the group has pass@k."""
    return ks(_one(group).solved)


def shown_ks(group: Group) -> list[int]:
    """1 and the largest k."""
    return sorted({1, all_ks(group)[-1]})


def level(records: Sequence[Mapping[str, Any]], name: str) -> stats.Interval:
    """A share that the records of an arm's seeds hold, in percent: the mean and its interval over seeds, cut at 0 and
    100. Of one record it is the record's own over problems, nan where it has none."""
    found = stats.t_interval([100 * record[name] for record in records])
    if found.n > 1:
        return dataclasses.replace(found, low=max(0.0, found.low), high=min(100.0, found.high))
    low, high = (100 * records[0].get(f'{name}_{end}', math.nan) for end in ('low', 'high'))
    return dataclasses.replace(found, low=low, high=high)


def finals(by_seed: Mapping[int, runs.Run]) -> list[dict[str, Any]]:
    """What the runs of an arm had solved at their ends."""
    return [run.solved for run in by_seed.values()]


def about(group: Group) -> str:
    """How the group's problems were asked."""
    run = _one(group)
    asked, sampling = run.asked, run.asked['sampling']
    return (
        f'{run.solved["problems"]:,} problems, {run.solved["samples"]:,} samples each of at most '
        f'{asked["max_tokens"]:,} tokens, worked examples before each: {asked["shots"]}, temperature '
        f'{sampling["temperature"]:g}, top_p {sampling["top_p"]:g}.'
    )


def rows(group: Group, found: Gains, baseline: str) -> list[dict[str, str]]:
    """One row an arm, the baseline first: pass@1 and the largest k's, before and after, and the paired gain."""
    everyone = [run for by_seed in group.values() for run in by_seed.values()]
    before = any(run.solved_before for run in everyone)
    losses = all(run.stage == 'instruct' and run.trained and run.evals for run in everyone)
    lines = []
    for arm, by_seed in group.items():
        line = {
            'arm': arm,
            'seeds': ' '.join(map(str, by_seed)),
            'interval over': 'seeds' if len(by_seed) > 1 else 'problems',
        }
        line |= {f'pass@{k}, %': _percent(finals(by_seed), f'pass@{k}') for k in shown_ks(group)}
        if before:
            earlier = [run.solved_before for run in by_seed.values()]
            line |= {f'before: pass@{k}, %': _percent(earlier, f'pass@{k}') for k in shown_ks(group)}
        if losses:
            line['held-out loss, nats'] = tables.number(
                stats.t_interval([r.final['loss'] for r in by_seed.values()]).mean
            )
        pairs = found.get(arm)
        line[f'pass@1 over {baseline}, points'] = _points(pairs[1]) if pairs else tables.NONE
        line['verdict'] = words.verdict(pairs[1]) if pairs else 'baseline' if arm == baseline else 'not compared'
        lines.append(line)
    return lines


def chance_rows(group: Group) -> list[dict[str, str]]:
    """One row an arm and k, with what guessing reaches and both normalised scores; none for open answers."""
    if 'chance_pass@1' not in _one(group).solved:
        return []
    return [
        {
            'arm': arm,
            'k': str(k),
            'pass@k, %': _percent(finals(by_seed), f'pass@{k}'),
            'by guessing, %': tables.number(100 * _one(group).solved[f'chance_pass@{k}'], DIGITS),
            "normalised, the paper's, %": _percent(finals(by_seed), f'normalised@{k}'),
            'normalised by k guesses, %': _percent(finals(by_seed), f'normalised_by_chance@{k}'),
        }
        for arm, by_seed in group.items()
        for k in shown_ks(group)
    ]


def task_rows(group: Group) -> list[dict[str, str]]:
    """One row a task, one column an arm: pass@1 in percent. None where there is one task."""
    names = [name for name in _one(group).solved if name.endswith('/pass@1')]
    return [
        {'task: pass@1, %': name.removesuffix('/pass@1')}
        | {arm: _percent(finals(by_seed), name) for arm, by_seed in group.items()}
        for name in names
    ]


def gain_rows(found: Gains, baseline: str) -> list[dict[str, str]]:
    """One row a comparison and k: pairs, the gain, its spread, what could have been seen, and p values."""
    return [
        {
            'comparison': f'{arm} - {baseline}',
            'score': f'pass@{k}',
            'pairs': str(c.gain.n),
            'gain, points': _points(c),
            'SD': tables.number(c.gain.sd, DIGITS),
            'half-width': tables.number(c.gain.half, DIGITS),
            'detectable': tables.number(c.detectable, DIGITS),
            'p': words.p_value(c.p),
            'Holm p': words.p_value(c.holm),
            'verdict': words.verdict(c),
        }
        for arm, pairs in found.items()
        if pairs
        for k, c in pairs.items()
    ]


def findings(study: runs.Study, found: Mapping[str, Gains]) -> list[str]:
    """What the report says first of solved problems: a sentence or two for each benchmark and arm."""
    sentences = []
    for name, group in study.solved.items():
        sentences += _group_findings(name, group, study.baseline, found[name])
    return sentences


def _group_findings(name: str, group: Group, baseline: str, found: Gains) -> list[str]:
    family = sum(not math.isnan(c.p) for pairs in found.values() if pairs for c in pairs.values())
    sentences = [
        _finding(name, baseline, pairs, family)
        if pairs
        else f'**{arm}** shares no seed with {baseline} on {name}, so it is not compared.'
        for arm, pairs in found.items()
    ]
    if baseline not in group:
        sentences.append(f'There is no finished run of the baseline {baseline} on {name}, so no arm is compared.')
    elif not found:
        sentences.append(f'Only the baseline {baseline} was asked {name}, so no arm is compared.')
    return sentences + _floor(name, group)


def _finding(name: str, baseline: str, pairs: Mapping[int, stats.ScoreGain], family: int) -> str:
    c, gained = pairs[1], pairs[1].gain
    seeds = f'{gained.n} paired seed{"s" if gained.n > 1 else ""}'
    change = f'{abs(gained.mean):.{DIGITS}f} points {"higher" if gained.mean >= 0 else "lower"}'
    claim = f'**{c.arm}** has {change} pass@1 on {name} than {baseline}'
    if gained.n < 2:
        return f'{claim} on {seeds}: one pair gives no interval, so nothing is supported.'
    interval = f'{gained.low:+.{DIGITS}f} to {gained.high:+.{DIGITS}f}'
    p = f'p = {words.p_value(c.p)}'.replace('= <', '<')
    if math.isnan(gained.low):
        text = f'{claim}, the same in each of {seeds}: without spread there is no interval, so nothing is supported.'
    elif c.supported:
        text = f'{claim} (95 % interval {interval}; {seeds}, {p}): {words.support(c, family)}.'
    else:
        text = (
            f'**{c.arm}** on {name}: **not significant**. The 95 % interval of its gain in pass@1 over {baseline}, '
            f'{interval} points, includes zero (mean {gained.mean:+.{DIGITS}f}, {seeds}, {p}). The smallest detectable '
            f'difference at this seed spread with {gained.n} seeds is {c.detectable:.{DIGITS}f} points.'
        )
    others = (f'In pass@{k} the gain is {_points(pairs[k])} points: {words.verdict(pairs[k])}.' for k in pairs if k > 1)
    return ' '.join([text, *others])


def _floor(name: str, group: Group) -> list[str]:
    """A warning where scores are too near the bottom for their differences to mean much."""
    largest = all_ks(group)[-1]
    if all(record[f'pass@{largest}'] == 0 for by_seed in group.values() for record in finals(by_seed)):
        return [f'**No problem of {name} was solved in any run: conclude nothing from it.**']
    chance = 100 * _one(group).solved.get('chance_pass@1', 0.0)
    if any(level(finals(by_seed), 'pass@1').low > chance for by_seed in group.values()) or not chance:
        return []
    return [f'**On {name} no arm is above guessing ({chance:.1f} % pass@1) by its interval: conclude little from it.**']


def caveats(group: Group, found: Gains, baseline: str) -> list[str]:
    """What the intervals of a group do not cover, as far as the runs show it."""
    return words.arm_caveats(group, baseline, {arm: pairs is not None for arm, pairs in found.items()})


def _one(group: Group) -> runs.Run:
    return next(run for by_seed in group.values() for run in by_seed.values())


def _percent(records: Sequence[Mapping[str, Any] | None], name: str) -> str:
    if None in records:  # not evaluated in every seed
        return tables.NONE
    found = level(records, name)
    return tables.ranged(found.mean, found.low, found.high, DIGITS, sign='-')


def _points(c: stats.ScoreGain) -> str:
    return tables.ranged(c.gain.mean, c.gain.low, c.gain.high, DIGITS)
