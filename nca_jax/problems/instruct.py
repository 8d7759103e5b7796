"""Problems as a stream of Batches: one problem a row behind worked examples, and loss where an answer stands.

A row is `prompt target <end of text>` of each worked example (shot) and then of the problem itself, in training and in
evaluation alike. Prompts and targets are tokenised apart, so that a prompt has the same tokens wherever it stands.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer

from nca_jax.batch import Batch, Vocab
from nca_jax.data import tokenizer as bpe
from nca_jax.data.streams import make_read_stream, shuffled
from nca_jax.errors import UserError, check
from nca_jax.problems import rows
from nca_jax.problems.problem import Problem
from nca_jax.problems.sets import Problems, ProblemsConfig, load_problems
from nca_jax.progress import Progress

FORMAT = 'prompt target end, shots first; 1'  # part of the identity: change it with the layout of a row


@dataclasses.dataclass(frozen=True)
class InstructConfig:
    """Which problems, and how they become rows.

    tokenizer: a tokenizer.json, '' for that of the run whose weights are carried. shots: the least and the most worked
    examples before a problem, of the same task, drawn anew each epoch (paper: 5 and 5 for GSM8K, 0 and 3 for
    BIG-bench). loss_on: 'target', or 'all_answers', the shots' too, as the release does.
    """

    problems: ProblemsConfig
    tokenizer: str
    shots: tuple[int, int]
    loss_on: str

    def __post_init__(self):
        least, most = self.shots
        check(0 <= least <= most, 'shots', self.shots, 'must be the least and the most, from 0 on')
        check(self.loss_on in ('target', 'all_answers'), 'loss_on', self.loss_on, "must be 'target' or 'all_answers'")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Problems and, split by split, their tokens. identity: hash of the problems, the tokenizer and a row's layout."""

    problems: Problems
    tokens: dict[str, tuple[rows.Tokens, ...]]
    tokenizer: Tokenizer
    vocab: Vocab
    identity: str
    tokenizer_identity: str


def prepare_instruct(config: InstructConfig, tokenizer: Tokenizer, folder: Path, progress: Progress) -> Prepared:
    """Reads or makes the problems and tokenises them; `folder` is for what must be built on the way.

    The same on every process, and quick: nothing of it is kept. UserError for unusable files and for a task that has no
    more training problems than shots.
    """
    problems = load_problems(config.problems, folder)
    _check_shots(config, problems)
    end, tokens = bpe.end_of_text(tokenizer), {}
    for done, (split, found) in enumerate(problems.splits.items(), 1):
        tokens[split] = tuple(rows.tokenise(found, tokenizer, end))
        progress('problems', done, len(problems.splits))
    tokenizer_identity = bpe.identity(tokenizer)
    content = [FORMAT, tokenizer_identity, problems.identity]
    return Prepared(
        problems=problems,
        tokens=tokens,
        tokenizer=tokenizer,
        vocab=Vocab(tokenizer.get_vocab_size()),
        identity=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        tokenizer_identity=tokenizer_identity,
    )


def _check_shots(config: InstructConfig, problems: Problems) -> None:
    pools = _pools(problems)
    for task in sorted({problem.task for found in problems.splits.values() for problem in found} if pools else ()):
        has = len(pools[task]) if task in pools else 0
        allowed = f'must leave a training problem of task {task} besides them, which has {has}'
        check(has > config.shots[1], 'shots', config.shots, allowed)


def fitting(prepared: Prepared, split: str, length: int) -> np.ndarray:
    """Numbers of the problems whose prompt and target fit into a row of length + 1 tokens without any shot."""
    sizes = [len(tokens.prompt) + len(tokens.target) for tokens in prepared.tokens[split]]
    return np.flatnonzero(np.asarray(sizes, np.int64) <= length + 1)


