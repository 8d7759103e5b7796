"""Sampling answers to prompts: each prompt is read once, and a loop on the device writes all answers together.

A batch has rows in equal groups. The rows of a group answer one prompt, whose keys and values they share; each row
keeps those of its own tokens in a ring, and at one step all rows write into the same slot of theirs. A row that has
finished is given the next answer that its prompt still wants, and a group with none left the next prompt (`refill`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nca_jax import keys
from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.errors import check
from nca_jax.model import transformer
from nca_jax.model.attention import shared_attention
from nca_jax.model.cached import Caches, by_layer, empty_cache, extend, read
from nca_jax.model.config import ModelConfig
from nca_jax.model.refill import Answer, Prompt, Rows, Schedule
from nca_jax.model.sampling import Sampling, choose
from nca_jax.model.stops import Stops

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


class Programs(NamedTuple):
    """What a decoder has the devices do, each jitted for one mesh and callable from the host.

    prepare(params) -> weights as decoding reads them, key(seed) -> the root of all keys, whole(tree) -> arrays on every
    device. empty(rows, length),
    grow(caches, length), prefill(weights, tokens_BxL) -> Caches. place(caches, source, row, group) -> caches with the
    source's row at the group's place; copy(caches, group, group) -> the same within one. write: see `write_tokens`.
    """

    prepare: Callable
    key: Callable
    whole: Callable
    empty: Callable
    grow: Callable
    prefill: Callable
    place: Callable
    copy: Callable
    write: Callable


def make_programs(config: ModelConfig, vocab: Vocab, mesh: jax.sharding.Mesh, sampling: Sampling) -> Programs:
    """The device's part of a decoder."""
    whole, by_row, by_head = (
        jax.NamedSharding(mesh, spec) for spec in (jax.P(), jax.P(('data', 'fsdp'), 'tensor'), jax.P(None, 'tensor'))
    )

    def prefill(weights: dict, tokens_BxL: jax.Array) -> Caches:
        rows, length = tokens_BxL.shape
        cache, start_B = empty_cache(config, rows, length), jnp.zeros(rows, jnp.int32)
        return extend(config, weights, tokens_BxL, start_B, cache, vocab)[1]

    def on_mesh(function: Callable, **options) -> Callable:
        jitted = jax.jit(function, **options)

        def call(*args):
            # What goes to the devices is small, and meant: prompts, the state of rows, numbers.
            with meshes.use(mesh), jax.transfer_guard_host_to_device('allow'):
                return jitted(*args)

        return call

    return Programs(
        prepare=on_mesh(functools.partial(by_layer, config), out_shardings=_whole_over_fsdp(config, vocab, mesh)),
        key=on_mesh(lambda seed: keys.key(seed, 'decode'), out_shardings=whole),
        whole=on_mesh(lambda tree: tree, out_shardings=whole),
        empty=on_mesh(functools.partial(empty_cache, config), static_argnums=(0, 1), out_shardings=by_row),
        grow=on_mesh(_grown, static_argnums=1, out_shardings=by_row),
        prefill=on_mesh(prefill, out_shardings=by_head),
        place=on_mesh(_place, donate_argnums=0, out_shardings=by_row),
        copy=on_mesh(lambda caches, *groups: _place(caches, caches, *groups), donate_argnums=0, out_shardings=by_row),
        write=on_mesh(
            functools.partial(write_tokens, config, vocab, sampling),
            static_argnums=9,
            donate_argnums=3,
            out_shardings=(by_row, whole, whole, whole),
        ),
    )


