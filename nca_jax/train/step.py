"""One update of the parameters. Newcomers start here: the loop, the tests and the compiler all call these functions.

    loss(params, batch, key) = sum(weights * nll) / sum(weights) over the global batch

Numerators and denominators are added up apart, so that accumulation equals the full batch whatever the weights.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nca_jax import mesh as meshes
from nca_jax import trees
from nca_jax.batch import Batch, Vocab
from nca_jax.keys import key as named_key
from nca_jax.model import transformer
from nca_jax.model.attention import Dropout
from nca_jax.model.config import ModelConfig
from nca_jax.train.state import TrainState, next_average

SumLoss = Callable[[dict, Batch, Dropout | None], tuple[jax.Array, jax.Array]]
Metrics = dict[str, jax.Array]


def make_sum_loss(config: ModelConfig, vocab: Vocab) -> SumLoss:
    """`sum_loss(params, batch, dropout) -> (sum of weights * nll, sum of weights)`, nats, float32."""

    def sum_loss(params: dict, batch: Batch, dropout: Dropout | None) -> tuple[jax.Array, jax.Array]:
        return transformer.sum_loss(config, params, batch, vocab, dropout), jnp.sum(batch.weights_BxL)

    return sum_loss


def hold(sum_loss: SumLoss, frozen: tuple[str, ...]) -> SumLoss:
    """The same loss with zero gradient for the parameters that the patterns match, which backward then leaves out."""

    def held_loss(params: dict, batch: Batch, dropout: Dropout | None) -> tuple[jax.Array, jax.Array]:
        held = trees.map_with_path(
            lambda path, leaf: jax.lax.stop_gradient(leaf) if trees.matches(path, frozen) else leaf, params
        )
        return sum_loss(held, batch, dropout)

    return held_loss


def loss_and_grads(
    sum_loss: SumLoss,
    params: dict,
    batch: Batch,
    dropout_key: jax.Array | None,
    accumulate: int = 1,
    replicas: int = 1,
) -> tuple[jax.Array, Any]:
    """Mean loss over the batch's weight and its gradient, in `accumulate` micro-batches one after another.

    `replicas` is the size of the mesh's `data` axis. Each adds up the gradient of its own rows, and only the sums meet:
    the compiler would have them meet after every micro-batch.
    """
    value_and_grad = jax.value_and_grad(sum_loss, has_aux=True)

    def sums(rows: tuple[Batch, jax.Array | None]) -> tuple:
        batch, number_B = rows
        dropout = None if number_B is None else Dropout(dropout_key, number_B)
        (loss_sum, weight), grads = value_and_grad(params, batch, dropout)
        return loss_sum, weight, grads

    def accumulated(rows: tuple[Batch, jax.Array | None]) -> tuple:
        def add(total, micro_batch):
            return jax.tree.map(jnp.add, total, sums(micro_batch)), None

        # Rows r, r + accumulate, ... make one micro-batch: rows sharded over devices then stay where they are.
        micro_batches = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), rows)
        zero = jnp.zeros(()), jnp.zeros(()), jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return jax.lax.scan(add, zero, micro_batches)[0]

    rows = batch, None if dropout_key is None else jnp.arange(batch.inputs_BxL.shape[0])
    if accumulate == 1:
        loss_sum, weight, grads = sums(rows)
    elif replicas == 1:
        loss_sum, weight, grads = accumulated(rows)
    else:
        own = jax.tree.map(lambda x: x.reshape(replicas, -1, *x.shape[1:]), rows)
        with meshes.within_replicas():
            each = jax.vmap(accumulated, spmd_axis_name='data')(own)
        loss_sum, weight, grads = jax.tree.map(lambda x: jnp.sum(x, axis=0), each)
    return loss_sum / weight, jax.tree.map(lambda g: g / weight, grads)


def make_train_step(
    sum_loss: SumLoss,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    dropout: bool,
    accumulate: int = 1,
    gradient_scale: float = 1.0,
    replicas: int = 1,
    gradient_shardings: dict | None = None,
    ema: float | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step(state, batch) -> (state, metrics)`; metrics are float32 scalars `loss` (nats) and `grad_norm`.

    `gradient_scale` multiplies the mean gradient before the optimizer sees it: `accumulate` under the release's recipe,
    which adds the micro-batches up without dividing. `replicas` as in `loss_and_grads`. `gradient_shardings` are those
    of the optimizer's state where it is split further than the parameters. `ema` is the decay of the state's average of
    the parameters, if it keeps one.
    Dropout's key is a function of the seed and the state's step.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        dropout_key = named_key(seed, 'dropout', state.step) if dropout else None
        loss, grads = loss_and_grads(sum_loss, state.params, batch, dropout_key, accumulate, replicas)
        if gradient_shardings is not None:
            grads = jax.lax.with_sharding_constraint(grads, gradient_shardings)
        grads = jax.tree.map(lambda g: g * gradient_scale, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        grads32 = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        metrics = {'loss': loss, 'grad_norm': optax.tree.norm(grads32) / gradient_scale}
        average = None if ema is None else next_average(state.ema, params, ema)
        return TrainState(state.step + 1, params, opt_state, average), metrics

    return train_step
