"""What the devices do in decoding: read prompts into caches, and write tokens in a loop until the host is needed.

A batch has B rows in Q equal groups of neighbours. The rows of a group answer one prompt and share its cache; each row
keeps the keys and values of its own answer in a ring, and at one step all rows write into the same slot of theirs.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nca_jax import keys
from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.decode.sampling import Sampling, choose
from nca_jax.model import transformer
from nca_jax.model.attention import Cache, causal_attention, shared_attention
from nca_jax.model.config import ModelConfig

# The axes of a cache; the mesh splits rows (or groups of rows) and heads.
CACHE_AXES = ('batch', 'heads', 'length', 'head')

# One cache for each layer: separate arrays, which the loop can update in place.
Caches = tuple[Cache, ...]


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


def layer_shardings(config: ModelConfig, vocab: Vocab, mesh: jax.sharding.Mesh) -> dict:
    """Shardings of decoding's weights: split over tensor alone, since every step reads all of them."""
    axes, rules = transformer.logical_axes(config, vocab), [rule for rule in meshes.RULES if rule[1] == 'tensor']

    def over_tensor(names: Sequence[str]) -> jax.NamedSharding:
        return jax.NamedSharding(mesh, nn.logical_to_mesh_axes(names, rules))

    # A layer of its own has lost the first axis, along which the layers are stacked.
    layer = jax.tree.map(lambda names: over_tensor(names[1:]), axes['blocks'])
    return jax.tree.map(over_tensor, axes) | {'blocks': (layer,) * config.layers}


def _split(caches: Caches, axes: tuple[str | None, ...] = CACHE_AXES) -> Caches:
    return jax.tree.map(lambda x: nn.with_logical_constraint(x, axes), caches)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty_caches(config: ModelConfig, rows: int, length: int) -> Caches:
    shape = rows, config.heads, length, config.head_width
    return _split(tuple(Cache(*(jnp.zeros(shape, config.dtype) for _ in 'kv')) for _ in range(config.layers)))


@functools.partial(jax.jit, static_argnums=1)
def grow(caches: Caches, length: int) -> Caches:
    return _split(jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0))), caches))


@functools.partial(jax.jit, donate_argnums=0)
def place(caches: Caches, source: Caches, row: jax.Array, group: jax.Array) -> Caches:
    """`caches` with `row` of the source, which may be shorter, at the place of `group`."""

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(old, jax.lax.dynamic_slice_in_dim(new, row, 1), (group, 0, 0, 0))

    return _split(jax.tree.map(put, caches, source))


@functools.partial(jax.jit, donate_argnums=0)
def copy(caches: Caches, source: jax.Array, group: jax.Array) -> Caches:
    """`caches` with one group copied to another. Apart from `place`, which may not donate its own source."""
    return place(caches, caches, source, group)


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill(config: ModelConfig, vocab: Vocab, layers: dict, tokens_BxL: jax.Array) -> Caches:
    """The caches of prompts, which may be padded on the right: no position sees what follows it."""
    position_1xL, attends = jnp.arange(tokens_BxL.shape[1])[None], [attend_and_keep] * config.layers
    _, caches = transformer.apply_cached(config, layers, tokens_BxL, position_1xL, attends, vocab)
    # Not split by prompt: each goes to a group later, which may lie on any device.
    return _split(caches, (None, *CACHE_AXES[1:]))


def attend_and_keep(q_BxHxLxDh: jax.Array, k_BxHxLxDh: jax.Array, v_BxHxLxDh: jax.Array) -> tuple[jax.Array, Cache]:
    return causal_attention(q_BxHxLxDh, k_BxHxLxDh, v_BxHxLxDh), Cache(k_BxHxLxDh, v_BxHxLxDh)


