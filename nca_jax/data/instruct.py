"""Problems as a stream of Batches: one problem a row behind worked examples, and loss where an answer stands.

A row is `prompt target <end of text>` of each worked example (shot) and then of the problem itself, in training and in
evaluation alike. Prompts and targets are tokenised apart, so that a prompt has the same tokens wherever it stands.
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from grain.experimental import index_shuffle
from tokenizers import Tokenizer

from nca_jax.batch import Batch, Vocab
from nca_jax.data import instruct_rows, problems, problems_bigbench, problems_choices, problems_made
from nca_jax.data import tokenizer as bpe
from nca_jax.data.problems import Problem, Sides
from nca_jax.errors import UserError, check
from nca_jax.progress import Progress

ROUNDS = 4  # of the block cipher in index_shuffle; grain's own choice
FORMAT = 'prompt target end, shots first; 1'  # part of the identity: change it with the layout of a row
GSM8K = ('gsm8k', 'tfds:gsm8k')
READ = (*GSM8K, 'bigbench')  # from a path
MADE = ('gsm_symbolic', 'arithmetic', 'choices')
SEVERAL = ('bigbench', 'arithmetic', 'choices')  # made of tasks, of which `tasks` chooses


@dataclasses.dataclass(frozen=True)
class InstructConfig:
    """Which problems, and how they become rows.

    task: 'gsm8k' (path: the folder with train.jsonl and test.jsonl), 'tfds:gsm8k' (path: where TFDS has it
    prepared), 'bigbench' (path: the folder of its tasks), 'gsm_symbolic', 'arithmetic' and 'choices' (made: path '').
    tasks: which of several; () for all that are made, and for the paper's eleven of BIG-bench. tokenizer: a
    tokenizer.json. shots: the least and the most worked examples before a problem, of the same task, drawn anew each
    epoch (paper: 5 and 5 for GSM8K, 0 and 3 for BIG-bench). loss_on: 'target', or 'all_answers', the shots' too, as the
    release does. calculator_marks: 'drop' or 'keep' GSM8K's `<<48/2=24>>`. train_rows: at most so many a task, 0 for
    all. least_rows: tasks with fewer for training are left out. valid_rows: of each task's training problems, kept for
    the held-out loss, so that test problems choose nothing. size: train and test problems that are made of each task;
    of 'choices' (rows, 0), of which a fifth is test's, as of BIG-bench's.
    """

    task: str
    path: str
    tasks: tuple[str, ...]
    tokenizer: str
    shots: tuple[int, int]
    loss_on: str
    calculator_marks: str
    train_rows: int
    least_rows: int
    valid_rows: int
    size: tuple[int, int]

    def __post_init__(self):
        check(self.task in READ + MADE, 'task', self.task, f'must be one of {", ".join(READ + MADE)}')
        check(bool(self.path) == (self.task in READ), 'path', self.path, _where(self.task))
        several = ', '.join(SEVERAL)
        check(not self.tasks or self.task in SEVERAL, 'tasks', self.tasks, f'must be () unless task is of {several}')
        check(bool(self.tokenizer), 'tokenizer', self.tokenizer, 'must be a tokenizer.json')
        least, most = self.shots
        check(0 <= least <= most, 'shots', self.shots, 'must be the least and the most, from 0 on')
        check(self.loss_on in ('target', 'all_answers'), 'loss_on', self.loss_on, "must be 'target' or 'all_answers'")
        marks = ('drop', 'keep') if self.task in GSM8K else ('drop',)
        check(self.calculator_marks in marks, 'calculator_marks', self.calculator_marks, f'must be of {marks}')
        for field in ('train_rows', 'least_rows'):
            check(getattr(self, field) >= 0, field, getattr(self, field), 'must be 0 or more')
        check(self.valid_rows >= 1, 'valid_rows', self.valid_rows, 'must be 1 or more')
        made, allowed = _sizes(self.task)
        sized = all(n >= 1 if has else n == 0 for n, has in zip(self.size, made, strict=True))
        check(sized, 'size', self.size, allowed)


def _sizes(task: str) -> tuple[tuple[bool, bool], str]:
    if task == 'choices':
        return (True, False), 'must be (rows of each task, 0)'
    if task in MADE:
        return (True, True), 'must be two numbers of problems, 1 or more'
    return (False, False), f'must be (0, 0), {task} is not made'


def _where(task: str) -> str:
    return f'must be the folder of {task}' if task in READ else f"must be '' for {task}, which is made"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Problems of the splits train, valid and test, each in the order of its task and digest, and their tokens.

    identity: hash of the problems, the tokenizer and the layout of rows, free of paths and orders of files. left_out:
    how many tasks were too small, how many training problems repeated another's prompt, on whichever side.
    """

    problems: dict[str, tuple[Problem, ...]]
    tokens: dict[str, tuple[instruct_rows.Tokens, ...]]
    tokenizer: Tokenizer
    vocab: Vocab
    identity: str
    tokenizer_identity: str
    left_out: dict[str, int]


