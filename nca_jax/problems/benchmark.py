"""How many of a benchmark's problems a model solves: answers are sampled, compared with the right ones, and counted.

GSM8K, BigBench-Lite and HumanEval as the paper sets them (arXiv 2603.10055), and what stands in for them.
"""

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from nca_jax import distributed, files, keys
from nca_jax.batch import Vocab
from nca_jax.checkpoint.manifest import leaf_table
from nca_jax.data import tokenizer as bpe
from nca_jax.decode.decoder import make_decoder
from nca_jax.decode.sampling import cut, make_stops
from nca_jax.decode.schedule import Prompt
from nca_jax.errors import UserError, check
from nca_jax.model.config import ModelConfig
from nca_jax.problems import instruct, passk, records
from nca_jax.problems.answers import number, same_number, same_text
from nca_jax.problems.config import BenchmarkConfig
from nca_jax.problems.problem import Problem
from nca_jax.problems.sets import CODE, Problems
from nca_jax.progress import Progress, bars, silent
from nca_jax.sandbox import human_eval, judging, pool

# Whether a text answers a problem; programs are judged by their tests instead.
SAME = {
    'gsm8k': same_number,
    'tfds:gsm8k': same_number,
    'gsm_symbolic': same_number,
    'arithmetic': same_number,
    'bigbench': same_text,
    'choices': same_text,
}


# What of a config answers depend on, besides the problems themselves, which are known by their contents.
PROTOCOL = ('shots', 'max_tokens', 'samples', 'stops', 'sampling')


class Asked(NamedTuple):
    """A problem, and the tokens of its prompt with the shots before it."""

    problem: Problem
    tokens: list[int]


def make_evaluator(
    config: BenchmarkConfig,
    problems: Problems,
    model: ModelConfig,
    vocab: Vocab,
    tokenizer: Tokenizer,
    mesh: jax.sharding.Mesh,
    seed: int,
    folder: Path,
) -> Callable[[dict, int], dict]:
    """`evaluate(params, step)`: the metrics of `passk.metrics` over the test problems, and the counts of `ask`.

    A problem's answers depend on (seed, its id, the sample's number), its shots, the protocol and the weights alone.
    They are written to `folder` as they come, and an evaluation that was killed goes on with them. Programs are judged
    if config.run_code says so; else they are only written, and count once the judge has run.
    """
    if config.problems.task == CODE:
        human_eval.read_tasks(_problems_file(config))  # what can't be judged is better known before any sampling
        if config.run_code:
            distributed.first(lambda: distributed.is_first() and pool.Sandbox(workers=1).close())
    elif SAME[config.problems.task] is same_number:
        check_numbers(problems)
    end = bpe.end_of_text(tokenizer)
    asked, unlike = ask(config, problems, tokenizer, model.length, seed)
    stops = make_stops([end], config.stops, bpe.pieces(tokenizer))
    decode = make_decoder(model, vocab, mesh, config.batch, config.sampling, stops)
    protocol = {name: value for name, value in dataclasses.asdict(config).items() if name in PROTOCOL}
    names = [problem.id for problem in problems.splits['test']]  # by which records know them: lines of a file may move
    about = [protocol, seed, problems.identity, names, bpe.identity(tokenizer)]

    def solved(answer: list[int], problem: Problem) -> tuple[str, bool | None]:
        text = cut(tokenizer.decode([token for token in answer if token != end]), config.stops)
        return text, None if config.problems.task == CODE else SAME[config.problems.task](text, problem.answers)

    def sample(params: dict, file: Path, done: dict[str, dict]) -> dict[str, dict]:
        """Records by id, those that `done` has and the rest, which are appended to the file."""
        todo = [each for each in asked if each.problem.id not in done]
        prompts = [
            Prompt(
                np.array(tokens),
                int(keys.crc32(problem.id)),
                range(config.samples),
                [config.max_tokens] * config.samples,
            )
            for problem, tokens in todo
        ]
        found: list[dict[int, tuple]] = [{} for _ in todo]
        with _shown() as progress, _appended(file) as append:
            for count, answer in enumerate(decode(params, prompts, seed), 1):
                problem, answers = todo[answer.prompt].problem, found[answer.prompt]
                answers[answer.sample] = solved(answer.tokens.tolist(), problem)
                progress('answers', count, len(todo) * config.samples)
                if len(answers) == config.samples:
                    done[problem.id] = record(problem, [answers[sample] for sample in range(config.samples)])
                    append(json.dumps(done[problem.id]) + '\n')
        return done

    def evaluate(params: dict, step: int) -> dict:
        file = records.file_of(folder, step, [*about, leaf_table(params)])
        done = sample(params, file, distributed.first(lambda: records.read(file)))
        rows = [done[each.problem.id] for each in asked]
        if config.problems.task == CODE:
            rows = judged(rows, file, config)
            if rows is None:
                return {'problems': len(asked), 'samples': config.samples} | unlike
        return passk.metrics([outcome(row) for row in rows], seed) | unlike

    return evaluate


