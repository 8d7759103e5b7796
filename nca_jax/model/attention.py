"""Attention: over the sequence itself, by plain products or by a fused kernel, and over the caches of decoding.

Queries come scaled by 1 / sqrt(Dh). Scores and softmax are float32, products have the dtype of the queries.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from nca_jax.errors import UserError

# The score of a masked key and the logit of a masked token: its exp is exactly 0 in float32.
MASKED = -1e9

# Four blocks of queries skip 3/8 of all scores; more blocks come closer to 1/2, in smaller products.
BLOCKS = 4
LEAST_BLOCK = 64

# Rows and columns of a splash tile. Its default of 128 is slower than plain products.
LARGEST_TILE = 1024

# The name of the activations that remat 'projections' saves.
SAVED = 'saved'

# Cosines and sines of `rotary_angles`.
Angles = tuple[jax.Array, jax.Array]

# attend(q, k, v) -> (mixed (B, H, L, Dh), the layer's new cache): how decoding replaces attention over the input alone.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class Cache(NamedTuple):
    """One layer's keys and values at T positions."""

    k_BxHxTxDh: jax.Array
    v_BxHxTxDh: jax.Array


class Dropout(NamedTuple):
    """The randomness of one training pass."""

    key: jax.Array
    # The number of each row in the full batch, so that its mask is the same wherever and whenever the row is computed.
    rows_B: jax.Array


def drop(x_Bx: jax.Array, rate: float, dropout: Dropout, block: int) -> jax.Array:
    """Sets a share `rate` of x to 0 and scales up the rest. Rows and blocks draw independent masks."""
    key = jax.random.fold_in(dropout.key, block)

    # A key for each row: its mask then depends neither on the batch's size nor on the device that holds the row.
    def drop_row(row: jax.Array, x: jax.Array) -> jax.Array:
        keep = jax.random.bernoulli(jax.random.fold_in(key, row), 1 - rate, x.shape)
        return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))

    return jax.vmap(drop_row)(dropout.rows_B, x_Bx)