def prepare_instruct(config: InstructConfig, folder: Path, progress: Progress) -> Prepared:
    """Reads or makes the problems and tokenises them; `folder` is for what must be built on the way.

    The same on every process, and quick: nothing of it is kept. UserError for unusable files and for a task that has no
    more training problems than shots.
    """
    tokenizer = bpe.load(config.tokenizer)
    sides = _open(config, folder)
    chosen, left_out = _choose(config, sides)
    end = bpe.end_of_text(tokenizer)
    tokens = {}
    for done, (split, found) in enumerate(chosen.items()):
        progress('problems', done, len(chosen))
        tokens[split] = tuple(instruct_rows.tokenise(found, tokenizer, end))
    progress('problems', len(chosen), len(chosen))
    tokenizer_identity = bpe.identity(tokenizer)
    content = [FORMAT, tokenizer_identity, {split: [_content(p) for p in found] for split, found in chosen.items()}]
    return Prepared(
        problems=chosen,
        tokens=tokens,
        tokenizer=tokenizer,
        vocab=Vocab(tokenizer.get_vocab_size()),
        identity=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        tokenizer_identity=tokenizer_identity,
        left_out=left_out,
    )


def fitting(prepared: Prepared, split: str, length: int) -> np.ndarray:
    """Numbers of the problems whose prompt and target fit into a row of length + 1 tokens without any shot."""
    sizes = [len(tokens.prompt) + len(tokens.target) for tokens in prepared.tokens[split]]
    return np.flatnonzero(np.asarray(sizes, np.int64) <= length + 1)


