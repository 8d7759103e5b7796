"""Sampling answers to prompts: each prompt is read once, and a loop on the devices writes all answers together.

A row that has finished begins the next answer to its group's prompt, and a group without any left gets the next prompt.
The host deals answers to rows (`Schedule`), the devices read and write tokens (`programs`).
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.decode import programs
from nca_jax.decode.programs import Rows, idle_rows
from nca_jax.decode.sampling import Sampling
from nca_jax.errors import check
from nca_jax.model import transformer
from nca_jax.model.config import ModelConfig

# Prompts that are read together.
READ_TOGETHER = 4
# While answers wait, the host looks as soon as 1 / IMPATIENCE of the rows have ended.
IMPATIENCE = 16


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """The layout of a batch, which changes no answer but for rounding."""

    # Answers that are written at a time.
    rows: int
    # Rows that share a prompt.
    share: int
    # Most steps before the host looks.
    chunk: int

    def __post_init__(self):
        for field in ('rows', 'share', 'chunk'):
            check(getattr(self, field) > 0, field, getattr(self, field), 'must be positive')
        check(self.rows % self.share == 0, 'share', self.share, f'must divide rows = {self.rows}')


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


def make_decoder(
    config: ModelConfig,
    vocab: Vocab,
    mesh: jax.sharding.Mesh,
    batch: DecodeConfig,
    sampling: Sampling,
    next_SxV: np.ndarray,
) -> Callable[[dict, Sequence[Prompt], int], Iterator[Answer]]:
    """`decode(params, prompts, seed)` yields the answers to all prompts, each as soon as it has ended, in any order.

    - An answer depends on params, seed, its prompt's tokens and number, its own number and its limit.
    - It does not depend on the other prompts, on the batch's layout or on the mesh, but for rounding.
    - Every process of a run makes the same calls.

    `next_SxV` comes from `make_stops`. Rows are split over data and fsdp, heads over tensor. Raises FieldError where
    groups of rows don't divide, or where a prompt and its answer are longer than config.length.
    """
    shards, groups = meshes.row_shards(mesh), batch.rows // batch.share
    check(groups % shards == 0, 'rows', batch.rows, f'/ share = {batch.share} must be a multiple of {shards} devices')
    of_layers, whole = programs.layer_shardings(config, vocab, mesh), meshes.replicated(mesh)
    by_layer = jax.jit(functools.partial(transformer.by_layer, config), out_shardings=of_layers)
    replicate = jax.jit(lambda x: x, out_shardings=whole)
    # A multiple of the shards, over which the prompts are split.
    together = -(-READ_TOGETHER // shards) * shards

    def decode(params: dict, prompts: Sequence[Prompt], seed: int) -> Iterator[Answer]:
        longest, slots = _sizes(config, prompts)
        schedule, slot = Schedule(prompts, batch.rows, batch.share), 0
        # The loop forbids silent transfers; here they are small and meant: prompts, the state of rows, numbers.
        with meshes.use(mesh), jax.transfer_guard_host_to_device('allow'):
            layers, stops = by_layer(params), replicate(next_SxV)
            caches = programs.empty_caches(config, groups, bucket(longest))
        read = _read(config, vocab, layers, prompts, together)
        while True:
            with meshes.use(mesh), jax.transfer_guard_host_to_device('allow'):
                was_live = schedule.rows.live_B.any()
                for group, source in schedule.fill():
                    if source is None:
                        caches = programs.place(caches, *next(read), group)
                    else:
                        caches = programs.copy(caches, source, group)
                if not schedule.rows.live_B.any():
                    return
                if not was_live:
                    # No answer is under way, so the ring may be as short as at the start.
                    slot = used = 0
                    ring = programs.empty_caches(config, batch.rows, _slots_for(batch.chunk, slots))
                elif (needed := _slots_for(used + batch.chunk, slots)) > ring[0].k_BxHxTxDh.shape[2]:
                    ring = programs.grow(ring, needed)
                # While answers wait, the host gives a few idle rows new work; else the rows run until all have ended.
                patience = max(1, batch.rows // IMPATIENCE) if any(schedule.waiting) else batch.rows
                state = layers, caches, schedule.lengths_Q, ring, schedule.rows, np.uint32(seed), stops, slot, patience
                ring, *host = programs.write_tokens(config, vocab, sampling, batch.chunk, *state)
                rows, tokens_BxC, steps = jax.device_get(host)
                slot, used = int(slot + steps) % slots, int(used + steps)
            # Outside the mesh: whoever reads the answers may set another.
            yield from schedule.collect(tokens_BxC[:, :steps], rows)

    return decode


def _read(
    config: ModelConfig, vocab: Vocab, layers: dict, prompts: Sequence[Prompt], together: int
) -> Iterator[tuple[programs.Caches, int]]:
    """The cache of each prompt in turn, as (caches, row): `together` are read when the first of them is needed."""
    # All but the last token, which the answer's first step reads.
    tokens = [prompt.tokens[:-1] for prompt in prompts]
    for start in range(0, len(tokens), together):
        part = tokens[start : start + together]
        # Padded on the right and below, to few shapes.
        tokens_BxL = np.zeros((together, bucket(max(map(len, part)))), np.int32)
        for row, prompt in enumerate(part):
            tokens_BxL[row, : len(prompt)] = prompt
        caches = programs.prefill(config, vocab, layers, tokens_BxL)
        yield from ((caches, row) for row in range(len(part)))


def _sizes(config: ModelConfig, prompts: Sequence[Prompt]) -> tuple[int, int]:
    """Tokens of the longest prompt's cache and of the longest answer."""
    for prompt in prompts:
        allowed = f'must leave room for an answer of {max(prompt.limits)} in length {config.length}'
        check(len(prompt.tokens) + max(prompt.limits) <= config.length, 'prompt length', len(prompt.tokens), allowed)
    longest = max((len(prompt.tokens) - 1 for prompt in prompts), default=0)
    return longest, max((max(prompt.limits) for prompt in prompts), default=1)


