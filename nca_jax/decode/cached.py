"""The forward pass as decoding needs it: layer by layer, over caches of keys and values."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nca_jax.batch import Vocab
from nca_jax.model import transformer
from nca_jax.model.attention import Attend, Cache, cached_attention
from nca_jax.model.config import ModelConfig
from nca_jax.model.rotary import rotation_at

Caches = tuple[Cache, ...]  # a Cache for each layer, of its own arrays


def empty_cache(config: ModelConfig, rows: int, length: int) -> Caches:
    """Room for `length` positions in each of `rows` sequences."""
    shape = rows, config.heads, length, config.head_width
    return tuple(Cache(*(jnp.zeros(shape, jnp.dtype(config.dtype)) for _ in 'kv')) for _ in range(config.layers))


def by_layer(config: ModelConfig, params: dict) -> dict:
    """Parameters as decoding reads them: those of each layer apart, kernels and tables in the config's dtype."""

    def cast(path: tuple, leaf: jax.Array) -> jax.Array:
        # Norms and biases stay: reading a whole sequence multiplies and adds them in float32.
        return leaf.astype(jnp.dtype(config.dtype)) if path[-1].key in ('kernel', 'table') else leaf

    params = jax.tree_util.tree_map_with_path(cast, params)
    layers = (jax.tree.map(lambda leaf, n=n: leaf[n], params['blocks']) for n in range(config.layers))
    return params | {'blocks': tuple(layers)}


def read(
    config: ModelConfig,
    weights: dict,
    tokens_BxL: jax.Array,
    position_BxL: jax.Array,
    attends: Sequence[Attend],
    vocab: Vocab,
) -> tuple[jax.Array, Caches]:
    """Logits (B, L, V) of tokens at their positions, and what each layer's `attend` gave back. Weights: by_layer's."""
    rotation = rotation_at(config, position_BxL)
    x_BxLxD = weights['embed']['table'][tokens_BxL].astype(jnp.dtype(config.dtype))
    kept = []
    for layer, attend in zip(weights['blocks'], attends, strict=True):
        x_BxLxD, cache = transformer.Block(config).apply({'params': layer}, x_BxLxD, rotation, None, attend)
        kept.append(cache)
    x_BxLxD = transformer.RMSNorm(config).apply({'params': weights['final_norm']}, x_BxLxD)
    return transformer.logits_of(vocab, x_BxLxD, transformer.head_of(weights)), tuple(kept)


def extend(
    config: ModelConfig, weights: dict, tokens_BxL: jax.Array, start_B: jax.Array, cache: Caches, vocab: Vocab
) -> tuple[jax.Array, Caches]:
    """Logits (B, L, V) of L more tokens in each row, of which the first stands at start_B, and the cache with them.

    Equal to the logits of the whole sequence, whose earlier tokens the cache has read. start_B + L must not pass the
    cache's length. What lies in the cache from start_B on is not seen, so that prompts may be padded on the right.
    """
    position_BxL = start_B[:, None] + jnp.arange(tokens_BxL.shape[1])[None]
    attends = [functools.partial(cached_attention, layer, start_B) for layer in cache]
    return read(config, weights, tokens_BxL, position_BxL, attends, vocab)
