"""Reading on from a cache of keys and values: whole prompts at first, then a token at a time."""

import jax
import jax.numpy as jnp

from nca_jax.batch import Vocab
from nca_jax.model.attention import Cache
from nca_jax.model.config import ModelConfig
from nca_jax.model.rotary import rotation_at
from nca_jax.model.transformer import Block, RMSNorm, head_of, logits_of


def empty_cache(config: ModelConfig, rows: int, length: int) -> tuple[Cache, ...]:
    """Room for `length` positions in each of `rows` sequences: a Cache for each layer, of its own arrays."""
    shape = rows, config.heads, length, config.head_width
    return tuple(Cache(*(jnp.zeros(shape, jnp.dtype(config.dtype)) for _ in 'kv')) for _ in range(config.layers))


def extend(
    config: ModelConfig,
    params: dict,
    tokens_BxL: jax.Array,
    start_B: jax.Array,
    cache: tuple[Cache, ...],
    vocab: Vocab,
) -> tuple[jax.Array, tuple[Cache, ...]]:
    """Logits (B, L, V) of L more tokens in each row, of which the first stands at start_B, and the cache with them.

    Equal to the logits of the whole sequence, whose earlier tokens the cache has read. start_B + L must not pass the
    cache's length. What lies in the cache from start_B on is not seen, so that prompts may be padded on the right.
    """
    position_BxL = start_B[:, None] + jnp.arange(tokens_BxL.shape[1])[None]
    rotation = rotation_at(config, position_BxL)
    x_BxLxD = params['embed']['table'][tokens_BxL].astype(jnp.dtype(config.dtype))
    extended = []
    for number, layer in enumerate(cache):
        weights = jax.tree.map(lambda leaf, n=number: leaf[n], params['blocks'])
        x_BxLxD, layer = Block(config).apply({'params': weights}, x_BxLxD, rotation, None, (layer, start_B))
        extended.append(layer)
    x_BxLxD = RMSNorm(config).apply({'params': params['final_norm']}, x_BxLxD)
    return logits_of(vocab, x_BxLxD, head_of(params)), tuple(extended)
