"""What the seeds support: t intervals, paired comparisons, detectable differences, and the paper's speed-up."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.80


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over n values with the 95 % t interval of the mean; with one value sd, low and high are nan."""

    mean: float
    low: float
    high: float
    sd: float
    n: int

    half = property(lambda self: (self.high - self.low) / 2)

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One arm against the baseline over the seeds that both have; gains are in nats per token, positive is better.

    speedups: per paired seed, scratch's tokens over the arm's at scratch's final perplexity, None = not reached;
    speedups_all counts the tokens before the stage too (None for the whole where they aren't known).
    p is the paired t test's, holm the same adjusted for all comparisons of the report; nan with fewer than two pairs.
    """

    arm: str
    seeds: tuple[int, ...]
    gain: Interval
    p: float
    speedups: tuple[float | None, ...]
    speedups_all: tuple[float | None, ...] | None
    detectable: float
    holm: float = math.nan

    @property
    def reduction(self) -> tuple[float, float, float]:
        """(mean, low, high) reduction of perplexity in percent: the gain's interval, transformed."""
        return tuple(-100 * math.expm1(-value) for value in (self.gain.mean, self.gain.low, self.gain.high))

    @property
    def supported(self) -> bool:
        """Whether the 95 % interval of the gain excludes zero (on its own, before Holm)."""
        return self.gain.excludes_zero


@dataclasses.dataclass(frozen=True)
class ScoreGain:
    """One arm against the baseline in one score of solved problems, over the seeds that both have.

    gain and detectable are in percentage points, the arm's percent minus the baseline's. p and holm are as in
    Comparison. Scores are counts, so that the pairs may all differ by the same: they then show no spread to judge by,
    and the interval, detectable and p are nan as with one pair.
    """

    arm: str
    seeds: tuple[int, ...]
    gain: Interval
    p: float
    detectable: float
    holm: float = math.nan

    @property
    def supported(self) -> bool:
        """Whether the 95 % interval of the gain excludes zero (on its own, before Holm)."""
        return self.gain.excludes_zero


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and two-sided 95 % t interval of the mean over independent values, n >= 1."""
    values = np.asarray(values, float)
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, math.nan, math.nan, math.nan, n)
    sd = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n)


def paired_p(gain: Interval) -> float:
    """Two-sided p of the paired t test from the differences' mean and sd; nan with fewer than two pairs."""
    if gain.n < 2:
        return math.nan
    if gain.sd == 0:
        return 1.0 if gain.mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(gain.mean) / (gain.sd / math.sqrt(gain.n)), gain.n - 1))


def detectable(sd: float, n: int) -> float:
    """The smallest true difference that a two-sided 5 % paired t test with n pairs finds with 80 % power.

    By the noncentral t distribution at the observed sd of the differences; nan with fewer than two pairs.
    """
    return math.nan if n < 2 else _noncentrality(n - 1) * sd / math.sqrt(n)


@functools.cache
def _noncentrality(df: int) -> float:
    critical = stats.t.ppf((1 + LEVEL) / 2, df)

    def power(delta: float) -> float:
        # The survival function at -t, mirrored: nct.cdf(-t, df, delta) itself loses all digits for a large delta.
        return stats.nct.sf(critical, df, delta) + stats.nct.sf(critical, df, -delta)

    return float(optimize.brentq(lambda delta: power(delta) - POWER, 0.1, 4 * critical))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the given order; nan (not tested) stays nan and isn't counted."""
    tested = sorted((p, index) for index, p in enumerate(ps) if not math.isnan(p))
    adjusted, largest = list(ps), 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = largest
    return adjusted