def rotary_angles(head_width: int, theta: float, position_BxL: jax.Array) -> Angles:
    """Cosines and sines (B, 1, L, Dh/2) of rotary position embedding, float32."""
    exponents = jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width
    angles = position_BxL[:, None, :, None].astype(jnp.float32) * (theta**-exponents)[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BxHxLxDh: jax.Array, angles: Angles) -> jax.Array:
    """Rotates each half-split pair (x[i], x[i + Dh/2]) by the angle of its position, as Llama does."""
    # The tables are exact in float32; the rotation itself has the dtype of its input.
    cos, sin = (table.astype(x_BxHxLxDh.dtype) for table in angles)
    first, second = jnp.split(x_BxHxLxDh, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def causal_attention(
    q_BxHxLxDh: jax.Array,
    k_BxHxLxDh: jax.Array,
    v_BxHxLxDh: jax.Array,
    rate: float = 0.0,
    dropout: Dropout | None = None,
) -> jax.Array:
    """Softmax(q k) v over the keys up to each query, (B, H, L, Dh), with dropout on the softmax if `dropout` is given.

    Each block of queries meets the keys up to its own end only, which saves most of the scores that the mask hides.
    """
    length = q_BxHxLxDh.shape[2]
    # Short sequences are one block: their products are small as they are.
    size = max(LEAST_BLOCK, -(-length // BLOCKS))
    mixed = []
    for start in range(0, length, size):
        end = min(start + size, length)
        q_BxHxRxDh, k_BxHxMxDh, v_BxHxMxDh = q_BxHxLxDh[:, :, start:end], k_BxHxLxDh[:, :, :end], v_BxHxLxDh[:, :, :end]
        scores_BxHxRxM = jnp.einsum('bhrk,bhmk->bhrm', q_BxHxRxDh, k_BxHxMxDh, preferred_element_type=jnp.float32)
        causal_RxM = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None]
        scores_BxHxRxM = jnp.where(causal_RxM[None, None], scores_BxHxRxM, MASKED)
        weights_BxHxRxM = jax.nn.softmax(scores_BxHxRxM, axis=-1).astype(q_BxHxLxDh.dtype)
        if dropout is not None:
            # The block's first query numbers its mask.
            weights_BxHxRxM = drop(weights_BxHxRxM, rate, dropout, start)
        mixed.append(jnp.einsum('bhrm,bhmk->bhrk', weights_BxHxRxM, v_BxHxMxDh))
    return jnp.concatenate(mixed, axis=2)


def cudnn_attention(q_BxHxLxDh: jax.Array, k_BxHxLxDh: jax.Array, v_BxHxLxDh: jax.Array) -> jax.Array:
    """Causal attention (B, H, L, Dh) by cuDNN on a GPU: bfloat16 only, no dropout; most GPUs take heads up to 128."""

    def attend(*qkv: jax.Array) -> jax.Array:
        # JAX's function wants heads after the length; the queries are scaled already.
        q_BxLxHxDh, k_BxLxHxDh, v_BxLxHxDh = (x.swapaxes(1, 2) for x in qkv)
        mixed_BxLxHxDh = jax.nn.dot_product_attention(
            q_BxLxHxDh, k_BxLxHxDh, v_BxLxHxDh, scale=1.0, is_causal=True, implementation='cudnn'
        )
        return mixed_BxLxHxDh.swapaxes(1, 2)

    return _on_each_device(attend)(q_BxHxLxDh, k_BxHxLxDh, v_BxHxLxDh)


def check_cudnn(head_width: int) -> None:
    """Raises UserError where cuDNN refuses heads of this width. Versions and GPUs differ, so only a trial tells."""
    qkv = (jnp.zeros((1, 1, 128, head_width), jnp.bfloat16),) * 3
    # Training needs the backward kernel too.
    gradient = jax.grad(lambda *qkv: cudnn_attention(*qkv).sum(), argnums=(0, 1, 2))
    try:
        jax.block_until_ready(jax.jit(gradient)(*qkv))
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition('\n')[0]
        raise UserError(f"config.model.attention = 'cudnn': refused here ({reason}); choose 'einsum'") from None


def splash_attention(
    q_BxHxLxDh: jax.Array, k_BxHxLxDh: jax.Array, v_BxHxLxDh: jax.Array, interpret: bool = False
) -> jax.Array:
    """Causal attention (B, H, L, Dh) by a Pallas kernel on a TPU: L a multiple of 128, no dropout.

    `interpret` runs the kernel without a TPU, slowly.
    """
    length = q_BxHxLxDh.shape[2]
    # The largest tile that divides the length.
    tile = max(size for size in range(128, LARGEST_TILE + 1, 128) if length % size == 0)
    sizes = splash.BlockSizes(
        block_q=tile, block_kv=tile, block_q_dkv=tile, block_kv_dkv=tile, use_fused_bwd_kernel=True
    )

    def attend(*qkv: jax.Array) -> jax.Array:
        mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * qkv[0].shape[1])
        kernel = splash.make_splash_mha_single_device(
            mask,
            block_sizes=sizes,
            # Remat 'projections' then keeps the kernel's results too.
            residual_checkpoint_name=SAVED,
            interpret=interpret,
        )
        return jax.vmap(kernel)(*qkv)

    return _on_each_device(attend)(q_BxHxLxDh, k_BxHxLxDh, v_BxHxLxDh)


def _on_each_device(attend: Callable) -> Callable:
    """`attend` on each device's own rows and heads: the compiler can't partition a kernel."""
    # Outside a mesh one device holds everything.
    if jax.sharding.get_abstract_mesh().empty:
        return attend
    # Attention never crosses rows or heads, so no device needs another's.
    spec = nn.logical_to_mesh_axes(('batch', 'heads', 'length', 'head'))
    return jax.shard_map(attend, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)


def shared_attention(
    prompts: Cache,
    in_prompt_QxT: jax.Array,
    ring: Cache,
    slot: jax.Array,
    in_answer_BxT: jax.Array,
    q_BxHx1xDh: jax.Array,
    k_BxHx1xDh: jax.Array,
    v_BxHx1xDh: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Attention of one new token in each row over its prompt and its own answer: ((B, H, 1, Dh), the new ring).

    The Q prompts are shared: B / Q neighbouring rows answer the same one, whose cache is read once for all of them.
    `ring` holds the answers; the token's own key and value go into its `slot` first. The masks say which positions
    hold tokens of the prompt (Q, T) and of the answer (B, T), the new token included.
    """

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis=2)

    ring = Cache(put(ring.k_BxHxTxDh, k_BxHx1xDh), put(ring.v_BxHxTxDh, v_BxHx1xDh))
    (rows, heads, _, width), count = q_BxHx1xDh.shape, in_prompt_QxT.shape[0]
    # The rows of a prompt become one more axis of the queries, so that its cache is read once.
    q_BxHxDh = q_BxHx1xDh[:, :, 0]
    q_QxAxHxDh = q_BxHxDh.reshape(count, rows // count, heads, width)
    scores_QxAxHxT = jnp.einsum('qahk,qhtk->qaht', q_QxAxHxDh, prompts.k_BxHxTxDh, preferred_element_type=jnp.float32)
    scores_QxAxHxT = jnp.where(in_prompt_QxT[:, None, None], scores_QxAxHxT, MASKED)
    scores_BxHxT = jnp.einsum('bhk,bhtk->bht', q_BxHxDh, ring.k_BxHxTxDh, preferred_element_type=jnp.float32)
    scores_BxHxT = jnp.where(in_answer_BxT[:, None], scores_BxHxT, MASKED)
    # One softmax over both parts.
    scores = jnp.concatenate([scores_QxAxHxT.reshape(rows, heads, -1), scores_BxHxT], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BxHxDh.dtype)
    prompt_BxHxT, answer_BxHxT = jnp.split(weights, [in_prompt_QxT.shape[1]], axis=-1)
    prompt_QxAxHxT = prompt_BxHxT.reshape(scores_QxAxHxT.shape)
    # Transposed by hand: a CPU's batched product is fast in this order of axes.
    mixed_QxHxAxDh = jnp.einsum('qhat,qhtk->qhak', jnp.swapaxes(prompt_QxAxHxT, 1, 2), prompts.v_BxHxTxDh)
    mixed_BxHxDh = jnp.einsum('bht,bhtk->bhk', answer_BxHxT, ring.v_BxHxTxDh)
    return (jnp.swapaxes(mixed_QxHxAxDh, 1, 2).reshape(mixed_BxHxDh.shape) + mixed_BxHxDh)[:, :, None], ring
