"""Held-out loss and other scores on a stage's own data: one evaluator, and the scores of each kind of data."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nca_jax import mesh as meshes
from nca_jax.batch import Batch, Vocab
from nca_jax.errors import check
from nca_jax.model import transformer
from nca_jax.model.config import ModelConfig
from nca_jax.model.loss import cross_entropy

# `measure(logits_BxLxV, nll_BxL, batch)` -> named sums over the batch.
Measure = Callable[[jax.Array, jax.Array, Batch], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The size of the validation data, the same at every evaluation."""

    # Sequences at a time, and how many times.
    batch: int
    batches: int

    def __post_init__(self):
        check(self.batch > 0, 'batch', self.batch, 'must be positive')
        check(self.batches > 0, 'batches', self.batches, 'must be positive')


class Scores(NamedTuple):
    """The metrics that an evaluator reports, and how it computes them."""

    # A record's fields from the totals over all batches, float64: `nll`, `weight`, and those that `measure` adds.
    summarise: Callable[[dict[str, np.ndarray]], dict]
    # Runs on the devices, batch by batch.
    measure: Measure = lambda *_: {}


def make_sums(
    model: ModelConfig, vocab: Vocab, measure: Measure = lambda *_: {}
) -> Callable[[dict, Batch], dict[str, jax.Array]]:
    """A jitted `sums(params, batch)`: nll in nats, the weight, and the sums that `measure` adds."""

    @jax.jit
    def sums(params: dict, batch: Batch) -> dict[str, jax.Array]:
        logits_BxLxV = transformer.apply(model, params, batch.inputs_BxL, vocab)
        nll_BxL = cross_entropy(logits_BxLxV, batch.targets_BxL)
        loss = {'nll': jnp.sum(nll_BxL * batch.weights_BxL), 'weight': jnp.sum(batch.weights_BxL)}
        return loss | measure(logits_BxLxV, nll_BxL, batch)

    return sums


def make_evaluator(
    model: ModelConfig,
    vocab: Vocab,
    mesh: jax.sharding.Mesh,
    stream: Callable[[int], Batch],
    batches: int,
    scores: Scores,
) -> Callable[[dict, int], dict]:
    """`evaluate(params, step)` -> the scores over batches 0..batches-1 of the stream."""
    sums = make_sums(model, vocab, scores.measure)

    def evaluate(params: dict, step: int) -> dict:
        with meshes.use(mesh):
            # Read only when all are queued, so that the devices never wait for the host.
            parts = jax.device_get([sums(params, stream(i)) for i in range(batches)])
        # In float64, so that a long range doesn't round.
        return scores.summarise(
            {name: np.sum([part[name] for part in parts], axis=0, dtype=np.float64) for name in parts[0]}
        )

    return evaluate


def accuracy_scores(subsets: dict[str, Callable[[jax.Array], jax.Array]]) -> Scores:
    """Means by loss weight.

    - loss: nats per scored token.
    - accuracy: how often the likeliest token is right, teacher-forced.
    - NAME_accuracy: the same for each of `subsets`, which map targets (B, L) to bool; 0 if it chooses none.
    """

    def measure(logits_BxLxV: jax.Array, nll_BxL: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        right_BxL = jnp.argmax(logits_BxLxV, axis=-1) == batch.targets_BxL
        sums = {'right': jnp.sum(batch.weights_BxL * right_BxL)}
        for name, subset in subsets.items():
            weights_BxL = batch.weights_BxL * subset(batch.targets_BxL)
            sums |= {f'{name}_right': jnp.sum(weights_BxL * right_BxL), f'{name}_weight': jnp.sum(weights_BxL)}
        return sums

    def summarise(totals: dict[str, np.ndarray]) -> dict:
        total = {name: float(value) for name, value in totals.items()}
        result = {'loss': total['nll'] / total['weight'], 'accuracy': total['right'] / total['weight']}
        for name in subsets:
            # Without a target in the subset this is 0, not 0 / 0.
            result[f'{name}_accuracy'] = total[f'{name}_right'] / max(total[f'{name}_weight'], 1.0)
        return result

    return Scores(summarise, measure)


def text_scores(scored_bytes: int) -> Scores:
    """loss (nats per scored token), perplexity, bits_per_byte, scored_tokens, scored_bytes.

    `scored_bytes` is the number of UTF-8 bytes of the scored targets: bits per byte compare between tokenizers.
    """

    def summarise(totals: dict[str, np.ndarray]) -> dict:
        nll, tokens = float(totals['nll']), float(totals['weight'])
        return {
            'loss': nll / tokens,
            # Above, exp overflows.
            'perplexity': math.exp(min(nll / tokens, 700.0)),
            'bits_per_byte': nll / math.log(2) / scored_bytes,
            'scored_tokens': int(tokens),
            'scored_bytes': scored_bytes,
        }

    return Scores(summarise)
