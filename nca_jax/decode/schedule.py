"""Which row of a decoding batch answers what: rows that finish get more work at once. Host arrays alone, no devices."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Prompt(NamedTuple):
    """What is to be answered: at least one token. number: names the prompt in the keys of its samples.

    samples: the numbers of the answers that are wanted. limits: the most tokens of each, at least one.
    """

    tokens: np.ndarray
    number: int
    samples: Sequence[int]
    limits: Sequence[int]


class Answer(NamedTuple):
    """prompt: its place among those asked. tokens: with the stop token, or the whole token that ended a stop string."""

    prompt: int
    sample: int
    tokens: np.ndarray


class Rows(NamedTuple):
    """The state of each row besides its cache. token: the last one, not read yet, which stands at `position`.

    written: tokens of the answer so far. stop: state of `Stops`. number, sample: whose answer it is, for its key.
    """

    token_B: np.ndarray
    position_B: np.ndarray
    written_B: np.ndarray
    limit_B: np.ndarray
    stop_B: np.ndarray
    live_B: np.ndarray
    number_B: np.ndarray
    sample_B: np.ndarray


def idle_rows(count: int) -> Rows:
    """Rows that answer nothing yet."""
    kinds = (*(np.int32,) * 5, bool, np.uint32, np.uint32)
    return Rows(*(np.zeros(count, kind) for kind in kinds))


class Place(NamedTuple):
    """A group is to have the keys and values of a prompt: those of `group_with_it`, or read anew where that is None."""

    group: int
    prompt: int
    group_with_it: int | None


class Schedule:
    """Deals the answers that `prompts` want to `rows` rows in groups of `share`, one prompt to a group at a time.

    `lengths_Q` is what each group's cache holds of its prompt: all tokens but the last, which its rows begin with.
    """

    def __init__(self, prompts: Sequence[Prompt], rows: int, share: int):
        self.rows = idle_rows(rows)
        self.lengths_Q = np.zeros(rows // share, np.int32)
        self._prompts, self._share = prompts, share
        self._unread = deque(i for i, prompt in enumerate(prompts) if len(prompt.samples))
        self._waiting = [deque(zip(prompt.samples, prompt.limits, strict=True)) for prompt in prompts]
        self._prompt_of: list[int | None] = [None] * (rows // share)
        self._written: list[list[np.ndarray]] = [[] for _ in range(rows)]

    @property
    def waits(self) -> bool:
        """Whether a row that finishes could be given something."""
        return any(self._waiting)

    def next_unread(self, count: int) -> list[int]:
        """The next prompts that groups will be given, at most `count`."""
        return [self._unread[i] for i in range(min(count, len(self._unread)))]

    def fill(self) -> Iterator[Place]:
        """Gives every idle row work where there is any; what it yields must be placed before the batch goes on."""
        for group in range(len(self._prompt_of)):
            rows = range(group * self._share, (group + 1) * self._share)
            idle = [row for row in rows if not self.rows.live_B[row]]
            prompt = self._prompt_of[group]
            if len(idle) == self._share and (prompt is None or not self._waiting[prompt]):
                prompt = self._prompt_of[group] = None
                place = self._next_place(group)
                if place is None:
                    continue
                prompt = self._prompt_of[group] = place.prompt
                self.lengths_Q[group] = len(self._prompts[prompt].tokens) - 1
                yield place
            for row in idle:
                if self._waiting[prompt]:
                    self._begin(row, prompt, *self._waiting[prompt].popleft())

    def _next_place(self, group: int) -> Place | None:
        """The next prompt that none has read, or else the one of another group that has most answers waiting."""
        if self._unread:
            return Place(group, self._unread.popleft(), None)
        held = [other for other, prompt in enumerate(self._prompt_of) if prompt is not None]
        other = max(held, key=lambda other: len(self._waiting[self._prompt_of[other]]), default=None)
        if other is None or not self._waiting[self._prompt_of[other]]:
            return None
        return Place(group, self._prompt_of[other], other)

    def _begin(self, row: int, prompt: int, sample: int, limit: int) -> None:
        tokens = self._prompts[prompt].tokens
        values = tokens[-1], len(tokens) - 1, 0, limit, 0, True, self._prompts[prompt].number, sample
        for array, value in zip(self.rows, values, strict=True):
            array[row] = value

    def collect(self, tokens_BxC: np.ndarray, rows: Rows) -> Iterator[Answer]:
        """Takes the state after C steps and gives the answers that ended; -1 is where a row wrote nothing."""
        was_live_B, self.rows = self.rows.live_B, Rows(*map(np.array, rows))
        for row in np.flatnonzero(was_live_B):
            self._written[row].append(tokens_BxC[row][tokens_BxC[row] >= 0])
            if not self.rows.live_B[row]:
                tokens = np.concatenate(self._written[row])
                self._written[row] = []
                yield Answer(self._prompt_of[row // self._share], int(self.rows.sample_B[row]), tokens)