def write_tokens(
    config: ModelConfig,
    vocab: Vocab,
    sampling: Sampling,
    weights: dict,
    held: Caches,
    lengths_Q: jax.Array,
    ring: Caches,
    rows: Rows,
    root: jax.Array,
    stops: tuple[jax.Array, jax.Array],
    slot: jax.Array,
    patience: jax.Array,
    chunk: int,
) -> tuple[Caches, Rows, jax.Array, jax.Array]:
    """Steps until `patience` rows have ended or `chunk` tokens are written: (ring, rows, tokens (B, chunk), steps).

    `held` has the keys and values of lengths_Q tokens for each group, `slot` is the ring's next. `stops`: which tokens
    end an answer (V,) and the automaton of stop strings (S, V). Tokens are -1 where a row wrote none.
    """
    at_first = jnp.sum(rows.live_B)

    def goes_on(carry) -> jax.Array:
        steps, _, rows, _ = carry
        live = jnp.sum(rows.live_B)
        return (steps < chunk) & (live > 0) & (at_first - live < patience)

    def body(carry):
        steps, ring, rows, tokens_BxC = carry
        at = (slot + steps) % ring[0].k_BxHxTxDh.shape[2]
        logits_BxV, ring = next_logits(config, vocab, weights, held, lengths_Q, ring, at, rows)
        after = _advance(sampling, logits_BxV, rows, root, *stops)
        written_Bx1 = jnp.where(rows.live_B, after.token_B, -1)[:, None]
        return steps + 1, ring, after, jax.lax.dynamic_update_slice_in_dim(tokens_BxC, written_Bx1, steps, axis=1)

    tokens_BxC = jnp.full((rows.token_B.shape[0], chunk), -1, jnp.int32)
    steps, ring, rows, tokens_BxC = jax.lax.while_loop(goes_on, body, (jnp.int32(0), ring, rows, tokens_BxC))
    return ring, rows, tokens_BxC, steps


def next_logits(
    config: ModelConfig,
    vocab: Vocab,
    weights: dict,
    held: Caches,
    lengths_Q: jax.Array,
    ring: Caches,
    slot: jax.Array,
    rows: Rows,
) -> tuple[jax.Array, Caches]:
    """Logits (B, V) after each row's last token, whose keys and values go into the ring's slot."""
    longest, slots = held[0].k_BxHxTxDh.shape[2], ring[0].k_BxHxTxDh.shape[2]
    read_QxT = jnp.arange(longest)[None] < lengths_Q[:, None]
    age_T = (slot - jnp.arange(slots)) % slots  # in steps; a row wrote one slot a step since it began
    written_BxT = age_T[None] <= rows.written_B[:, None]
    attends = [
        functools.partial(shared_attention, prompts, read_QxT, own, slot, written_BxT)
        for prompts, own in zip(held, ring, strict=True)
    ]
    logits_Bx1xV, ring = read(config, weights, rows.token_B[:, None], rows.position_B[:, None], attends, vocab)
    return logits_Bx1xV[:, 0], ring


def _advance(
    sampling: Sampling, logits_BxV: jax.Array, rows: Rows, root: jax.Array, ends_V: jax.Array, next_SxV: jax.Array
) -> Rows:
    """The rows with a token more, and those of them that it ends no longer live."""

    def uniform(number: jax.Array, sample: jax.Array, written: jax.Array) -> jax.Array:
        return jax.random.uniform(keys.key(root, number, sample, written))

    token_B = choose(sampling, logits_BxV, jax.vmap(uniform)(rows.number_B, rows.sample_B, rows.written_B))
    stop_B, written_B = next_SxV[rows.stop_B, token_B], rows.written_B + 1
    ended_B = ends_V[token_B] | (stop_B == next_SxV.shape[0] - 1) | (written_B == rows.limit_B)
    after = rows._replace(
        token_B=token_B, position_B=rows.position_B + 1, written_B=written_B, stop_B=stop_B, live_B=~ended_B
    )
    return Rows(*(jnp.where(rows.live_B, new, old) for new, old in zip(after, rows, strict=True)))


def _grown(caches: Caches, length: int) -> Caches:
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0))), caches)


def _place(caches: Caches, source: Caches, row: jax.Array, group: jax.Array) -> Caches:
    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(old, jax.lax.dynamic_slice_in_dim(new, row, 1), (group, 0, 0, 0))

    return jax.tree.map(put, caches, source)


def _whole_over_fsdp(config: ModelConfig, vocab: Vocab, mesh: jax.sharding.Mesh) -> dict:
    """Where decoding keeps its weights: split over tensor alone, since every step reads all of them."""
    abstract, axes = transformer.abstract_params(config, vocab), transformer.logical_axes(config, vocab)
    by_leaf = meshes.param_shardings(mesh, axes, abstract)
    without = jax.tree.map(
        lambda s: jax.NamedSharding(mesh, jax.P(*(axis if axis == 'tensor' else None for axis in s.spec))), by_leaf
    )
    layer = jax.tree.map(lambda s: jax.NamedSharding(mesh, jax.P(*s.spec[1:])), without['blocks'])
    return without | {'blocks': (layer,) * config.layers}


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
