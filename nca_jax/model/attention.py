"""Causal attention that never computes most of what the mask would throw away, and attention to a cache."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e9  # the score of a key or a logit that must not be seen; its exp is exactly 0 in float32
BLOCKS = 4  # blocks of queries: 3/8 of all scores are then never computed, 1/2 being the limit
LEAST_BLOCK = 64


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
    q_BxHxLxDh: jax.Array, k_BxHxLxDh: jax.Array, v_BxHxLxDh: jax.Array, cache: Cache, start_B: jax.Array
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
