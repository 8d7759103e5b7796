"""One update of the parameters. Newcomers start here: the loop, the tests and the compiler all call these functions.

    loss(params, batch, key) = sum(weights * nll) / sum(weights) over the global batch

Numerators and denominators are added up apart, so that accumulation equals the full batch whatever the weights.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nca_jax.batch import Batch, Vocab
from nca_jax.keys import key as named_key
from nca_jax.model import transformer
from nca_jax.model.config import ModelConfig
from nca_jax.model.loss import cross_entropy
from nca_jax.train.state import TrainState

SumLoss = Callable[[dict, Batch, jax.Array | None], tuple[jax.Array, jax.Array]]
Metrics = dict[str, jax.Array]


def make_sum_loss(config: ModelConfig, vocab: Vocab) -> SumLoss:
    """`sum_loss(params, batch, dropout_key) -> (sum of weights * nll, sum of weights)`, nats, float32."""

    def sum_loss(params: dict, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        logits_BxLxV = transformer.apply(config, params, batch.inputs_BxL, vocab, dropout_key)
        nll_BxL = cross_entropy(logits_BxLxV, batch.targets_BxL)
        return jnp.sum(nll_BxL * batch.weights_BxL), jnp.sum(batch.weights_BxL)

    return sum_loss


def loss_and_grads(
    sum_loss: SumLoss, params: dict, batch: Batch, dropout_key: jax.Array | None, accumulate: int
) -> tuple[jax.Array, Any]:
    """Mean loss over the batch's weight and its gradient, in `accumulate` micro-batches one after another."""
    value_and_grad = jax.value_and_grad(sum_loss, has_aux=True)
    if accumulate == 1:
        micro_key = None if dropout_key is None else named_key(dropout_key, 0)
        (loss_sum, weight), grads = value_and_grad(params, batch, micro_key)
        return loss_sum / weight, jax.tree.map(lambda g: g / weight, grads)

    # Rows r, r + accumulate, ... make one micro-batch: rows sharded over devices then stay where they are.
    micro_batches = jax.tree.map(lambda x: x.reshape(-1, accumulate, x.shape[1]).swapaxes(0, 1), batch)

    def add_micro_batch(total, numbered_batch):
        number, micro_batch = numbered_batch
        micro_key = None if dropout_key is None else named_key(dropout_key, number)
        (loss_sum, weight), grads = value_and_grad(params, micro_batch, micro_key)
        return jax.tree.map(jnp.add, total, (loss_sum, weight, grads)), None

    zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    (loss_sum, weight, grads), _ = jax.lax.scan(add_micro_batch, zero, (jnp.arange(accumulate), micro_batches))
    return loss_sum / weight, jax.tree.map(lambda g: g / weight, grads)


def make_train_step(
    sum_loss: SumLoss,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    dropout: bool,
    accumulate: int = 1,
    gradient_scale: float = 1.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step(state, batch) -> (state, metrics)`; metrics are float32 scalars `loss` (nats) and `grad_norm`.

    `gradient_scale` multiplies the mean gradient before the optimizer sees it: `accumulate` under the release's recipe,
    which adds the micro-batches up without dividing. Dropout's key is a function of the seed and the state's step.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        dropout_key = named_key(seed, 'dropout', state.step) if dropout else None
        loss, grads = loss_and_grads(sum_loss, state.params, batch, dropout_key, accumulate)
        grads = jax.tree.map(lambda g: g * gradient_scale, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {'loss': loss, 'grad_norm': optax.tree.norm(grads) / gradient_scale}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step
