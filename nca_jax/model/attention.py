"""Causal attention that never computes most of what the mask would throw away, and attention to a cache."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e9  # the score of a key or a logit that must not be seen; its exp is exactly 0 in float32
BLOCKS = 4  # blocks of queries: 3/8 of all scores are then never computed, 1/2 being the limit
LEAST_BLOCK = 64

# attend(q, k, v) -> (mixed (B, H, L, Dh), what its caller keeps): attention to more than the input itself.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def causal_attention(
    q_BxHxLxDh: jax.Array, k_BxHxLxDh: jax.Array, v_BxHxLxDh: jax.Array, drop: Callable[[jax.Array, int], jax.Array]
) -> jax.Array:
    """Softmax(q k) v over the keys up to each query, (B, H, L, Dh). Queries come scaled.

    `drop` sees the weights (B, H, R, M) of each block of R queries, and the position of the first.

    Each block of queries meets the keys up to its own end. Scores and softmax are float32, products have q's dtype.
    """
    length = q_BxHxLxDh.shape[2]
    size = max(LEAST_BLOCK, -(-length // BLOCKS))
    mixed = []
    for start in range(0, length, size):
        end = min(start + size, length)
        q_BxHxRxDh, k_BxHxMxDh, v_BxHxMxDh = q_BxHxLxDh[:, :, start:end], k_BxHxLxDh[:, :, :end], v_BxHxLxDh[:, :, :end]
        scores_BxHxRxM = jnp.einsum('bhrk,bhmk->bhrm', q_BxHxRxDh, k_BxHxMxDh, preferred_element_type=jnp.float32)
        causal_RxM = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None]
        scores_BxHxRxM = jnp.where(causal_RxM[None, None], scores_BxHxRxM, MASKED)
        weights_BxHxRxM = drop(jax.nn.softmax(scores_BxHxRxM, axis=-1).astype(q_BxHxLxDh.dtype), start)
        mixed.append(jnp.einsum('bhrm,bhmk->bhrk', weights_BxHxRxM, v_BxHxMxDh))
    return jnp.concatenate(mixed, axis=2)


class Cache(NamedTuple):
    """One layer's keys and values at T positions."""

    k_BxHxTxDh: jax.Array
    v_BxHxTxDh: jax.Array


def cached_attention(
    cache: Cache, start_B: jax.Array, q_BxHxLxDh: jax.Array, k_BxHxLxDh: jax.Array, v_BxHxLxDh: jax.Array
) -> tuple[jax.Array, Cache]:
    """(B, H, L, Dh) of queries at positions start_B and on, over the cache into which their keys and values go."""

    def write(old_HxTxDh: jax.Array, new_HxLxDh: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old_HxTxDh, new_HxLxDh, start, axis=1)

    cache = Cache(
        *(jax.vmap(write)(old, new, start_B) for old, new in zip(cache, (k_BxHxLxDh, v_BxHxLxDh), strict=True))
    )
    scores_BxHxLxT = jnp.einsum('bhlk,bhtk->bhlt', q_BxHxLxDh, cache.k_BxHxTxDh, preferred_element_type=jnp.float32)
    position_BxL = start_B[:, None] + jnp.arange(q_BxHxLxDh.shape[2])[None]
    seen_BxLxT = jnp.arange(scores_BxHxLxT.shape[-1])[None, None] <= position_BxL[..., None]
    scores_BxHxLxT = jnp.where(seen_BxLxT[:, None], scores_BxHxLxT, MASKED)
    weights_BxHxLxT = jax.nn.softmax(scores_BxHxLxT, axis=-1).astype(q_BxHxLxDh.dtype)
    return jnp.einsum('bhlt,bhtk->bhlk', weights_BxHxLxT, cache.v_BxHxTxDh), cache


def shared_attention(
    prompts: Cache,
    read_QxT: jax.Array,
    ring: Cache,
    slot: jax.Array,
    written_BxT: jax.Array,
    q_BxHx1xDh: jax.Array,
    k_BxHx1xDh: jax.Array,
    v_BxHx1xDh: jax.Array,
) -> tuple[jax.Array, Cache]:
    """(B, H, 1, Dh) of one query a row, over its prompt's cache and its own, of which it goes into `slot`.

    Rows come in equal groups of neighbours with one prompt each, of Q prompts: its keys and values are read once for
    all of its rows. `read_QxT` says what of `prompts` counts, `written_BxT` what of the `ring`, this token's included.
    """
    ring = Cache(
        *(
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=2)
            for old, new in zip(ring, (k_BxHx1xDh, v_BxHx1xDh), strict=True)
        )
    )
    (rows, heads, _, width), count = q_BxHx1xDh.shape, read_QxT.shape[0]
    q_BxHxDh = q_BxHx1xDh[:, :, 0]
    q_QxAxHxDh = q_BxHxDh.reshape(count, rows // count, heads, width)
    scores_QxAxHxT = jnp.einsum('qahk,qhtk->qaht', q_QxAxHxDh, prompts.k_BxHxTxDh, preferred_element_type=jnp.float32)
    scores_QxAxHxT = jnp.where(read_QxT[:, None, None], scores_QxAxHxT, MASKED)
    scores_BxHxT = jnp.einsum('bhk,bhtk->bht', q_BxHxDh, ring.k_BxHxTxDh, preferred_element_type=jnp.float32)
    scores_BxHxT = jnp.where(written_BxT[:, None], scores_BxHxT, MASKED)
    both = jnp.concatenate([scores_QxAxHxT.reshape(rows, heads, -1), scores_BxHxT], axis=-1)
    weights = jax.nn.softmax(both, axis=-1).astype(q_BxHxDh.dtype)
    weights_BxHxT, own_BxHxT = jnp.split(weights, [read_QxT.shape[1]], axis=-1)
    weights_QxAxHxT = weights_BxHxT.reshape(scores_QxAxHxT.shape)
    # Turned by hand: the order of axes in which a CPU's batched product of these is fast.
    mixed_QxHxAxDh = jnp.einsum('qhat,qhtk->qhak', jnp.swapaxes(weights_QxAxHxT, 1, 2), prompts.v_BxHxTxDh)
    own_BxHxDh = jnp.einsum('bht,bhtk->bhk', own_BxHxT, ring.v_BxHxTxDh)
    return (jnp.swapaxes(mixed_QxHxAxDh, 1, 2).reshape(own_BxHxDh.shape) + own_BxHxDh)[:, :, None], ring
