"""Statistics over seeds: t intervals, paired comparisons, detectable differences, the paper's speed-up, and words.

The interval decides what is said; a p value alone never does.
"""

import dataclasses
import functools
import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from scipy import optimize, stats

from nca_jax.report import tables
from nca_jax.report.runs import Group

LEVEL = 0.95
# The usual power of a study's plan.
POWER = 0.80
EVIDENCE_NOTE = (
    'SD is that of the paired differences. Detectable: the true difference that a two-sided 5 % paired t test on as '
    'many seeds finds with 80 % power, if the spread is the observed one (noncentral t); with few seeds the spread '
    'itself is uncertain. Holm p corrects for the comparisons of one table. Where all pairs differ by the same there '
    'is no spread, and so no interval and no test.'
)

# Tokens and the loss at each, or k and pass@k.
Curve = tuple[Sequence[float], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Interval:
    """The mean of n values with its 95 % t interval, and the t test of a mean of zero; nan where it has none."""

    mean: float
    low: float
    high: float
    sd: float
    n: int
    p: float

    # (mean, low, high), which a table's cell shows.
    shown = property(lambda self: (self.mean, self.low, self.high))
    half = property(lambda self: (self.high - self.low) / 2)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One arm against the baseline, over the seeds that both have."""

    arm: str
    seeds: tuple[int, ...]
    # The mean of the paired differences; positive is better. Its p is that of the paired t test.
    gain: Interval
    # The smallest true difference that so many pairs would find.
    detectable: float
    # p after Holm's correction for all comparisons of one table; nan before it is made.
    holm: float = math.nan

    # Whether the 95 % interval of the gain excludes zero (on its own, before Holm).
    supported = property(lambda self: self.gain.low > 0 or self.gain.high < 0)


def t_interval(values: Sequence[float]) -> Interval:
    """The mean of independent values, n >= 1, with its two-sided 95 % t interval and t test."""
    # Equal shares differ in their last binary digits, which is no spread.
    values = np.round(np.asarray(values, float), 9)
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, math.nan, math.nan, math.nan, n, math.nan)
    # scipy divides by the spread.
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean, 0.0, n, math.nan)
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(LEVEL)
    return Interval(mean, float(low), float(high), float(np.std(values, ddof=1)), n, float(test.pvalue))


def compare(arm: str, ours: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison | None:
    """An arm's {seed: score}, where higher is better, against the baseline's, paired by seed; None without a pair."""
    seeds = tuple(sorted(ours.keys() & baseline.keys()))
    if not seeds:
        return None
    # The paired t test is the t test of the differences.
    gain = t_interval([ours[seed] - baseline[seed] for seed in seeds])
    # Counts of solved problems may differ by the same in all pairs, which shows no spread to judge by.
    if gain.sd == 0:
        return Comparison(arm, seeds, dataclasses.replace(gain, low=math.nan, high=math.nan), math.nan)
    return Comparison(arm, seeds, gain, detectable(gain.sd, gain.n))


def detectable(sd: float, n: int) -> float:
    """The smallest true difference that a two-sided 5 % t test finds in n pairs with 80 % power; nan for n < 2."""
    if n < 2:
        return math.nan
    critical = stats.t.ppf((1 + LEVEL) / 2, n - 1)

    def excess_power(delta: float) -> float:
        # The survival function at -t, mirrored: nct.cdf(-t, df, delta) itself loses all digits for a large delta.
        return stats.nct.sf(critical, n - 1, delta) + stats.nct.sf(critical, n - 1, -delta) - POWER

    # The spread is the observed one, so that the noncentrality is the difference in standard errors.
    return float(optimize.brentq(excess_power, 0.1, 4 * critical)) * sd / math.sqrt(n)


def with_holm(comparisons: Mapping[Hashable, Comparison | None]) -> dict[Hashable, Comparison]:
    """The comparisons of one table that have a pair, under their keys, with Holm's step-down adjusted p values."""
    made = {key: c for key, c in comparisons.items() if c}
    # A comparison without an interval has no test, and isn't counted.
    tested = sorted((c.gain.p, key) for key, c in made.items() if not math.isnan(c.gain.p))
    largest = 0.0
    for rank, (p, key) in enumerate(tested):
        # Adjusted p values keep the order of the p values.
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        made[key] = dataclasses.replace(made[key], holm=largest)
    return made


def crossing(tokens: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """Tokens at which a curve crosses the perplexity exp(target) for the last time, None if it ends above it."""
    perplexities = np.exp(np.asarray(losses, float))
    above = np.flatnonzero(perplexities > math.exp(target))
    # It crossed before its first evaluation, whose tokens understate the speed-up.
    if len(above) == 0:
        return float(tokens[0])
    i = int(above[-1])
    if i == len(perplexities) - 1:
        return None
    # Linear in perplexity between two evaluations.
    share = (perplexities[i] - math.exp(target)) / (perplexities[i] - perplexities[i + 1])
    return float(tokens[i] + share * (tokens[i + 1] - tokens[i]))


def speedup(curve: Curve, baseline: Curve, earlier_tokens: float = 0) -> float | None:
    """The paper's speed-up: the baseline's tokens over those at which the run crosses the baseline's final perplexity.

    None where it never does; `earlier_tokens` were consumed before the curve begins.
    """
    tokens, losses = baseline
    reached = crossing(*curve, losses[-1])
    if reached is None:
        return None
    spent = reached + earlier_tokens
    # A run that carries weights may be better before its first token.
    return float(tokens[-1]) / spent if spent > 0 else math.inf


def mean_curve(curves: Sequence[Curve]) -> tuple[np.ndarray, list[Interval]]:
    """(tokens, interval over curves at each) where all curves were evaluated at the same token counts."""
    # Runs of another length or interval share only some evaluations.
    common = functools.reduce(np.intersect1d, [tokens for tokens, _ in curves])
    values = [np.asarray(losses)[np.isin(tokens, common)] for tokens, losses in curves]
    return common, [t_interval(at_one_count) for at_one_count in zip(*values, strict=True)]


def difference_curve(curve: Curve, baseline: Curve) -> tuple[np.ndarray, np.ndarray]:
    """(x, curve minus baseline) at the x of both."""
    common, i, j = np.intersect1d(curve[0], baseline[0], return_indices=True)
    return common, np.asarray(curve[1])[i] - np.asarray(baseline[1])[j]


def verdict(c: Comparison | None, arm: str, baseline: str) -> str:
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
    return word if c.holm < 1 - LEVEL else f'{word}, not after Holm'


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


def finding(c: Comparison, claim: str, interval: str, detectable: str) -> str:
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
    if c.holm >= 1 - LEVEL:
        strength = f"**supported on its own, but not after Holm's correction** (Holm p = {c.holm:.3f})"
    return f'{claim} ({evidence}): {strength}.'


def evidence(c: Comparison, baseline: str, digits: int) -> dict[str, str]:
    """The columns that every table of comparisons has, which EVIDENCE_NOTE explains."""
    return {
        'comparison': f'{c.arm} - {baseline}',
        'pairs': str(c.gain.n),
        'SD': tables.number(c.gain.sd, digits),
        'detectable': tables.number(c.detectable, digits),
        'p': tables.p_value(c.gain.p),
        'Holm p': tables.p_value(c.holm),
    }


def caveat(group: Group) -> str:
    """A note on what the intervals of a group don't cover, as far as its runs show it; '' for nothing."""
    shared = []
    for arm, by_seed in group.items():
        parents = {run.parent['identity'] for run in by_seed.values() if run.parent}
        # Seeds that differ in this stage alone can't show how far another parent would move the result.
        if len(by_seed) > 1 and len(parents) == 1:
            shared.append(f'`{arm}`')
    if not shared:
        return ''
    return (
        f'All seeds of {" and of ".join(shared)} start from one parent run: their intervals cover the chance of this '
        'stage, not that of the stage before.'
    )
