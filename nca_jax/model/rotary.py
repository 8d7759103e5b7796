"""Rotary position embeddings, in Llama's half-split layout."""

import jax
import jax.numpy as jnp

from nca_jax.model.config import ModelConfig


def rotation_at(config: ModelConfig, position_BxL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines (B, 1, L, Dh/2) of the rotary position embedding, float32; B is 1 where all rows are alike."""
    exponents = jnp.arange(0, config.head_width, 2, dtype=jnp.float32) / config.head_width
    angles = position_BxL[:, None, :, None].astype(jnp.float32) * (config.rope_theta**-exponents)[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BxHxLxDh: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each half-split pair (x[i], x[i + Dh/2]) by its position's angle, as Llama does."""
    cos, sin = (table.astype(x_BxHxLxDh.dtype) for table in rotation)
    first, second = jnp.split(x_BxHxLxDh, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
