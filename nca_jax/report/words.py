"""What an interval supports, in words. The interval decides; a p value alone never does."""

import math

from nca_jax.report import stats, tables
from nca_jax.report.study import Group

EVIDENCE_NOTE = (
    'SD is that of the paired differences. Detectable: the true difference that a two-sided 5 % paired t test on as '
    'many seeds finds with 80 % power, if the spread is the observed one (noncentral t); with few seeds the spread '
    'itself is uncertain. Holm p corrects for the comparisons of one table. Where all pairs differ by the same there '
    'is no spread, and so no interval and no test.'
)


def verdict(c: stats.Comparison | None, arm: str, baseline: str) -> str:
    """What the paired interval supports, in a word or two."""
    if c is None:
        return 'baseline' if arm == baseline else 'not compared'
    if c.gain.n < 2:
        return 'one seed: no interval'
    if math.isnan(c.gain.low):
        return 'no spread: no interval'
    # The interval alone decides between a difference and none.
    if not c.supported:
        return 'not significant'
    # Among many intervals some exclude zero by chance: Holm's p tempers the word.
    word = 'better' if c.gain.mean > 0 else 'worse'
    return word if c.holm < 1 - stats.LEVEL else f'{word}, not after Holm'


def uncompared(group: Group, baseline: str, place: str = '') -> list[str]:
    """A sentence for each arm that isn't compared, or one for all."""
    if not group:
        return []
    if baseline not in group:
        return [f'There is no finished run of the baseline {baseline}{place}, so no arm is compared.']
    # One sentence stands for all arms where no arm has a partner.
    if len(group) == 1:
        return [f'Only the baseline {baseline} has finished{place}, so no arm is compared.']
    unpaired = [arm for arm, by_seed in group.items() if not by_seed.keys() & group[baseline].keys()]
    return [f'**{arm}** shares no seed with {baseline}{place}, so it is not compared.' for arm in unpaired]


def finding(c: stats.Comparison, claim: str, interval: str, detectable: str) -> str:
    """A sentence or two: the difference in a reader's unit with its interval, and whether the seeds support it.

    detectable: the smallest detectable difference, with its unit.
    """
    pairs = f'{c.gain.n} paired seed{"s" if c.gain.n > 1 else ""}'
    if c.gain.n < 2:
        return f'{claim} on {pairs}: one pair gives no interval, so nothing is supported.'
    if math.isnan(c.gain.low):
        return f'{claim}, the same in each of {pairs}: without spread there is no interval, so nothing is supported.'
    evidence = f'95 % interval {interval}, {pairs}, p = {tables.p_value(c.gain.p)}'.replace('= <', '<')
    if not c.supported:
        return (
            f'{claim} ({evidence}): **not significant**, since the interval includes zero. The smallest detectable '
            f'difference at this seed spread with {c.gain.n} seeds is {detectable}.'
        )
    strength = '**supported**'
    # The interval is of one comparison, and one of many excludes zero by chance.
    if c.holm >= 1 - stats.LEVEL:
        strength = f"**supported on its own, but not after Holm's correction** (Holm p = {c.holm:.3f})"
    return f'{claim} ({evidence}): {strength}.'


def evidence(c: stats.Comparison, baseline: str, digits: int) -> dict[str, str]:
    """The columns that every table of comparisons has, which EVIDENCE_NOTE explains."""
    return {
        'comparison': f'{c.arm} - {baseline}',
        'pairs': str(c.gain.n),
        'SD': tables.number(c.gain.sd, digits),
        'detectable': tables.number(c.detectable, digits),
        'p': tables.p_value(c.gain.p),
        'Holm p': tables.p_value(c.holm),
    }


def caveats(group: Group, baseline: str) -> list[str]:
    """What the intervals of a group don't cover, as far as its runs show it."""
    if baseline not in group:
        return []
    notes, others = [], [arm for arm in group if arm != baseline]
    # Seeds that differ in this stage alone can't show how far another parent would move the result.
    parents = {arm: {run.parent['identity'] for run in group[arm].values() if run.parent} for arm in others}
    shared = [arm for arm in others if len(group[arm]) > 1 and len(parents[arm]) == 1]
    if shared:
        named = ' and of '.join(f'`{arm}`' for arm in shared)
        notes.append(
            f'All seeds of {named} start from one parent run: their intervals cover the chance of this stage, '
            f'not that of the stage before.'
        )
    for arm in others:
        unpaired = sorted(group[arm].keys() ^ group[baseline].keys())
        # An arm without any pair isn't compared at all, which a finding says.
        if unpaired and group[arm].keys() & group[baseline].keys():
            notes.append(f'Seeds without a partner between `{arm}` and `{baseline}`: {", ".join(map(str, unpaired))}.')
    return notes
