"""Dropout that belongs to the row it falls on, so that the split of a batch over devices or time can't change it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Dropout(NamedTuple):
    """What a training pass draws from: a key, and the number that each of its rows has in the whole batch."""

    key: jax.Array
    rows_B: jax.Array


def drop(x_Bx: jax.Array, rate: float, dropout: Dropout, *parts: int | jax.Array) -> jax.Array:
    """Sets a share `rate` of x to 0 and scales up the rest; row by row with keys of their own, and by `parts`."""
    key = dropout.key
    for part in parts:
        key = jax.random.fold_in(key, part)

    def drop_row(row: jax.Array, x: jax.Array) -> jax.Array:
        keep = jax.random.bernoulli(jax.random.fold_in(key, row), 1 - rate, x.shape)
        return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))

    return jax.vmap(drop_row)(dropout.rows_B, x_Bx)
