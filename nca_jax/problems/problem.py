"""A problem with known answers, in one form for all sources."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple


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
