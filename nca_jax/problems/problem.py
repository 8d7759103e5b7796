"""Problems with known answers, in one form for all sources: as text, and as tokens behind worked examples (shots).

A row is `prompt target <end of text>` of each shot and then of the problem itself, in training and evaluation alike.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from nca_jax.batch import Vocab
from nca_jax.data import tokenizer as bpe
from nca_jax.errors import check

# Part of the identity: to be changed with the layout of a row.
FORMAT = 'prompt target end, shots first; 1'


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question and its right answers."""

    # Unique within its source.
    id: str
    # All text before the answer.
    prompt: str
    # What tuning learns, without the end of text; '' if nothing.
    target: str
    # Every right final answer; () for programs, which tests judge.
    answers: tuple[str, ...]
    # How many options this prompt offers, the answers among them; 0 for open answers.
    choices: int
    # Scores are averaged within a task.
    task: str


class Sides(NamedTuple):
    """The problems of a source: for training and for evaluation."""

    train: tuple[Problem, ...]
    test: tuple[Problem, ...]


def digest(problem: Problem) -> bytes:
    # Problems with equal prompts are the same, whatever their answers and ids.
    return hashlib.blake2b(problem.prompt.strip().encode(), digest_size=16).digest()


def distinct(problems: Iterable[Problem], besides: Iterable[Problem] = ()) -> tuple[Problem, ...]:
    """The problems by digest, each prompt once (its least id), without the prompts of `besides`."""
    # A function of the set of problems. The order is random, so a prefix is a random sample.
    seen = {digest(problem) for problem in besides}
    kept: dict[bytes, Problem] = {}
    for problem in sorted(problems, key=lambda problem: problem.id):
        if digest(problem) not in seen:
            kept.setdefault(digest(problem), problem)
    return tuple(kept[key] for key in sorted(kept))


def is_text(value: object) -> bool:
    """Whether `value` is text that isn't blank and that UTF-8 can hold."""
    # JSON can spell half of a surrogate pair, which tokenizers refuse.
    return isinstance(value, str) and bool(value.strip()) and not re.search('[\ud800-\udfff]', value)


class Tokens(NamedTuple):
    """A problem's int32 tokens. The target's end with the end of text."""

    prompt: np.ndarray
    target: np.ndarray

    @property
    def count(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclasses.dataclass(frozen=True)
class Problems:
    """Problems by split (train, valid, test), sorted by task; within a task any prefix is a random sample."""

    splits: dict[str, tuple[Problem, ...]]
    tokenizer: Tokenizer

    @functools.cached_property
    def tokens(self) -> dict[str, list[Tokens]]:
        """By split, in the order of the problems."""
        return {split: tokenise(problems, self.tokenizer) for split, problems in self.splits.items()}

    @functools.cached_property
    def pools(self) -> dict[str, np.ndarray]:
        """The numbers of each task's training problems, in order. Shots are drawn from these."""
        tasks = np.array([problem.task for problem in self.splits['train']])
        return {str(task): np.flatnonzero(tasks == task) for task in np.unique(tasks)}

    @property
    def vocab(self) -> Vocab:
        return Vocab(self.tokenizer.get_vocab_size())

    @property
    def identity(self) -> str:
        """sha256 of all that decides rows and scores. Ids don't, so that files may move."""
        content = {
            split: [[p.prompt, p.target, p.answers, p.choices, p.task] for p in problems]
            for split, problems in self.splits.items()
        }
        parts = [FORMAT, bpe.identity(self.tokenizer), content]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def check_shots(self, split: str, count: int, field: str) -> None:
        """Raises FieldError unless each problem of the split has `count` other training problems of its task."""
        for task in sorted({problem.task for problem in self.splits[split]}):
            has = len(self.pools.get(task, ()))
            allowed = f'must leave shots for task {task}, which has {has} training problems besides valid and test'
            # A training problem is no shot of its own.
            check(has - (split == 'train') >= count, field, count, allowed)

    def draw_shots(
        self, name: str, split: str, number: int, count: tuple[int, int], room: int
    ) -> tuple[list[Tokens], int]:
        """Other training problems of the task, and how many more had no room; a function of the arguments alone.

        (least, most) are drawn. The first ones are dropped until the others have `room` tokens at most.
        """
        pool = self.pools.get(self.splits[split][number].task, ())
        # Its own place in the pool, which isn't drawn.
        own = int(np.searchsorted(pool, number)) if split == 'train' else None
        shots = [self.tokens['train'][pool[place]] for place in draw(name, count, len(pool), own)]
        sizes = [shot.count for shot in shots]
        first = next(start for start in range(len(shots) + 1) if sum(sizes[start:]) <= room)
        return shots[first:], first


def tokenise(problems: Sequence[Problem], tokenizer: Tokenizer) -> list[Tokens]:
    end = bpe.end_of_text(tokenizer)
    # Prompts and targets are encoded apart, so that a prompt always has the same tokens.
    texts = itertools.chain.from_iterable((problem.prompt, problem.target) for problem in problems)
    encoded = [code.ids for code in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    pairs = zip(encoded[::2], encoded[1::2], strict=True)
    return [Tokens(np.array(prompt, np.int32), np.array([*target, end], np.int32)) for prompt, target in pairs]


def draw(name: str, count: tuple[int, int], pool: int, own: int | None) -> list[int]:
    """Different places in 0..pool - 1 without `own`: (least, most) of them, each choice equally likely."""
    least, most = count
    # NumPy promises never to change a generator's raw numbers. The first decides how many are drawn.
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(most + 1).tolist()
    taken = [] if own is None else [own]
    drawn = []
    for number in raw[1 : 1 + least + raw[0] % (most - least + 1)]:
        place = number % (pool - len(taken))
        # The number counts free places only.
        for other in sorted(taken):
            place += place >= other
        taken.append(place)
        drawn.append(place)
    return drawn