def crossing(tokens: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """Tokens at which a curve crosses the perplexity exp(target) for the last time, None if it ends above it.

    Linear in perplexity between evaluations. A curve that was never above the target crossed before its first
    evaluation: that evaluation's tokens are returned, and a speed-up made of them is understated.
    """
    perplexities = np.exp(np.asarray(losses, float))
    above = np.flatnonzero(perplexities > math.exp(target))
    if len(above) == 0:
        return float(tokens[0])
    i = int(above[-1])
    if i == len(perplexities) - 1:
        return None
    share = (perplexities[i] - math.exp(target)) / (perplexities[i] - perplexities[i + 1])
    return float(tokens[i] + share * (tokens[i + 1] - tokens[i]))


def speedup(curve: tuple, baseline: tuple, earlier_tokens: float = 0) -> float | None:
    """The paper's speed-up of one run over its baseline, each (tokens, losses); None if never reached.

    The baseline's final token count over the tokens (plus `earlier_tokens`) at which the run crosses the baseline's
    final perplexity.
    """
    tokens, losses = baseline
    reached = crossing(*curve, losses[-1])
    if reached is None:
        return None
    spent = reached + earlier_tokens
    return float(tokens[-1]) / spent if spent > 0 else math.inf


def compare(
    arm: str, curves: Mapping[int, tuple], baseline: Mapping[int, tuple], earlier: Mapping
) -> Comparison | None:
    """Compares an arm with the baseline, both {seed: (tokens, losses)}, over common seeds; None if there are none.

    earlier: {seed: tokens consumed before this stage, or None if unknown}.
    """
    seeds = tuple(sorted(curves.keys() & baseline.keys()))
    if not seeds:
        return None
    gain = t_interval([baseline[s][1][-1] - curves[s][1][-1] for s in seeds])
    known = all(earlier[s] is not None for s in seeds)
    return Comparison(
        arm=arm,
        seeds=seeds,
        gain=gain,
        p=paired_p(gain),
        speedups=tuple(speedup(curves[s], baseline[s]) for s in seeds),
        speedups_all=tuple(speedup(curves[s], baseline[s], earlier[s]) for s in seeds) if known else None,
        detectable=detectable(gain.sd, gain.n),
    )


def compare_all(
    curves: Mapping[str, Mapping[int, tuple]], earlier: Mapping, baseline: str
) -> dict[str, Comparison | None]:
    """Every arm but the baseline against it, {arm: Comparison}, with Holm-adjusted p; empty without the baseline."""
    if baseline not in curves:
        return {}
    found = {arm: compare(arm, curves[arm], curves[baseline], earlier[arm]) for arm in curves if arm != baseline}
    tested = [c for c in found.values() if c]
    adjusted = holm([c.p for c in tested])
    return found | {c.arm: dataclasses.replace(c, holm=p) for c, p in zip(tested, adjusted, strict=True)}


def score_gain(arm: str, ours: Mapping[int, float], theirs: Mapping[int, float]) -> ScoreGain | None:
    """Compares an arm's scores with the baseline's, both {seed: share in 0..1}, over common seeds; None if none is."""
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    if not seeds:
        return None
    # Shares of the same counts differ in their last digits, which are no spread.
    gain = t_interval([round(100 * (ours[seed] - theirs[seed]), 9) for seed in seeds])
    if gain.n < 2 or gain.sd == 0:
        return ScoreGain(arm, seeds, dataclasses.replace(gain, low=math.nan, high=math.nan), math.nan, math.nan)
    return ScoreGain(arm, seeds, gain, paired_p(gain), detectable(gain.sd, gain.n))


def mean_curve(curves: Sequence[tuple]) -> tuple[np.ndarray, list[Interval]]:
    """(tokens, interval over curves at each) where all curves were evaluated at the same token counts."""
    common = functools.reduce(np.intersect1d, [tokens for tokens, _ in curves])
    at = [dict(zip(tokens.tolist(), values, strict=True)) for tokens, values in map(_arrays, curves)]
    return common, [t_interval([values[t] for values in at]) for t in common.tolist()]


def _arrays(curve: tuple) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(curve[0], float), np.asarray(curve[1], float)


def difference_curve(curve: tuple, baseline: tuple) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, baseline minus curve) at the token counts of both: the gain of one pair as it trains."""
    (a, ours), (b, theirs) = _arrays(curve), _arrays(baseline)
    common, i, j = np.intersect1d(a, b, return_indices=True)
    return common, theirs[j] - ours[i]
