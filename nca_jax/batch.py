"""Batches, which every stream yields and every model reads, and vocabularies."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nca_jax.errors import check

# Tables are padded to a multiple of this, so that they divide over devices and fill a TPU's lanes.
VOCAB_MULTIPLE = 128
# Logits are batch x length x vocabulary: a larger one is a slip in a config (colours ** cells), not a model.
MAX_VOCAB = 2**20


class Batch(NamedTuple):
    """Next-token prediction: int32 inputs and targets, float32 loss weights, each of shape (B, L)."""

    inputs_BxL: jax.Array
    targets_BxL: jax.Array
    weights_BxL: jax.Array


@dataclasses.dataclass(frozen=True)
class Vocab:
    """`size` tokens are real; tables have `padded` rows, and the logits past `size` are masked."""

    size: int

    @property
    def padded(self) -> int:
        return -(-self.size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def check_vocab(tokens: int, field: str, value: object) -> None:
    """Raises FieldError, which names the field that decides the vocabulary, where that has too many tokens."""
    allowed = f'a vocabulary has at most {MAX_VOCAB:,} tokens, and this makes {tokens:,}'
    check(tokens <= MAX_VOCAB, field, value, allowed)


def to_batch(tokens_BxL1: jax.Array, first_loss_at: jax.Array | int = 0) -> Batch:
    """Cuts (B, L+1) tokens into inputs [0:L] and targets [1:L+1].

    first_loss_at: a scalar or one number a row (B); targets before it have weight 0. The paper masks the first grid,
    from which no rule can be inferred.
    """
    rows, length = tokens_BxL1.shape[0], tokens_BxL1.shape[1] - 1
    first_loss_at_B = jnp.broadcast_to(first_loss_at, rows)
    weights_BxL = (jnp.arange(length)[None] >= first_loss_at_B[:, None]).astype(jnp.float32)
    return Batch(tokens_BxL1[:, :-1], tokens_BxL1[:, 1:], weights_BxL)
