"""Held-out loss, perplexity and bits per byte on a fixed range of text."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nca_jax import mesh as meshes
from nca_jax.batch import Batch, Vocab
from nca_jax.model import transformer
from nca_jax.model.config import ModelConfig
from nca_jax.model.loss import cross_entropy


def make_evaluator(
    model: ModelConfig,
    vocab: Vocab,
    mesh: jax.sharding.Mesh,
    stream: Callable[[int], Batch],
    batches: int,
    scored_bytes: int,
) -> Callable[[dict, int], dict]:
    """`evaluate(params, step) -> {loss, perplexity, bits_per_byte, scored_tokens, scored_bytes}` over all `batches`.

    `loss` is nats per scored token. `scored_bytes` is the number of UTF-8 bytes that the scored targets stand for, so
    that bits per byte is exact and comparable between tokenizers.
    """

    @jax.jit
    def sums(params: dict, batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits_BxLxV = transformer.apply(model, params, batch.inputs_BxL, vocab)
        nll_BxL = cross_entropy(logits_BxLxV, batch.targets_BxL)
        return jnp.sum(nll_BxL * batch.weights_BxL), jnp.sum(batch.weights_BxL)

    def evaluate(params: dict, step: int) -> dict:
        with meshes.use(mesh):
            parts = [sums(params, stream(i)) for i in range(batches)]
        # Added up in float64 on the host: a long range doesn't round.
        nll, tokens = np.sum(np.array(jax.device_get(parts), np.float64), axis=0)
        return {
            'loss': nll / tokens,
            'perplexity': math.exp(min(nll / tokens, 700.0)),
            'bits_per_byte': nll / math.log(2) / scored_bytes,
            'scored_tokens': int(tokens),
            'scored_bytes': scored_bytes,
        }

    return evaluate
