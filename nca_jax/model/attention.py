"""Causal attention that never computes most of what the mask would throw away."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

MASKED = -1e9  # the score of a key or a logit that must not be seen; its exp is exactly 0 in float32
BLOCKS = 4  # blocks of queries: 3/8 of all scores are then never computed, 1/2 being the limit
LEAST_BLOCK = 64


def causal_attention(
    q_BxHxLxDh: jax.Array, k_BxHxLxDh: jax.Array, v_BxHxLxDh: jax.Array, drop: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Softmax(q k) v over the keys up to each query, (B, H, L, Dh). Queries come scaled; `drop` sees the weights.

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
        weights_BxHxRxM = drop(jax.nn.softmax(scores_BxHxRxM, axis=-1).astype(q_BxHxLxDh.dtype))
        mixed.append(jnp.einsum('bhrm,bhmk->bhrk', weights_BxHxRxM, v_BxHxMxDh))
    return jnp.concatenate(mixed, axis=2)
