"""pass@k of the runs of one benchmark: levels in percent, and paired gains in percentage points."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nca_jax.report import stats
from nca_jax.report.runs import Run, ks
from nca_jax.report.study import Group, members

# By arm and k, for k = 1 and the largest; None where an arm shares no seed with the baseline. Empty without the
# baseline.
Gains = Mapping[tuple[str, int], stats.Comparison | None]


def compare(group: Group, baseline: str) -> Gains:
    """Every arm but the baseline against it. Holm's p is over all arms and both k."""
    if baseline not in group:
        return {}
    gains = {}
    for arm in (arm for arm in group if arm != baseline):
        for k in shown_ks(group):
            ours, theirs = (
                {seed: 100 * run.solved[f'pass@{k}'] for seed, run in group[name].items()} for name in (arm, baseline)
            )
            gains[arm, k] = stats.compare(arm, ours, theirs)
    return stats.with_holm(gains)


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


def finals(by_seed: Mapping[int, Run]) -> list[dict[str, Any]]:
    """The results of an arm's runs at their ends."""
    return [run.solved for run in by_seed.values()]
