"""Which row of a decoding batch answers which prompt: a row that finishes gets more work at once. Host arrays only."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Prompt(NamedTuple):
    """A prompt and the answers to write."""

    # At least one token.
    tokens: np.ndarray
    # Names the prompt in the keys of its samples.
    number: int
    # The numbers of the answers, at least one, and the most tokens of each, at least one.
    samples: Sequence[int]
    limits: Sequence[int]


class Answer(NamedTuple):
    # Index into the prompts.
    prompt: int
    sample: int
    # Including the stop token, or the token in which a stop string ended.
    tokens: np.ndarray


class Rows(NamedTuple):
    """The state of each row besides its cache."""

    # The last token, not read yet, and its position.
    token_B: np.ndarray
    position_B: np.ndarray
    # Tokens of the answer so far, and at most.
    written_B: np.ndarray
    limit_B: np.ndarray
    # State of the automaton of `make_stops`.
    stop_B: np.ndarray
    live_B: np.ndarray
    # The prompt's number and the sample's, for the key.
    number_B: np.ndarray
    sample_B: np.ndarray


def idle_rows(count: int) -> Rows:
    dtypes = (*(np.int32,) * 5, bool, np.uint32, np.uint32)
    return Rows(*(np.zeros(count, dtype) for dtype in dtypes))


class Schedule:
    """Deals answers to `rows` rows in groups of `share`, one prompt to a group at a time."""

    def __init__(self, prompts: Sequence[Prompt], rows: int, share: int):
        self.rows = idle_rows(rows)
        # Tokens in each group's cache: all of its prompt but the last, with which its rows begin.
        self.lengths_Q = np.zeros(rows // share, np.int32)
        self._prompts, self._share = prompts, share
        self._unread = iter(range(len(prompts)))
        # The samples and limits that no row has begun, by prompt.
        self._waiting = [deque(zip(prompt.samples, prompt.limits, strict=True)) for prompt in prompts]
        self._prompt_of: list[int | None] = [None] * (rows // share)
        # The tokens of each row's unfinished answer, chunk by chunk.
        self._written: list[list[np.ndarray]] = [[] for _ in range(rows)]

    @property
    def has_waiting(self) -> bool:
        return any(self._waiting)

    def fill(self) -> Iterator[tuple[int, int | None]]:
        """Gives work to every idle row while any is left, and yields the groups that need another cache.

        Each comes as (group, source): a group that has the cache already, or None for the next prompt in order.
        """
        for group, prompt in enumerate(self._prompt_of):
            rows = range(group * self._share, (group + 1) * self._share)
            idle = [row for row in rows if not self.rows.live_B[row]]
            if len(idle) == self._share and (prompt is None or not self._waiting[prompt]):
                # No row needs this group's cache any more. Unread prompts come first: splitting one prompt over groups
                # only pays at the end.
                prompt, source = next(self._unread, None), None
                if prompt is None:
                    # Then the prompt with the most answers waiting, from a group that has its cache.
                    waiting = {g: len(self._waiting[p]) for g, p in enumerate(self._prompt_of) if p is not None}
                    source = max(waiting, key=waiting.get, default=None)
                    if not waiting.get(source):
                        continue
                    prompt = self._prompt_of[source]
                self._prompt_of[group] = prompt
                self.lengths_Q[group] = len(self._prompts[prompt].tokens) - 1
                yield group, source
            for row in idle:
                if self._waiting[prompt]:
                    sample, limit = self._waiting[prompt].popleft()
                    tokens, number = self._prompts[prompt].tokens, self._prompts[prompt].number
                    # The row begins with the prompt's last token, which isn't in the cache.
                    values = Rows(tokens[-1], len(tokens) - 1, 0, limit, 0, True, number, sample)
                    for array, value in zip(self.rows, values, strict=True):
                        array[row] = value

    def collect(self, tokens_BxC: np.ndarray, rows: Rows) -> Iterator[Answer]:
        """Takes the rows' state after C steps and yields the answers that ended. Token -1: the row wrote nothing."""
        was_live_B = self.rows.live_B
        # Arrays from a device are read-only, and `fill` writes into these.
        self.rows = Rows(*map(np.array, rows))
        for row in np.flatnonzero(was_live_B):
            self._written[row].append(tokens_BxC[row][tokens_BxC[row] >= 0])
            if not self.rows.live_B[row]:
                tokens = np.concatenate(self._written[row])
                # `fill` may give the row other work.
                self._written[row] = []
                yield Answer(self._prompt_of[row // self._share], int(self.rows.sample_B[row]), tokens)
