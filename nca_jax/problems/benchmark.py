"""How many of a benchmark's problems a model solves: answers are sampled, graded and counted (arXiv 2603.10055)."""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nca_jax import distributed, files, keys
from nca_jax.checkpoint.manifest import leaf_table
from nca_jax.data import tokenizer as bpe
from nca_jax.decode.decoder import DecodeConfig, make_decoder
from nca_jax.decode.sampling import Sampling, cut, make_stops
from nca_jax.decode.schedule import Prompt
from nca_jax.errors import UserError, check
from nca_jax.model.config import ModelConfig
from nca_jax.problems import answers, humaneval, passk
from nca_jax.problems.problem import Problem
from nca_jax.problems.sets import CODE, SOURCES, Problems, ProblemsConfig
from nca_jax.problems.shots import PreparedProblems, last_that_fit
from nca_jax.progress import bars, silent
from nca_jax.sandbox import pool

# The fields of a config on which answers depend, besides the problems.
PROTOCOL = ('shots', 'max_tokens', 'samples', 'stops', 'sampling')
# The fields of a line of answers.
FIELDS = ('id', 'task', 'answers', 'choices', 'texts', 'correct')


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


def make_evaluator(
    config: BenchmarkConfig,
    prepared: PreparedProblems,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    seed: int,
    folder: Path,
) -> Callable[[dict, int], dict]:
    """`evaluate(params, step)` -> `passk.metrics` of the test problems, and the counts of `ask`.

    - A problem's answers depend on the seed, its id, the sample's number, its shots, the protocol and the weights.
    - They are written to `folder` as they come, and an evaluation that was killed continues with them.
    - Programs count once they are judged; until then the metrics have counts alone.
    """
    task, is_right = config.problems.task, SOURCES[config.problems.task].is_right
    problems, tokenizer, end = prepared.problems, prepared.tokenizer, bpe.end_of_text(prepared.tokenizer)
    _check_grading(config, problems)
    questions, counts = ask(config, prepared, model.length, seed)
    stops = make_stops([end], config.stops, bpe.pieces(tokenizer))
    decode = make_decoder(model, prepared.vocab, mesh, config.batch, config.sampling, stops)
    depends_on = _depends_on(config, prepared, seed)

    def grade(problem: Problem, tokens: Sequence[int]) -> tuple[str, bool | None]:
        text = cut(tokenizer.decode([token for token in tokens if token != end]), config.stops)
        return text, is_right and is_right(text, problem.answers)

    def sample(params: dict, file: Path, records: dict[str, dict]) -> None:
        """Adds the missing records, and appends them to the file."""
        missing = [(problem, tokens) for problem, tokens in questions if problem.id not in records]
        if not missing:
            return
        samples, limits = range(config.samples), [config.max_tokens] * config.samples
        prompts = [Prompt(tokens, int(keys.crc32(problem.id)), samples, limits) for problem, tokens in missing]
        graded: list[dict[int, tuple[str, bool | None]]] = [{} for _ in missing]
        first = distributed.is_first()
        distributed.first(lambda: first and files.cut_partial_line(file))
        # The other processes decode the same answers and keep them in memory alone.
        shown = bars() if first else contextlib.nullcontext(silent)
        with open(file if first else os.devnull, 'a') as stream, shown as progress:
            for count, answer in enumerate(decode(params, prompts, seed), 1):
                problem, own = missing[answer.prompt][0], graded[answer.prompt]
                own[answer.sample] = grade(problem, answer.tokens.tolist())
                progress('answers', count, len(missing) * config.samples)
                if len(own) == config.samples:
                    records[problem.id] = record(problem, [own[number] for number in samples])
                    print(json.dumps(records[problem.id]), file=stream, flush=True)

    def evaluate(params: dict, step: int) -> dict:
        # The hash in the name keeps other evaluations from continuing this one.
        content = json.dumps([*depends_on, leaf_table(params)], sort_keys=True)
        file = folder / f'step-{step}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.jsonl'
        records = distributed.first(lambda: read_answers(file))
        sample(params, file, records)
        rows = [records[problem.id] for problem, _ in questions]
        if task == CODE:
            rows = humaneval.judged(rows, file, config.problems.path, config.run_code)
            if rows is None:
                return {'problems': len(questions), 'samples': config.samples} | counts
        return passk.metrics([_outcome(row) for row in rows], seed) | counts

    return evaluate