def check_numbers(problems: Problems) -> None:
    """UserError for an answer of the test problems that no answer could equal."""
    for problem in problems.splits['test']:
        for answer in problem.answers:
            if number(answer) is None:
                raise UserError(f'{problem.id}: answer = {answer!r}: must be a number, to be compared with')


def ask(
    config: BenchmarkConfig, problems: Problems, tokenizer: Tokenizer, length: int, seed: int
) -> tuple[list[Asked], dict[str, int]]:
    """What is asked: the first `limit` problems of each task of the test split. And what is unlike what was meant.

    left_out: problems whose own prompt leaves no room for an answer. fewer_shots: those with room for some shots only.
    """
    asked, counts = [], dict.fromkeys((p.task for p in problems.splits['test']), 0)
    unlike = {'left_out': 0, 'fewer_shots': 0}
    for problem in problems.splits['test']:
        if config.limit and counts[problem.task] == config.limit:
            continue
        counts[problem.task] += 1
        shots = instruct.draw_shots(problems, problem, config.shots, seed)
        tokens, kept = instruct.few_shot(problem, shots, tokenizer, length, config.max_tokens)
        if len(tokens) + config.max_tokens > length:
            unlike['left_out'] += 1
            continue
        unlike['fewer_shots'] += kept < config.shots
        asked.append(Asked(problem, tokens))
    allowed = f'must leave room for a prompt of {config.problems.task} in config.model.length = {length}'
    check(bool(asked), 'config.benchmark.max_tokens', config.max_tokens, allowed)
    return asked, unlike


def record(problem: Problem, answers: Sequence[tuple[str, bool | None]]) -> dict[str, Any]:
    """A line of the file of answers. correct: null for programs, which are judged apart."""
    texts, correct = zip(*answers, strict=True)
    return {
        'id': problem.id,
        'task': problem.task,
        'answers': problem.answers,
        'choices': problem.choices,
        'texts': texts,
        'correct': correct,
    }


def outcome(row: dict[str, Any]) -> passk.Outcome:
    """Of a record whose answers have all been judged."""
    right = len(row['answers']) if row['choices'] else 0
    return passk.Outcome(len(row['correct']), sum(row['correct']), row['choices'], right, row['task'])


def judged(rows: Sequence[dict], file: Path, config: BenchmarkConfig) -> list[dict] | None:
    """The rows with the judge's verdicts; None, and a line on how to get them, where it may not run and hasn't."""
    samples = file.with_suffix('.samples.jsonl')
    lines = [
        {'task_id': row['id'], 'sample': number, 'completion': text}
        for row in rows
        for number, text in enumerate(row['texts'])
    ]
    path = _problems_file(config)

    def work() -> list[dict]:
        if distributed.is_first():
            content = ''.join(json.dumps(line) + '\n' for line in lines)
            files.write(samples, content)
            if config.run_code:
                judging.judge_file(samples, path, '--allow-code')
        found = files.read_records(judging.out_file(samples))
        asked = [(line['task_id'], line['sample']) for line in lines]
        return found if [(line['task_id'], line['sample']) for line in found] == asked else []

    verdicts = distributed.first(work)
    if not verdicts:
        if distributed.is_first():
            how = ['python', '-m', 'nca_jax', 'judge', str(samples), '--allow-code']
            how += [f'--problems={path}'] if path else []
            print(f'not judged yet: {shlex.join(how)}, then the same run once more', file=sys.stderr)
        return None
    passed = iter(line['passed'] for line in verdicts)
    return [row | {'correct': [next(passed) for _ in row['texts']]} for row in rows]


def _problems_file(config: BenchmarkConfig) -> Path | None:
    """Where the judge finds the tests: None for the installed package's file."""
    return Path(config.problems.path).expanduser() if config.problems.path else None


@contextlib.contextmanager
def _shown() -> Iterator[Progress]:
    """Bars, on the first process alone."""
    with bars() if distributed.is_first() else contextlib.nullcontext(silent) as progress:
        yield progress


@contextlib.contextmanager
def _appended(file: Path) -> Iterator[Callable[[str], None]]:
    """`append(line)` to the file, on the first process alone."""
    distributed.first(lambda: distributed.is_first() and records.make_ready(file))
    if not distributed.is_first():
        yield lambda line: None
        return
    with file.open('a') as stream:

        def append(line: str) -> None:
            stream.write(line)
            stream.flush()

        yield append
