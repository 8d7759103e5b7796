"""What a decoder has the devices do: read prompts into caches, and write tokens in a loop until the host is wanted."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nca_jax import keys
from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.decode.cached import Caches, by_layer, empty_cache, extend, read
from nca_jax.decode.sampling import Sampling, choose
from nca_jax.decode.schedule import Rows, idle_rows
from nca_jax.model import transformer
from nca_jax.model.attention import shared_attention
from nca_jax.model.config import ModelConfig

BY_ROW = jax.P(('data', 'fsdp'), 'tensor')  # of caches: rows or groups, and heads


class Programs(NamedTuple):
    """What a decoder has the devices do, each jitted for one mesh and callable from the host.

    prepare(params) -> weights as decoding reads them, key(seed) -> the root of all keys, whole(tree) -> arrays on every
    device. empty(rows, length), grow(caches, length) and prefill(weights, tokens_BxL) -> Caches. place(caches, source,
    row, group) -> caches with the source's row at the group's place; copy(caches, group, group) -> the same within one.
    write: see `write_tokens`.
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
    whole, by_row, by_head = (jax.NamedSharding(mesh, spec) for spec in (jax.P(), BY_ROW, jax.P(None, 'tensor')))

    def prefill(weights: dict, tokens_BxL: jax.Array) -> Caches:
        rows, length = tokens_BxL.shape
        cache, start_B = empty_cache(config, rows, length), jnp.zeros(rows, jnp.int32)
        return extend(config, weights, tokens_BxL, start_B, cache, vocab)[1]

    def on_mesh(jitted: Callable) -> Callable:
        def call(*args):
            # What goes to the devices is small, and meant: prompts, the state of rows, numbers.
            with meshes.use(mesh), jax.transfer_guard_host_to_device('allow'):
                return jitted(*args)

        return call

    def copy(caches: Caches, *groups: jax.Array) -> Caches:
        return _place(caches, caches, *groups)

    empty = functools.partial(empty_cache, config)
    programs = Programs(
        prepare=jax.jit(functools.partial(by_layer, config), out_shardings=_whole_over_fsdp(config, vocab, mesh)),
        key=jax.jit(lambda seed: keys.key(seed, 'decode'), out_shardings=whole),
        whole=jax.jit(lambda tree: tree, out_shardings=whole),
        empty=jax.jit(empty, static_argnums=(0, 1), out_shardings=by_row),
        grow=jax.jit(_grown, static_argnums=1, out_shardings=by_row),
        prefill=jax.jit(prefill, out_shardings=by_head),
        place=jax.jit(_place, donate_argnums=0, out_shardings=by_row),
        copy=jax.jit(copy, donate_argnums=0, out_shardings=by_row),
        write=_jit_write(config, vocab, mesh, sampling),
    )
    return Programs(*map(on_mesh, programs))


def lower_write(
    config: ModelConfig,
    vocab: Vocab,
    mesh: jax.sharding.Mesh,
    sampling: Sampling,
    *,
    groups: int,
    longest: int,
    rows: int,
    slots: int,
) -> jax.stages.Lowered:
    """A step of `write_tokens` without any data, for devices that needn't be here.

    groups: of prompts of at most `longest` tokens. rows: answers, with rings of `slots` tokens. No stop strings.
    """
    weights = jax.eval_shape(functools.partial(by_layer, config), transformer.abstract_params(config, vocab))
    by_row, key = jax.NamedSharding(mesh, BY_ROW), jax.eval_shape(lambda: keys.key(0))

    def placed(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)

    def caches(*size: int) -> Caches:
        abstract = jax.eval_shape(lambda: empty_cache(config, *size))
        return placed(abstract, jax.tree.map(lambda _: by_row, abstract))

    stops = np.zeros(vocab.padded, bool), np.zeros((2, vocab.size), np.int32)
    with meshes.use(mesh):
        return _jit_write(config, vocab, mesh, sampling).lower(
            placed(weights, _whole_over_fsdp(config, vocab, mesh)),
            caches(groups, longest),
            np.zeros(groups, np.int32),
            caches(rows, slots),
            idle_rows(rows),
            placed(key, jax.NamedSharding(mesh, jax.P())),
            stops,
            np.int32(0),
            np.int32(1),
            1,
        )


def _jit_write(config: ModelConfig, vocab: Vocab, mesh: jax.sharding.Mesh, sampling: Sampling) -> Callable:
    by_row, whole = jax.NamedSharding(mesh, BY_ROW), jax.NamedSharding(mesh, jax.P())
    write = functools.partial(write_tokens, config, vocab, sampling)
    return jax.jit(write, static_argnums=9, donate_argnums=3, out_shardings=(by_row, whole, whole, whole))


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
