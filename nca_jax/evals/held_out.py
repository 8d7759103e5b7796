"""Held-out loss and accuracy on a stage's own data, and the sums over batches that evaluators share."""

import dataclasses
from collections.abc import Callable

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


def make_totals(
    model: ModelConfig,
    vocab: Vocab,
    mesh: jax.sharding.Mesh,
    stream: Callable[[int], Batch],
    batches: int,
    measure: Measure = lambda *_: {},
) -> Callable[[dict], dict[str, np.ndarray]]:
    """`totals(params)` -> the sums of `make_sums` over batches 0..batches-1."""
    sums = make_sums(model, vocab, measure)

    def totals(params: dict) -> dict[str, np.ndarray]:
        with meshes.use(mesh):
            parts = jax.device_get([sums(params, stream(i)) for i in range(batches)])
        # In float64, so that a long range doesn't round.
        return {name: np.sum([part[name] for part in parts], axis=0, dtype=np.float64) for name in parts[0]}

    return totals


def make_evaluator(
    model: ModelConfig,
    vocab: Vocab,
    mesh: jax.sharding.Mesh,
    stream: Callable[[int], Batch],
    batches: int,
    subsets: dict[str, Callable[[jax.Array], jax.Array]],
) -> Callable[[dict, int], dict]:
    """`evaluate(params, step)` -> metrics over batches 0..batches-1, by loss weight.

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

    totals = make_totals(model, vocab, mesh, stream, batches, measure)

    def evaluate(params: dict, step: int) -> dict:
        total = {name: float(value) for name, value in totals(params).items()}
        result = {'loss': total['nll'] / total['weight'], 'accuracy': total['right'] / total['weight']}
        for name in subsets:
            result[f'{name}_accuracy'] = total[f'{name}_right'] / max(total[f'{name}_weight'], 1.0)
        return result

    return evaluate
