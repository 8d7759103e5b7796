"""Sampling answers to prompts: each prompt is read once, and a loop on the device writes all answers together.

A batch has rows in equal groups. The rows of a group answer one prompt, whose keys and values they share; each row
keeps those of its own tokens in a ring, and at one step all rows write into the same slot of theirs. A row that has
finished is given the next answer that its prompt still wants, and a group with none left the next prompt (`refill`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.decode.programs import lower_write, make_programs
from nca_jax.decode.sampling import Sampling
from nca_jax.decode.schedule import Answer, Prompt, Schedule
from nca_jax.decode.stops import Stops
from nca_jax.errors import check
from nca_jax.model.config import ModelConfig

READ_TOGETHER = 4  # prompts
LEAST_BUCKET = 32  # prompts are padded to this times a power of two, so that few shapes are compiled
IMPATIENCE = 16  # while answers wait, the host looks when one in so many rows has ended

Decode = Callable[[dict, Sequence[Prompt], int], Iterator[Answer]]


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How a batch is laid out, which changes no answer but for rounding.

    rows: answers that are written at a time. share: rows of a group. chunk: the most steps before the host looks.
    """

    rows: int
    share: int
    chunk: int

    def __post_init__(self):
        for field in ('rows', 'share', 'chunk'):
            check(getattr(self, field) > 0, field, getattr(self, field), 'must be positive')
        check(self.rows % self.share == 0, 'share', self.share, f'must divide rows = {self.rows}')


def make_decoder(
    config: ModelConfig, vocab: Vocab, mesh: jax.sharding.Mesh, batch: DecodeConfig, sampling: Sampling, stops: Stops
) -> Decode:
    """`decode(params, prompts, seed)`: the answers to all prompts, each as soon as it has ended, in no promised order.

    An answer depends on params, seed, its prompt's tokens and number, its own number and limit: not on what else is
    asked, on the batch's layout or on the mesh, but for how sums are rounded. Rows are split over data and fsdp, heads
    over tensor. Raises FieldError where groups of rows don't divide, or where a prompt and its answer pass
    config.length. Every process of a run calls it alike.
    """
    shards, groups = meshes.row_shards(mesh), batch.rows // batch.share
    check(groups % shards == 0, 'rows', batch.rows, f'/ share = {batch.share} must be a multiple of {shards} devices')
    programs = make_programs(config, vocab, mesh, sampling)
    together = -(-READ_TOGETHER // shards) * shards
    ends_V = np.isin(np.arange(vocab.padded), stops.tokens)

    def decode(params: dict, prompts: Sequence[Prompt], seed: int) -> Iterator[Answer]:
        longest, slots = _sizes(config, prompts)
        weights, root = programs.prepare(params), programs.key(np.uint32(seed))
        ends = programs.whole((ends_V, stops.next_SxV))
        held = programs.empty(groups, bucket(longest))
        schedule, read_ahead, slot = Schedule(prompts, batch.rows, batch.share), {}, 0
        while True:
            was_live = schedule.rows.live_B.any()
            for place in schedule.fill():
                if place.group_with_it is not None:
                    held = programs.copy(held, place.group_with_it, place.group)
                    continue
                if place.prompt not in read_ahead:
                    numbers = [place.prompt, *schedule.next_unread(together - 1)]
                    caches = programs.prefill(weights, _padded([prompts[i].tokens[:-1] for i in numbers], together))
                    read_ahead = {number: (caches, row) for row, number in enumerate(numbers)}
                held = programs.place(held, *read_ahead.pop(place.prompt), place.group)
            if not schedule.rows.live_B.any():
                return
            if not was_live:
                slot = used = 0
                ring = programs.empty(batch.rows, _slots_for(batch.chunk, slots))
            elif (wanted := _slots_for(used + batch.chunk, slots)) > ring[0].k_BxHxTxDh.shape[2]:
                ring = programs.grow(ring, wanted)
            # While others wait it's enough that a few have ended: the host then gives their rows something new.
            patience = max(1, batch.rows // IMPATIENCE) if schedule.waits else batch.rows
            ring, *host = programs.write(
                weights, held, schedule.lengths_Q, ring, schedule.rows, root, ends, slot, patience, batch.chunk
            )
            rows, tokens_BxC, steps = jax.device_get(host)
            slot, used = int(slot + steps) % slots, int(used + steps)
            yield from schedule.collect(tokens_BxC[:, :steps], rows)

    return decode


def lower_decoding(
    config: ModelConfig, vocab: Vocab, mesh: jax.sharding.Mesh, batch: DecodeConfig, sampling: Sampling, answer: int
) -> jax.stages.Lowered:
    """A step of decoding at its largest, without any data: answers of `answer` tokens, prompts that leave them room."""
    groups, prompt = batch.rows // batch.share, bucket(config.length - answer)
    return lower_write(config, vocab, mesh, sampling, groups=groups, longest=prompt, rows=batch.rows, slots=answer)


def _sizes(config: ModelConfig, prompts: Sequence[Prompt]) -> tuple[int, int]:
    """Tokens of the longest prompt's cache, and of the longest answer."""
    asked = [prompt for prompt in prompts if len(prompt.samples)]
    for prompt in asked:
        most = max(prompt.limits)
        check(len(prompt.tokens) > 0, 'prompt', prompt.number, 'must have a token')
        check(most > 0, 'limits', most, 'must be positive')
        allowed = f'must leave room for an answer of {most} in length {config.length}'
        check(len(prompt.tokens) + most <= config.length, 'prompt of tokens', len(prompt.tokens), allowed)
    longest = max((len(prompt.tokens) - 1 for prompt in asked), default=0)
    return longest, max((max(prompt.limits) for prompt in asked), default=1)


def _slots_for(used: int, most: int) -> int:
    """A quarter or a half of the slots while no more are used: reading them is much of a step's work."""
    return next(size for size in (-(-most // 4), -(-most // 2), most) if used <= size or size == most)


def bucket(length: int) -> int:
    """What `length` tokens are padded to."""
    return LEAST_BUCKET * 2 ** max(0, (-(-length // LEAST_BUCKET) - 1)).bit_length()


def _padded(prompts: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Tokens (rows, L), padded on the right and below."""
    tokens_BxL = np.zeros((rows, bucket(max(map(len, prompts)))), np.int32)
    for row, tokens in enumerate(prompts):
        tokens_BxL[row, : len(tokens)] = tokens
    return tokens_BxL
