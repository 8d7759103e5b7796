"""pass@k from n samples a problem, how sure it is, and what guessing would reach."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from nca_jax.errors import UserError, check

KS = (1, 2, 4, 8, 16, 32)
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A problem's result: `correct` of its `samples`.

    choices: how many options it offers, 0 for open answers. right: how many of these are right, 0 for open answers.
    """

    samples: int
    correct: int
    choices: int
    right: int
    task: str

    def __post_init__(self):
        check(self.samples >= 1, 'samples', self.samples, 'must be 1 or more')
        check(0 <= self.correct <= self.samples, 'correct', self.correct, f'must be in 0..{self.samples}')
        check(self.choices == 0 or self.choices >= 2, 'choices', self.choices, 'must be 0, or 2 or more')
        allowed = f'must be in {min(1, self.choices)}..{self.choices}, the number of choices'
        check(min(1, self.choices) <= self.right <= self.choices, 'right', self.right, allowed)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the chance that k of the n samples, drawn without replacement, have a right one.

    The unbiased estimator of Chen et al., arXiv 2107.03374, as one division of whole numbers. FieldError for k > n.
    """
    check(1 <= k <= samples, 'k', k, f'must be in 1..{samples}, the number of samples')
    check(0 <= correct <= samples, 'correct', correct, f'must be in 0..{samples}')
    draws = math.comb(samples, k)
    return (draws - math.comb(samples - correct, k)) / draws


def chance_pass_at_k(choices: int, right: int, k: int) -> float:
    """The chance that one of k independent uniform guesses is among the right choices; 0 for open answers."""
    return 1 - (1 - right / choices) ** k if choices else 0.0


def normalised(mean: float, chance: float) -> float:
    """max(0, (m - chance) / (1 - chance)): 0 is guessing and 1 is all right; 0 where every guess is right."""
    check(0 <= chance <= 1, 'chance', chance, 'must be in 0..1')
    return max(0.0, (mean - chance) / (1 - chance)) if chance < 1 else 0.0


def metrics(outcomes: Sequence[Outcome], seed: int) -> dict[str, float]:
    """What an evaluator returns, for each k of KS that every problem has samples for.

    `pass@k`: the mean over tasks of the mean over a task's problems, and its 95 % interval `pass@k_low`, `pass@k_high`
    (see `interval`). `TASK/pass@k` where there are several tasks. Where any problem has choices: `chance_pass@k`, what
    guessing reaches; `normalised@k`, the paper's score (arXiv 2603.10055), in which a task's chance is the mean of 1/c
    over its rows with each row's own c; `normalised_by_chance@k`, the same against chance pass@k, which flatters
    neither k > 1 nor rows with several right choices. `problems` and `samples` are the counts, the least where they
    differ.
    """
    if not outcomes:
        raise UserError('pass@k: no problem was evaluated')
    tasks = sorted({outcome.task for outcome in outcomes})
    groups = [[outcome for outcome in outcomes if outcome.task == task] for task in tasks]
    fewest = min(outcome.samples for outcome in outcomes)
    found: dict[str, float] = {'problems': len(outcomes), 'samples': fewest}
    single = _task_means(groups, lambda o: 1 / o.choices if o.choices else 0.0)
    for k in (k for k in KS if k <= fewest):
        scores = [np.array([pass_at_k(o.samples, o.correct, k) for o in group]) for group in groups]
        means = [float(np.mean(score)) for score in scores]
        found[f'pass@{k}'] = float(np.mean(means))
        found[f'pass@{k}_low'], found[f'pass@{k}_high'] = interval(scores, seed)
        if len(tasks) > 1:
            found |= {f'{task}/pass@{k}': mean for task, mean in zip(tasks, means, strict=True)}
        if any(outcome.choices for outcome in outcomes):
            chance = _task_means(groups, lambda o, k=k: chance_pass_at_k(o.choices, o.right, k))
            found[f'chance_pass@{k}'] = float(np.mean(chance))
            found[f'normalised@{k}'] = float(np.mean([*map(normalised, means, single)]))
            found[f'normalised_by_chance@{k}'] = float(np.mean([*map(normalised, means, chance)]))
    return found


def interval(scores: Sequence[np.ndarray], seed: int) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the mean over tasks of their means, from RESAMPLES of a fixed seed.

    scores: an array of each task's problems. Problems are drawn anew within each task. The tasks are taken as they
    are: it says how far other problems of the same tasks would move the score. Equal scores have no width.
    """
    generator = np.random.default_rng(seed)
    means_R = np.zeros(RESAMPLES)
    for score_P in scores:
        for part in np.array_split(np.arange(RESAMPLES), 20):  # a share of the memory
            drawn_RxP = generator.integers(len(score_P), size=(len(part), len(score_P)))
            means_R[part] += score_P[drawn_RxP].mean(axis=1) / len(scores)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means_R, (tail, 1 - tail))
    return float(low), float(high)


def _task_means(groups: Sequence[Sequence[Outcome]], score: Callable[[Outcome], float]) -> list[float]:
    return [float(np.mean([score(outcome) for outcome in group])) for group in groups]