def describe(config: InstructConfig, prepared: Prepared, seed: int, length: int) -> str:
    """One line: how many problems there are of each split, how many are left out and why, and how many lack shots."""
    counts = {split: len(found) for split, found in prepared.problems.splits.items()}
    fit = {split: fitting(prepared, split, length) for split in ('train', 'valid')}
    said = ', '.join(f'{count} {split}' for split, count in counts.items())
    left = ', '.join(f'{count} {what}' for what, count in prepared.problems.left_out.items())
    long = ' and '.join(f'{counts[split] - len(numbers)} {split}' for split, numbers in fit.items())
    draw, fewer = _make_draw(config, prepared, seed, 'train'), 0
    for number in fit['train']:
        shots, room = draw(0, number), rows.room_for_shots(prepared.tokens['train'][number], length)
        fewer += len(rows.last_that_fit(shots, room)) < len(shots)
    lacking = f'{fewer} of the first {len(fit["train"])} rows have room for fewer shots than drawn'
    return f'{said} problems; left out: {left}, {long} longer than {length}; {lacking}'


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
        raise UserError(f'{config.problems.task}: no {split} problem fits into {length} tokens')
    draw = _make_draw(config, prepared, seed, split)

    def row_of(number: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, place = shuffled(number, total, f'{seed}/instruct/{split}')
        own = prepared.tokens[split][chosen[place]]
        return rows.assemble(own, draw(epoch, chosen[place]), length, end, config.loss_on)

    return make_read_stream(row_of, batch, length, sharding)


def draw_shots(problems: Problems, problem: Problem, count: int, seed: int) -> tuple[Problem, ...]:
    """`count` training problems of the same task for evaluation, a function of the seed and the problem's id alone.

    Never the problem itself. UserError where the task has too few.
    """
    pool = [other for other in problems.splits['train'] if other.task == problem.task]
    own = next((place for place, other in enumerate(pool) if other.id == problem.id), None)
    if len(pool) - (own is not None) < count:
        has = f'task {problem.task} has {len(pool)} training problems, besides those for valid and test'
        raise UserError(f'config.benchmark.shots = {count}: {has}')
    drawn = rows.draw(f'{seed}/few_shot/{problem.id}', (count, count), len(pool), own)
    return tuple(pool[place] for place in drawn)


def few_shot(
    problem: Problem, shots: Sequence[Problem], tokenizer: Tokenizer, length: int, max_new_tokens: int
) -> tuple[list[int], int]:
    """Tokens of an evaluation prompt, and how many shots are in it.

    They are the shots with their answers, then the problem's prompt, laid out as in training.

    The earliest shots are dropped until max_new_tokens more fit into `length`. More than length - max_new_tokens come
    back only where the problem's own prompt is as long as that; what then, the caller decides.
    """
    end = bpe.end_of_text(tokenizer)
    *before, own = rows.tokenise([*shots, problem], tokenizer, end)
    room = length - max_new_tokens - len(own.prompt)
    kept = rows.last_that_fit(before, room)
    parts = [part for shot in kept for part in shot]
    return np.concatenate([*parts, own.prompt]).tolist(), len(kept)


def _pools(problems: Problems) -> dict[str, np.ndarray]:
    """Numbers of the training problems of each task, from which shots are drawn."""
    tasks = np.array([problem.task for problem in problems.splits['train']])
    return {str(task): np.flatnonzero(tasks == task) for task in np.unique(tasks)}


def _make_draw(
    config: InstructConfig, prepared: Prepared, seed: int, split: str
) -> Callable[[int, int], list[rows.Tokens]]:
    """`draw(epoch, number)`: the shots of a problem of the split, by its number there."""
    pools, train = _pools(prepared.problems), prepared.tokens['train']

    def draw(epoch: int, number: int) -> list[rows.Tokens]:
        pool = pools[prepared.problems.splits[split][number].task]
        own = int(np.searchsorted(pool, number)) if split == 'train' else None
        drawn = rows.draw(f'{seed}/shots/{split}/{epoch}/{number}', config.shots, len(pool), own)
        return [train[pool[place]] for place in drawn]

    return draw
