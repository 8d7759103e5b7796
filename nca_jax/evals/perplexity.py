"""Held-out loss, perplexity and bits per byte on a fixed range of text."""

import math
from collections.abc import Callable

import jax

from nca_jax.batch import Batch, Vocab
from nca_jax.evals.held_out import make_totals
from nca_jax.model.config import ModelConfig


def make_evaluator(
    model: ModelConfig,
    vocab: Vocab,
    mesh: jax.sharding.Mesh,
    stream: Callable[[int], Batch],
    batches: int,
    scored_bytes: int,
) -> Callable[[dict, int], dict]:
    """`evaluate(params, step)` -> {loss, perplexity, bits_per_byte, scored_tokens, scored_bytes} over all batches.

    loss is nats per scored token. scored_bytes is the number of UTF-8 bytes of the scored targets, so that bits per
    byte is exact and comparable between tokenizers.
    """
    totals = make_totals(model, vocab, mesh, stream, batches)

    def evaluate(params: dict, step: int) -> dict:
        total = totals(params)
        nll, tokens = float(total['nll']), float(total['weight'])
        return {
            'loss': nll / tokens,
            # Above, exp overflows.
            'perplexity': math.exp(min(nll / tokens, 700.0)),
            'bits_per_byte': nll / math.log(2) / scored_bytes,
            'scored_tokens': int(tokens),
            'scored_bytes': scored_bytes,
        }

    return evaluate