def steps_per_epoch(prepared: Prepared, batch: int, length: int) -> int:
    """Whole batches in an epoch of the training problems that fit, 1 at least."""
    return max(1, len(fitting(prepared, 'train', length)) // batch)


def describe(prepared: Prepared, length: int) -> str:
    """One line: how many problems there are of each split, and how many are left out and why."""
    counts = {split: len(found) for split, found in prepared.problems.items()}
    long = {split: counts[split] - len(fitting(prepared, split, length)) for split in ('train', 'valid')}
    said = ', '.join(f'{count} {split}' for split, count in counts.items())
    left = ', '.join(f'{count} {what}' for what, count in prepared.left_out.items())
    return f'{said} problems; left out: {left}, {long["train"]} train and {long["valid"]} valid longer than {length}'


def make_stream(
    config: InstructConfig,
    prepared: Prepared,
    seed: int,
    split: str,
    batch: int,
    length: int,
    sharding: jax.sharding.NamedSharding,
) -> Callable[[int], Batch]:
    """`stream(step)`: the step-th Batch of (B, L), each problem of the split once an epoch, in an order of the epoch.

    Row r of step k is problem perm[(k * B + r) mod N] of the N that fit; its shots are training problems of its task,
    drawn by (seed, split, epoch, problem), never itself. The earliest shots are dropped where the row would be too
    long, the problem's own prompt and target never. Rows are padded on the right with the end of text. Weights are 1
    on the target and its end of text (loss_on 'all_answers': on the shots' too), 0 on prompts and padding. Rows are
    placed by global index, so devices and hosts can't change them.
    """
    chosen = fitting(prepared, split, length)
    total, end = len(chosen), bpe.end_of_text(prepared.tokenizer)
    if not total:
        raise UserError(f'{config.task}: no {split} problem fits into {length} tokens')
    pools = _pools(prepared)
    train = prepared.tokens['train']

    def make(row: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, index = divmod(row, total)
        shuffle_seed = zlib.crc32(f'{seed}/instruct/{split}/{epoch}'.encode())
        number = int(chosen[index_shuffle(index, max_index=total - 1, seed=shuffle_seed, rounds=ROUNDS)])
        pool = pools[prepared.problems[split][number].task]
        own = int(np.searchsorted(pool, number)) if split == 'train' else None
        drawn = instruct_rows.draw(f'{seed}/shots/{split}/{epoch}/{number}', config.shots, len(pool), own)
        shots = [train[pool[place]] for place in drawn]
        return instruct_rows.assemble(prepared.tokens[split][number], shots, length, end, config.loss_on)

    def stream(step: int) -> Batch:
        return instruct_rows.place_rows(lambda row: make(step * batch + row), batch, length, sharding)

    return stream


def draw_shots(prepared: Prepared, problem: Problem, count: int, seed: int) -> tuple[Problem, ...]:
    """`count` training problems of the same task for evaluation, a function of the seed and the problem's id alone.

    Never the problem itself. UserError where the task has too few.
    """
    pool = [other for other in prepared.problems['train'] if other.task == problem.task]
    own = next((place for place, other in enumerate(pool) if other.id == problem.id), None)
    if len(pool) - (own is not None) < count:
        raise UserError(f'shots = {count}: task {problem.task} has {len(pool)} training problems')
    drawn = instruct_rows.draw(f'{seed}/few_shot/{problem.id}', (count, count), len(pool), own)
    return tuple(pool[place] for place in drawn)


def few_shot(
    problem: Problem, shots: Sequence[Problem], tokenizer: Tokenizer, length: int, max_new_tokens: int
) -> list[int]:
    """Tokens of an evaluation prompt: the shots with their answers, then the problem's prompt, laid out as in training.

    The earliest shots are dropped until max_new_tokens more fit into `length`. More than length - max_new_tokens come
    back only where the problem's own prompt is as long as that; what then, the caller decides.
    """
    end = bpe.end_of_text(tokenizer)
    *before, own = instruct_rows.tokenise([*shots, problem], tokenizer, end)
    room = length - max_new_tokens - len(own.prompt)
    kept = instruct_rows.last_that_fit(before, room)
    parts = [part for shot in kept for part in shot]
    return np.concatenate([*parts, own.prompt]).tolist()


def _open(config: InstructConfig, folder: Path) -> Sides:
    marks = config.calculator_marks
    readers = {
        'gsm8k': lambda: problems.gsm8k(config.path, marks),
        'tfds:gsm8k': lambda: problems.gsm8k_tfds(config.path, marks),
        'bigbench': lambda: problems_bigbench.bigbench(config.path, config.tasks or problems_bigbench.LITE),
        'choices': lambda: _choices(config, folder / 'choices'),
        'gsm_symbolic': lambda: problems_made.gsm_symbolic(config.size),
        'arithmetic': lambda: problems_made.arithmetic(config.size, config.tasks),
    }
    return readers[config.task]()


def _choices(config: InstructConfig, folder: Path) -> Sides:
    tasks = problems_choices.write_choices(folder, config.size[0])
    return problems_bigbench.bigbench(str(folder), config.tasks or tasks)


def _choose(config: InstructConfig, sides: Sides) -> tuple[dict[str, tuple[Problem, ...]], dict[str, int]]:
    """The splits, task by task. Test keeps all it has; what train shares with it or repeats is left out."""
    splits: dict[str, list[Problem]] = {'train': [], 'valid': [], 'test': []}
    small = repeated = 0
    for task in sorted({problem.task for side in sides for problem in side}):
        test, train = ([problem for problem in side if problem.task == task] for side in (sides.test, sides.train))
        unique_test = problems.distinct(test)
        unique = problems.distinct(train, besides=sides.test)
        repeated += len(train) - len(unique) + len(test) - len(unique_test)
        if len(unique) < config.least_rows:
            small += 1
            continue
        valid, kept = unique[: config.valid_rows], unique[config.valid_rows :]
        kept = kept[: config.train_rows or None]
        if len(kept) <= config.shots[1]:
            most, has = config.shots[1], f'{len(kept)} training problems besides {len(valid)} held out'
            raise UserError(f'shots = {config.shots}: task {task} has {has}, needs more than {most}')
        for split, found in (('train', kept), ('valid', valid), ('test', unique_test)):
            splits[split] += found
    if not splits['train']:
        raise UserError(f'least_rows = {config.least_rows}: no task of {config.task} has as many training problems')
    return {split: tuple(found) for split, found in splits.items()}, {'small tasks': small, 'repeated': repeated}


def _content(problem: Problem) -> list:
    return [problem.prompt, problem.target, problem.answers, problem.choices, problem.task]


def _pools(prepared: Prepared) -> dict[str, np.ndarray]:
    """Numbers of the training problems of each task, from which shots are drawn."""
    tasks = np.array([problem.task for problem in prepared.problems['train']])
    return {str(task): np.flatnonzero(tasks == task) for task in np.unique(tasks)}