def ask(
    config: BenchmarkConfig, prepared: PreparedProblems, length: int, seed: int
) -> tuple[list[tuple[Problem, np.ndarray]], dict[str, int]]:
    """The first `limit` test problems of each task with the tokens of their prompts, laid out as in training.

    The earliest shots are dropped where a prompt would leave no room for an answer. Also returns the counts of
    prompts with fewer_shots for that reason, and of problems left_out since even their own prompt is too long.
    """
    prepared.check_shots('test', config.shots, 'config.benchmark.shots')
    questions, counts, seen = [], {'left_out': 0, 'fewer_shots': 0}, collections.Counter()
    for number, problem in enumerate(prepared.problems.splits['test']):
        seen[problem.task] += 1
        if config.limit and seen[problem.task] > config.limit:
            continue
        own = prepared.tokens['test'][number].prompt
        room = length - config.max_tokens - len(own)
        if room < 0:
            counts['left_out'] += 1
            continue
        shots = prepared.draw_shots(f'{seed}/few_shot/{problem.id}', 'test', number, (config.shots, config.shots))
        kept = last_that_fit(shots, room)
        counts['fewer_shots'] += len(kept) < config.shots
        questions.append((problem, np.concatenate([*itertools.chain(*kept), own])))
    allowed = f'must leave room for a prompt of {config.problems.task} in config.model.length = {length}'
    check(bool(questions), 'config.benchmark.max_tokens', config.max_tokens, allowed)
    return questions, counts


def read_answers(file: Path) -> dict[str, dict[str, Any]]:
    """The records by the id of their problem; none if no file exists."""
    records = files.read_records(file)
    for line, fields in enumerate(map(set, records), 1):
        if fields != set(FIELDS):
            allowed = f'must have the fields {" ".join(FIELDS)}; remove the file to evaluate again'
            raise UserError(f'{file}:{line}: {allowed}')
    return {record['id']: record for record in records}


def record(problem: Problem, graded: Sequence[tuple[str, bool | None]]) -> dict[str, Any]:
    """A line of the file of answers, from (text, whether it is right) of each sample. Programs have None there."""
    texts, correct = zip(*graded, strict=True)
    values = (problem.id, problem.task, problem.answers, problem.choices, texts, correct)
    return dict(zip(FIELDS, values, strict=True))


def _outcome(row: dict[str, Any]) -> passk.Outcome:
    right = len(row['answers']) if row['choices'] else 0
    return passk.Outcome(len(row['correct']), sum(row['correct']), row['choices'], right, row['task'])


def _check_grading(config: BenchmarkConfig, problems: Problems) -> None:
    """Raises UserError, before any sampling, for a sandbox that is missing and for answers that nothing could equal."""
    if config.run_code:
        distributed.first(lambda: distributed.is_first() and pool.Sandbox(workers=1).close())
    if SOURCES[config.problems.task].is_right is answers.same_number:
        for problem in problems.splits['test']:
            for answer in problem.answers:
                check(answers.number(answer) is not None, f'{problem.id}: answer', answer, 'must be a number')


def _depends_on(config: BenchmarkConfig, prepared: PreparedProblems, seed: int) -> list:
    """All that answers depend on besides the weights, as JSON."""
    protocol = {name: value for name, value in dataclasses.asdict(config).items() if name in PROTOCOL}
    # Records are found by id, and the identity of the problems leaves ids out.
    ids = [problem.id for problem in prepared.problems.splits['test']]
    return [protocol, seed, prepared.problems.identity, ids, prepared.tokenizer_identity]
