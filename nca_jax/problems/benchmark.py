"""How many of a benchmark's problems a model solves: answers are sampled, graded and counted (arXiv 2603.10055).

Scores are pass@k from n samples a problem, with its interval, beside what guessing would reach.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from nca_jax import distributed, files, keys
from nca_jax.checkpoint.manifest import leaf_table
from nca_jax.data import tokenizer as bpe
from nca_jax.decode.decoder import Answer, DecodeConfig, Prompt, make_decoder
from nca_jax.decode.sampling import Sampling, cut, make_stops
from nca_jax.errors import check
from nca_jax.model.config import ModelConfig
from nca_jax.problems.problem import Problem, Problems
from nca_jax.problems.sets import CODE, SOURCES, ProblemsConfig, judged
from nca_jax.progress import Progress, silent
from nca_jax.sandbox import pool


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Test problems to answer, and how answers are sampled."""

    problems: ProblemsConfig
    # Problems of each task at most, 0 for all.
    limit: int
    # Worked examples before each problem.
    shots: int
    # Answers to each problem, and the most tokens of one.
    samples: int
    max_tokens: int
    # Strings that end an answer, as the end of text does.
    stops: tuple[str, ...]
    sampling: Sampling
    batch: DecodeConfig
    # Whether programs are run, in a sandbox, or only written for the judge.
    run_code: bool

    def __post_init__(self):
        check(self.limit >= 0, 'limit', self.limit, 'must be 0 (all) or more')
        check(self.shots >= 0, 'shots', self.shots, 'must be 0 or more')
        code = self.problems.task == CODE
        check(not (code and self.shots), 'shots', self.shots, f'must be 0 for {CODE}, which has no training problems')
        for field in ('samples', 'max_tokens'):
            check(getattr(self, field) > 0, field, getattr(self, field), 'must be positive')
        check(all(self.stops), 'stops', self.stops, 'must hold no empty string')
        check(code or not self.run_code, 'run_code', self.run_code, f'must be false unless the task is {CODE}')


# The k of pass@k.
KS = (1, 2, 4, 8, 16, 32)


def make_evaluator(
    config: BenchmarkConfig,
    prepared: Problems,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    seed: int,
    folder: Path,
    progress: Progress = silent,
) -> Callable[[dict, int], dict]:
    """`evaluate(params, step)` -> `metrics` of the test problems, and the counts of `ask`.

    - A problem's answers depend on the seed, its id, the sample's number, its shots, the protocol and the weights.
    - They are written to `folder` as they come, and an evaluation that was killed continues with them.
    - Programs count once they are judged; until then the metrics have counts alone.
    """
    if config.run_code:
        # A machine without a layer of the sandbox is told so before any answer is sampled.
        distributed.first(lambda: distributed.is_first() and pool.Sandbox(workers=1).close())
    questions, counts = ask(config, prepared, model.length, seed)
    fields = dataclasses.asdict(config)
    depends_on = [
        # Not the layout of the batch, which changes no answer.
        {name: fields[name] for name in ('shots', 'max_tokens', 'samples', 'stops', 'sampling')},
        seed,
        prepared.identity,
        # Records are found by id, and the identity of the problems leaves ids out.
        [problem.id for problem in prepared.splits['test']],
    ]
    stops = make_stops([bpe.end_of_text(prepared.tokenizer)], config.stops, bpe.pieces(prepared.tokenizer))
    decode = make_decoder(model, prepared.vocab, mesh, config.batch, config.sampling, stops)

    def evaluate(params: dict, step: int) -> dict:
        # The hash in the name keeps other evaluations from continuing this one.
        content = json.dumps([*depends_on, leaf_table(params)], sort_keys=True)
        file = folder / f'step-{step}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.jsonl'
        records = distributed.first(lambda: {record['id']: record for record in files.read_records(file)})
        if missing := [question for question in questions if question[0].id not in records]:
            samples, limits = range(config.samples), [config.max_tokens] * config.samples
            prompts = [Prompt(tokens, int(keys.crc32(problem.id)), samples, limits) for problem, tokens in missing]
            problems = [problem for problem, _ in missing]
            answers = decode(params, prompts, seed)
            records |= write_records(config, prepared.tokenizer, problems, answers, file, progress)
        rows = [records[problem.id] for problem, _ in questions]
        # A program is right if it passes its tests, which need a sandbox.
        if config.problems.task == CODE:
            rows = judged(rows, file, config.problems.path, config.run_code)
            if rows is None:
                return {'problems': len(questions), 'samples': config.samples} | counts
        return metrics(rows, seed) | counts

    return evaluate


