"""Held-out loss and accuracy on a stage's own data, and the sums over batches that such evaluations share."""

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


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """`batches` batches of `batch` sequences from the split `valid`, the same ones at every evaluation."""

    batch: int
    batches: int

    def __post_init__(self):
        check(self.batch > 0, 'batch', self.batch, 'must be positive')
        check(self.batches > 0, 'batches', self.batches, 'must be positive')


def make_sums(
    model: ModelConfig, vocab: Vocab, measure: Callable[[jax.Array, Batch], dict[str, jax.Array]]
) -> Callable[[dict, Batch], dict[str, jax.Array]]:
    """A jitted `sums(params, batch)`: `nll` in nats, `weight`, and the sums that `measure(logits, batch)` adds."""

    @jax.jit
    def sums(params: dict, batch: Batch) -> dict[str, jax.Array]:
        logits_BxLxV = transformer.apply(model, params, batch.inputs_BxL, vocab)
        nll_BxL = cross_entropy(logits_BxLxV, batch.targets_BxL)
        both = {'nll': jnp.sum(nll_BxL * batch.weights_BxL), 'weight': jnp.sum(batch.weights_BxL)}
        return both | measure(logits_BxLxV, batch)

    return sums


def make_totals(
    model: ModelConfig,
    vocab: Vocab,
    mesh: jax.sharding.Mesh,
    stream: Callable[[int], Batch],
    batches: int,
    measure: Callable[[jax.Array, Batch], dict[str, jax.Array]],
) -> Callable[[dict], dict[str, float]]:
    """`totals(params)`: the sums of `make_sums` over all batches."""
    sums = make_sums(model, vocab, measure)

    def totals(params: dict) -> dict[str, float]:
        with meshes.use(mesh):
            parts = jax.device_get([sums(params, stream(i)) for i in range(batches)])
        # Added up in float64 on the host: a long range doesn't round.
        return {name: float(np.sum([part[name] for part in parts], dtype=np.float64)) for name in parts[0]}

    return totals


def make_evaluator(
    model: ModelConfig,
    vocab: Vocab,
    mesh: jax.sharding.Mesh,
    stream: Callable[[int], Batch],
    batches: int,
    subsets: dict[str, Callable[[jax.Array], jax.Array]],
) -> Callable[[dict, int], dict]:
    """`evaluate(params, step) -> {loss, accuracy, NAME_accuracy}` over batches 0..batches-1, by loss weight.

    loss: nats per scored token. accuracy: of the likeliest token, teacher-forced; for each of `subsets`, which maps
    targets (B, L) to bool, also of the chosen targets alone (0 if it chooses none).
    """

    def measure(logits_BxLxV: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        right_BxL = jnp.argmax(logits_BxLxV, axis=-1) == batch.targets_BxL
        found = {'right': jnp.sum(batch.weights_BxL * right_BxL)}
        for name, subset in subsets.items():
            weights_BxL = batch.weights_BxL * subset(batch.targets_BxL)
            found |= {f'{name}_right': jnp.sum(weights_BxL * right_BxL), f'{name}_weight': jnp.sum(weights_BxL)}
        return found

    totals = make_totals(model, vocab, mesh, stream, batches, measure)

    def evaluate(params: dict, step: int) -> dict:
        found = totals(params)
        result = {'loss': found['nll'] / found['weight'], 'accuracy': found['right'] / found['weight']}
        for name in subsets:
            result[f'{name}_accuracy'] = found[f'{name}_right'] / max(found[f'{name}_weight'], 1.0)
        return result

    return evaluate