def _slots_for(used: int, most: int) -> int:
    """A quarter or half of `most` slots while that holds the used ones: reading them is much of a step's work."""
    return next(size for size in (-(-most // 4), -(-most // 2), most) if used <= size or size == most)


def bucket(length: int) -> int:
    """The padded length of a prompt: a power of two from 32 on, so that few shapes are compiled."""
    return max(32, 1 << (length - 1).bit_length())


class Schedule:
    """Deals answers to `rows` rows in groups of `share`, one prompt to a group at a time. Host arrays only."""

    def __init__(self, prompts: Sequence[Prompt], rows: int, share: int):
        self.rows = idle_rows(rows)
        # Tokens in each group's cache: all of its prompt but the last, with which its rows begin.
        self.lengths_Q = np.zeros(rows // share, np.int32)
        self._prompts, self._share = prompts, share
        self._unread = iter(range(len(prompts)))
        # The samples and limits that no row has begun, by prompt.
        self.waiting = [deque(zip(prompt.samples, prompt.limits, strict=True)) for prompt in prompts]
        self._prompt_of: list[int | None] = [None] * (rows // share)
        # The tokens of each row's unfinished answer, chunk by chunk.
        self._written: list[list[np.ndarray]] = [[] for _ in range(rows)]

    def fill(self) -> Iterator[tuple[int, int | None]]:
        """Gives work to every idle row while any is left, and yields the groups that need another cache.

        Each comes as (group, source): a group that has the cache already, or None for the next prompt in order.
        """
        for group, prompt in enumerate(self._prompt_of):
            rows = range(group * self._share, (group + 1) * self._share)
            idle = [row for row in rows if not self.rows.live_B[row]]
            if len(idle) == self._share and (prompt is None or not self.waiting[prompt]):
                # No row needs this group's cache any more. Unread prompts come first: splitting one prompt over groups
                # only pays at the end.
                prompt, source = next(self._unread, None), None
                if prompt is None:
                    # Then the prompt with the most answers waiting, from a group that has its cache.
                    waiting = {g: len(self.waiting[p]) for g, p in enumerate(self._prompt_of) if p is not None}
                    source = max(waiting, key=waiting.get, default=None)
                    if not waiting.get(source):
                        continue
                    prompt = self._prompt_of[source]
                self._prompt_of[group] = prompt
                self.lengths_Q[group] = len(self._prompts[prompt].tokens) - 1
                yield group, source
            for row in idle[: len(self.waiting[prompt])]:
                sample, limit = self.waiting[prompt].popleft()
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
