"""Random keys by name, so that no key is threaded through the program or used twice; and fast random numbers."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Threefry's rotations and the parity of its key schedule (Salmon et al. 2011).
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def key(seed: int | jax.Array, *names: str | int | jax.Array) -> jax.Array:
    """A typed PRNG key for one named purpose, e.g. `key(seed, 'rules', epoch)`. Other names give independent keys.

    Each name is folded in, in order: a string as its crc32, a (possibly traced) integer as itself.
    `seed` may also be a key made here, to derive from it.
    """
    is_key = isinstance(seed, jax.Array) and jax.dtypes.issubdtype(seed.dtype, jax.dtypes.prng_key)
    # Named, because jax_default_prng_impl can choose rbg, and its numbers change under vmap.
    result = seed if is_key else jax.random.key(seed, impl='threefry2x32')
    for name in names:
        result = jax.random.fold_in(result, crc32(name) if isinstance(name, str) else name)
    return result


def crc32(name: str) -> np.uint32:
    return np.uint32(zlib.crc32(name.encode()))


def threefry(key: tuple[jax.Array, jax.Array], high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two random uint32 words for each counter (high, low), under a key of two words that broadcast against it.

    The same bits as `jax.extend.random.threefry_2x32`, with the 20 rounds unrolled. On a CPU, `jax.random` loops over
    them through memory and keeps one word in two; unrolled in one fused kernel, a number takes a ninth of the time.
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
    # The upper 23 bits become the mantissa of a number in [1, 2).
    mantissa = jnp.concatenate(words)[:count] >> jnp.uint32(9)
    return lax.bitcast_convert_type(mantissa | jnp.uint32(0x3F800000), jnp.float32) - 1
