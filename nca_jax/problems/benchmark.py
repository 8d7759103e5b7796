"""How many of a benchmark's problems a model solves: answers are sampled, graded and counted (arXiv 2603.10055)."""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
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
from nca_jax.problems import humaneval, passk
from nca_jax.problems.problem import Problem, Problems
from nca_jax.problems.sets import CODE, SOURCES, ProblemsConfig
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


# A problem with the tokens of its prompt.
Question = tuple[Problem, np.ndarray]


def make_evaluator(
    config: BenchmarkConfig,
    prepared: Problems,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    seed: int,
    folder: Path,
    progress: Progress = silent,
) -> Callable[[dict, int], dict]:
    """`evaluate(params, step)` -> `passk.metrics` of the test problems, and the counts of `ask`.

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
            problems, answers = [problem for problem, _ in missing], decode(params, prompts, seed)
            records |= write_records(config, prepared.tokenizer, problems, answers, file, progress)
        rows = [records[problem.id] for problem, _ in questions]
        # A program is right if it passes its tests, which need a sandbox.
        if config.problems.task == CODE:
            rows = humaneval.judged(rows, file, config.problems.path, config.run_code)
            if rows is None:
                return {'problems': len(questions), 'samples': config.samples} | counts
        return passk.metrics(rows, seed) | counts

    return evaluate


def ask(config: BenchmarkConfig, prepared: Problems, length: int, seed: int) -> tuple[list[Question], dict[str, int]]:
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