def ask(
    config: BenchmarkConfig, prepared: Problems, length: int, seed: int
) -> tuple[list[tuple[Problem, np.ndarray]], dict[str, int]]:
    """The first `limit` test problems of each task with the tokens of their prompts, laid out as in training.

    The earliest shots are dropped where a prompt would leave no room for an answer. Also returns the counts of
    prompts with fewer_shots for that reason, and of problems left_out since even their own prompt is too long.
    """
    prepared.check_shots('test', config.shots, 'config.benchmark.shots')
    questions, counts, seen = [], {'left_out': 0, 'fewer_shots': 0}, collections.Counter()
    for number, problem in enumerate(prepared.splits['test']):
        # Problems come in random order, so a task's first ones are a random sample; limit 0 takes all.
        seen[problem.task] += 1
        if config.limit and seen[problem.task] > config.limit:
            continue
        own = prepared.tokens['test'][number].prompt
        room = length - config.max_tokens - len(own)
        if room < 0:
            counts['left_out'] += 1
            continue
        count, name = (config.shots, config.shots), f'{seed}/few_shot/{problem.id}'
        shots, dropped = prepared.draw_shots(name, 'test', number, count, room)
        counts['fewer_shots'] += dropped > 0
        questions.append((problem, np.concatenate([*itertools.chain(*shots), own])))
    allowed = f'must leave room for a prompt of {config.problems.task} in config.model.length = {length}'
    check(bool(questions), 'config.benchmark.max_tokens', config.max_tokens, allowed)
    return questions, counts


def write_records(
    config: BenchmarkConfig,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    answers: Iterable[Answer],
    file: Path,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """Returns the problems' records by id, and appends each to the file as soon as its samples are there."""
    end, is_right = bpe.end_of_text(tokenizer), SOURCES[config.problems.task].is_right
    texts: list[dict[int, str]] = [{} for _ in problems]
    records = {}
    # The other processes decode the same answers and keep them in memory alone.
    first = distributed.is_first()
    distributed.first(lambda: first and files.cut_partial_line(file))
    with open(file if first else os.devnull, 'a') as stream:
        for count, answer in enumerate(answers, 1):
            problem, own = problems[answer.prompt], texts[answer.prompt]
            # A stop string may end within a token, so the text is cut, not the tokens.
            text = tokenizer.decode([token for token in answer.tokens.tolist() if token != end])
            own[answer.sample] = cut(text, config.stops)
            progress('answers', count, len(problems) * config.samples)
            # Samples of a problem come in any order, and a record needs all of them.
            if len(own) == config.samples:
                records[problem.id] = record(problem, [own[number] for number in sorted(own)], is_right)
                print(json.dumps(records[problem.id]), file=stream, flush=True)
    return records


def record(problem: Problem, texts: Sequence[str], is_right: Callable[..., bool] | None) -> dict[str, Any]:
    """A line of the file of answers. Programs have None for whether they are right."""
    return {
        'id': problem.id,
        'task': problem.task,
        'answers': problem.answers,
        'choices': problem.choices,
        'texts': texts,
        'correct': [is_right and is_right(text, problem.answers) for text in texts],
    }


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
    """Scores for each k of KS for which every problem has samples. A row is a problem's `record`.

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
    low, high = stats.bootstrap(
        # SciPy refuses a single observation. Twice the same one has the same resamples.
        [np.repeat(score, 2) if len(score) == 1 else score for score in scores],
        lambda *samples, axis: np.mean([np.mean(sample, axis=axis) for sample in samples], axis=0),
        n_resamples=2000,
        # Resamples that are in memory at a time.
        batch=20,
        confidence_level=0.95,
        method='percentile',
        rng=seed,
    ).confidence_interval
    return float(low), float(high)
