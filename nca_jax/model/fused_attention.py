"""Attention by kernels that never write the scores to memory: cuDNN's on a GPU, splash attention on a TPU.

Both are causal and without dropout, and take queries that are scaled already. On a mesh each device works on its own
rows and heads: `spec` says how (B, H, L, Dh) is split, as the mesh that is in use when they are traced.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from nca_jax.errors import UserError

SAVED = 'saved'  # the name of what remat 'projections' keeps
LARGEST_BLOCK = 1024  # the default of 128 is slower than plain products


def cudnn_attention(q_BxHxLxDh: jax.Array, k_BxHxLxDh: jax.Array, v_BxHxLxDh: jax.Array, spec: jax.P) -> jax.Array:
    """(B, H, L, Dh) by cuDNN, bfloat16 alone, heads of at most 128."""

    def attend(*qkv: jax.Array) -> jax.Array:
        q_BxLxHxDh, k_BxLxHxDh, v_BxLxHxDh = (x.swapaxes(1, 2) for x in qkv)
        mixed_BxLxHxDh = jax.nn.dot_product_attention(
            q_BxLxHxDh, k_BxLxHxDh, v_BxLxHxDh, scale=1.0, is_causal=True, implementation='cudnn'
        )
        return mixed_BxLxHxDh.swapaxes(1, 2)

    return _on_each_device(attend, spec)(q_BxHxLxDh, k_BxHxLxDh, v_BxHxLxDh)


def check_cudnn(head_width: int) -> None:
    """UserError where cuDNN can't do it: its versions and GPUs differ in what they take, and only a try tells."""
    qkv = (jnp.zeros((1, 1, 128, head_width), jnp.bfloat16),) * 3
    grads = jax.grad(lambda *qkv: cudnn_attention(*qkv, jax.P()).sum(), argnums=(0, 1, 2))  # training needs both passes
    try:
        jax.block_until_ready(jax.jit(grads)(*qkv))
    except (RuntimeError, NotImplementedError, ValueError) as error:
        said = str(error).partition('\n')[0]
        raise UserError(f"config.model.attention = 'cudnn': refused here ({said}); choose 'einsum'") from None


def splash_attention(
    q_BxHxLxDh: jax.Array, k_BxHxLxDh: jax.Array, v_BxHxLxDh: jax.Array, spec: jax.P, interpret: bool = False
) -> jax.Array:
    """(B, H, L, Dh) by the Pallas kernel, L a multiple of 128. `interpret` runs it, slowly, where there is no TPU."""
    length = q_BxHxLxDh.shape[2]
    block = max(size for size in range(128, LARGEST_BLOCK + 1, 128) if length % size == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        use_fused_bwd_kernel=True,
    )

    def attend(*qkv: jax.Array) -> jax.Array:
        heads = qkv[0].shape[1]
        kernel = splash.make_splash_mha_single_device(
            splash.MultiHeadMask([splash.CausalMask((length, length))] * heads),
            block_sizes=sizes,
            residual_checkpoint_name=SAVED,
            interpret=interpret,
        )
        return jax.vmap(kernel)(*qkv)

    return _on_each_device(attend, spec)(q_BxHxLxDh, k_BxHxLxDh, v_BxHxLxDh)


def _on_each_device(attend, spec: jax.P):
    """Kernels can't be partitioned by the compiler, so each device calls its own. Without a mesh there is one."""
    if jax.sharding.get_abstract_mesh().empty:
        return attend
    return jax.shard_map(attend, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
