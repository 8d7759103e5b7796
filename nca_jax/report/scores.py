"""pass@k of the runs of one benchmark: levels in percent, and paired gains in percentage points."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nca_jax.report import stats
from nca_jax.report.records import ks
from nca_jax.report.runs import Run
from nca_jax.report.study import Group, members

# By arm and k, for k = 1 and the largest; None where an arm shares no seed with the baseline. Empty without the
# baseline.
Gains = Mapping[tuple[str, int], stats.Comparison | None]


def compare(group: Group, baseline: str) -> Gains:
    """Every arm but the baseline against it. Holm's p is over all arms and both k."""
    if baseline not in group:
        return {}
    pairs = [(arm, k) for arm in group if arm != baseline for k in shown_ks(group)]
    return stats.with_holm({(arm, k): gain(group, baseline, arm, k) for arm, k in pairs})


def gain(group: Group, baseline: str, arm: str, k: int) -> stats.Comparison | None:
    """The paired gain in pass@k. Pairs that all differ by the same have neither interval nor test."""
    ours, theirs = (
        {seed: 100 * run.solved[f'pass@{k}'] for seed, run in group[name].items()} for name in (arm, baseline)
    )
    c = stats.compare(arm, ours, theirs)
    # Losses never differ by the same; scores are counts, which may, and that shows no spread to judge by.
    if c is None or c.gain.sd != 0:
        return c
    unknown = dataclasses.replace(c.gain, low=math.nan, high=math.nan, p=math.nan)
    return dataclasses.replace(c, gain=unknown, detectable=math.nan)


def all_ks(group: Group) -> list[int]:
    """Each k for which the group has pass@k."""
    return ks(any_run(group).solved)


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


def finals(by_seed: Mapping[int, Run]) -> list[dict[str, Any]]:
    """The results of an arm's runs at their ends."""
    return [run.solved for run in by_seed.values()]


def any_run(group: Group) -> Run:
    """A run for what is the same in all: its protocol and the names of its scores."""
    return members(group)[0]
