"""pass@k from n samples a problem, its interval, and what guessing would reach."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

KS = (1, 2, 4, 8, 16, 32)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k), the unbiased estimator of Chen et al., arXiv 2107.03374. k is at most n.

    It is the chance that k of the n samples, drawn without replacement, have a right one.
    """
    # Whole numbers and one division: exact where floats would overflow or cancel.
    draws = math.comb(samples, k)
    return (draws - math.comb(samples - correct, k)) / draws


def chance_pass_at_k(choices: int, right: int, k: int) -> float:
    """The chance that one of k independent uniform guesses is among the right choices; 0 for open answers."""
    return 1 - (1 - right / choices) ** k if choices else 0.0


def normalised(mean: float, chance: float) -> float:
    """max(0, (mean - chance) / (1 - chance)): 0 is guessing and 1 is all right."""
    # Where every guess is right, a score says nothing.
    return max(0.0, (mean - chance) / (1 - chance)) if chance < 1 else 0.0


def metrics(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, float]:
    """Scores for each k of KS for which every problem has samples. A row is a problem's record; see benchmark.

    - problems, samples: counts; the least number of samples where they differ.
    - pass@k: the mean over tasks of the mean over a task's problems.
    - pass@k_low, pass@k_high: its interval, see `interval`.
    - TASK/pass@k: the means of several tasks.

    If any problem has choices:

    - chance_pass@k: what guessing reaches.
    - normalised@k: the paper's score (arXiv 2603.10055). A task's chance is the mean of 1/choices over its rows.
    - normalised_by_chance@k: the same with chance_pass@k as the chance, which flatters neither k > 1 nor rows with
      several right choices.
    """
    tasks = sorted({row['task'] for row in rows})
    groups = [[row for row in rows if row['task'] == task] for task in tasks]
    samples = min(len(row['correct']) for row in rows)
    result: dict[str, float] = {'problems': len(rows), 'samples': samples}

    def task_means(score: Callable[[Mapping[str, Any]], float]) -> list[float]:
        return [float(np.mean([score(row) for row in group])) for group in groups]

    # The paper compares pass@k of any k with a single guess.
    single = task_means(lambda row: 1 / row['choices'] if row['choices'] else 0.0)
    for k in (k for k in KS if k <= samples):
        scores = [np.array([pass_at_k(len(r['correct']), sum(r['correct']), k) for r in group]) for group in groups]
        means = [float(np.mean(score)) for score in scores]
        result[f'pass@{k}'] = float(np.mean(means))
        # The same seed for every k, so that their intervals are of the same resamples.
        result[f'pass@{k}_low'], result[f'pass@{k}_high'] = interval(scores, seed)
        if len(tasks) > 1:
            result |= {f'{task}/pass@{k}': mean for task, mean in zip(tasks, means, strict=True)}
        if any(row['choices'] for row in rows):
            chance = task_means(lambda row, k=k: chance_pass_at_k(row['choices'], len(row['answers']), k))
            result[f'chance_pass@{k}'] = float(np.mean(chance))
            result[f'normalised@{k}'] = float(np.mean([*map(normalised, means, single)]))
            result[f'normalised_by_chance@{k}'] = float(np.mean([*map(normalised, means, chance)]))
    return result


def interval(scores: Sequence[np.ndarray], seed: int) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the mean over tasks of their means. `scores` has an array for each task."""
    # Imported here, since it takes a second and only a benchmark needs it.
    from scipy import stats

    # Problems are drawn anew within each task and the tasks stay: the interval says how far other problems of the same
    # tasks would move the score.

    def mean_of_means(*samples: np.ndarray, axis: int) -> np.ndarray:
        return np.mean([np.mean(sample, axis=axis) for sample in samples], axis=0)

    low, high = stats.bootstrap(
        # SciPy refuses a single observation. Twice the same one has the same resamples.
        [np.repeat(score, 2) if len(score) == 1 else score for score in scores],
        mean_of_means,
        n_resamples=2000,
        # Resamples that are in memory at a time.
        batch=20,
        confidence_level=0.95,
        method='percentile',
        rng=seed,
    ).confidence_interval
    return float(low), float(high)