@functools.partial(jax.jit, static_argnames=('config', 'vocab', 'sampling', 'chunk'), donate_argnames='ring')
def write_tokens(
    config: ModelConfig,
    vocab: Vocab,
    sampling: Sampling,
    chunk: int,
    layers: dict,
    prompts: Caches,
    lengths_Q: jax.Array,
    ring: Caches,
    rows: Rows,
    seed: jax.Array,
    next_SxV: jax.Array,
    slot: jax.Array,
    patience: jax.Array,
) -> tuple[Caches, Rows, jax.Array, jax.Array]:
    """Steps until `patience` rows have ended or `chunk` steps are done: (ring, rows, tokens (B, chunk), steps).

    prompts: one cache for each group; group q's holds lengths_Q[q] tokens. slot: the first that the ring writes.
    next_SxV: the state after a state and a token, from `make_stops`. Tokens are -1 where a row wrote none.
    """
    root, live_at_first = keys.key(seed, 'decode'), jnp.sum(rows.live_B)

    # The host is needed as soon as enough rows have ended.
    def goes_on(carry) -> jax.Array:
        steps, _, rows, _ = carry
        live = jnp.sum(rows.live_B)
        return (steps < chunk) & (live > 0) & (live_at_first - live < patience)

    def step(carry):
        steps, ring, rows, tokens_BxC = carry
        at = (slot + steps) % ring[0].k_BxHxTxDh.shape[2]
        logits_BxV, ring = next_logits(config, vocab, layers, prompts, lengths_Q, ring, at, rows)
        after = advance(sampling, logits_BxV, rows, root, next_SxV)
        written_Bx1 = jnp.where(rows.live_B, after.token_B, -1)[:, None]
        return steps + 1, ring, after, jax.lax.dynamic_update_slice_in_dim(tokens_BxC, written_Bx1, steps, axis=1)

    tokens_BxC = jnp.full((rows.token_B.shape[0], chunk), -1, jnp.int32)
    steps, ring, rows, tokens_BxC = jax.lax.while_loop(goes_on, step, (jnp.int32(0), ring, rows, tokens_BxC))
    # The host reads everything but the ring, so each process must have all of it.
    return _split(ring), *jax.lax.with_sharding_constraint((rows, tokens_BxC, steps), jax.P())


def next_logits(
    config: ModelConfig,
    vocab: Vocab,
    layers: dict,
    prompts: Caches,
    lengths_Q: jax.Array,
    ring: Caches,
    slot: jax.Array,
    rows: Rows,
) -> tuple[jax.Array, Caches]:
    """Logits (B, V) after each row's last token, and the ring with that token's keys and values in `slot`."""
    longest, slots = prompts[0].k_BxHxTxDh.shape[2], ring[0].k_BxHxTxDh.shape[2]
    in_prompt_QxT = jnp.arange(longest)[None] < lengths_Q[:, None]
    # A row has written one slot a step since its answer began.
    age_T = (slot - jnp.arange(slots)) % slots
    in_answer_BxT = age_T[None] <= rows.written_B[:, None]
    attends = [
        functools.partial(shared_attention, prompt, in_prompt_QxT, own, slot, in_answer_BxT)
        for prompt, own in zip(prompts, ring, strict=True)
    ]
    tokens_Bx1, position_Bx1 = rows.token_B[:, None], rows.position_B[:, None]
    logits_Bx1xV, ring = transformer.apply_cached(config, layers, tokens_Bx1, position_Bx1, attends, vocab)
    return logits_Bx1xV[:, 0], ring


def advance(sampling: Sampling, logits_BxV: jax.Array, rows: Rows, root: jax.Array, next_SxV: jax.Array) -> Rows:
    """The live rows with one more token; a row whose answer ends with it is no longer live."""

    # A number for each prompt, sample and place: an answer depends on no other row.
    def uniform(number: jax.Array, sample: jax.Array, written: jax.Array) -> jax.Array:
        return jax.random.uniform(keys.key(root, number, sample, written))

    token_B = choose(sampling, logits_BxV, jax.vmap(uniform)(rows.number_B, rows.sample_B, rows.written_B))
    stop_B, written_B = next_SxV[rows.stop_B, token_B], rows.written_B + 1
    # The automaton's last state is the end of an answer.
    ended_B = (stop_B == next_SxV.shape[0] - 1) | (written_B == rows.limit_B)
    after = rows._replace(
        token_B=token_B, position_B=rows.position_B + 1, written_B=written_B, stop_B=stop_B, live_B=~ended_B
    )
    # Rows that had ended before stay as they are.
    return Rows(*(jnp.where(rows.live_B, new, old) for new, old in zip(after, rows, strict=True)))
