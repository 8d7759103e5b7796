"""Random keys by name, so that no key is ever threaded through the program or used twice."""

import zlib

import jax
import numpy as np


def key(seed: int | jax.Array, *names: str | int | jax.Array) -> jax.Array:
    """A typed PRNG key for one named purpose, e.g. `key(seed, 'rules', epoch)`.

    Each name is folded in, in order: a string as its crc32, a (possibly traced) integer as itself.
    `seed` may also be a key made here, to derive from it. Other names give independent keys.
    """
    is_key = isinstance(seed, jax.Array) and jax.dtypes.issubdtype(seed.dtype, jax.dtypes.prng_key)
    # Named, since some settings of JAX choose another kind, of which the numbers depend on how they are batched.
    result = seed if is_key else jax.random.key(seed, impl='threefry2x32')
    for name in names:
        result = jax.random.fold_in(result, number(name) if isinstance(name, str) else name)
    return result


def number(name: str) -> np.uint32:
    """What stands for a name in a key."""
    return np.uint32(zlib.crc32(name.encode()))
