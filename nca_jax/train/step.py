"""One update of the parameters. Newcomers start here.

loss = sum(weights * nll) / sum(weights) over the global batch

Numerator and denominator are summed separately over micro-batches and divided once: a mean of the micro-batches' means
would be wrong where their weights differ, as masked ones do.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from nca_jax import keys, trees
from nca_jax import mesh as meshes
from nca_jax.batch import Batch, Vocab
from nca_jax.model import transformer
from nca_jax.model.attention import Dropout
from nca_jax.model.config import ModelConfig

# (params, batch, dropout) -> (sum of weights * nll, sum of weights), nats, float32.
SumLoss = Callable[[dict, Batch, Dropout | None], tuple[jax.Array, jax.Array]]
Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """What an update changes. It holds no key: dropout's follows from the step."""

    # Updates done, an int32 scalar.
    step: jax.Array
    params: dict
    opt_state: optax.OptState
    # Exponential moving average of the parameters, in float32, if the run keeps one.
    ema: dict | None = None


def init_state(params: dict, optimizer: optax.GradientTransformation, average: bool = False) -> TrainState:
    """The state before the first update, with an average of the parameters if `average`."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), init_ema(params) if average else None)


def init_ema(params: dict) -> dict:
    # A copy even where the dtype agrees: the update donates both, and one buffer can't be donated twice.
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)


def make_sum_loss(config: ModelConfig, vocab: Vocab, frozen: tuple[str, ...] = ()) -> SumLoss:
    """The loss and its weight, with no gradient at the parameters that the patterns `frozen` match."""

    def stop(path: str, leaf: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(leaf) if trees.matches(path, frozen) else leaf

    def sum_loss(params: dict, batch: Batch, dropout: Dropout | None) -> tuple[jax.Array, jax.Array]:
        # Stopped here rather than zeroed later, so that backward doesn't compute these gradients at all.
        params = trees.map_with_path(stop, params)
        return transformer.sum_loss(config, params, batch, vocab, dropout), jnp.sum(batch.weights_BxL)

    return sum_loss


def loss_and_grads(
    sum_loss: SumLoss, params: dict, batch: Batch, dropout_key: jax.Array | None, accumulate: int = 1, replicas: int = 1
) -> tuple[jax.Array, Any]:
    """Mean loss over the batch's weight and its gradient, in `accumulate` micro-batches one after another.

    `replicas`, the size of the mesh's `data` axis, matters only with accumulation: each replica adds up its own rows.
    """
    value_and_grad = jax.value_and_grad(sum_loss, has_aux=True)

    def sums(batch: Batch, numbers_B: jax.Array) -> tuple:
        dropout = None if dropout_key is None else Dropout(dropout_key, numbers_B)
        (loss_sum, weight), grads = value_and_grad(params, batch, dropout)
        return loss_sum, weight, grads

    def accumulated(*rows: Any) -> tuple:
        def add(total: tuple, micro_batch: tuple) -> tuple:
            return jax.tree.map(jnp.add, total, sums(*micro_batch)), None

        # Rows r, r + accumulate, ... make one micro-batch: rows sharded over devices then stay where they are.
        micro_batches = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), rows)
        # Gradients add up in float32 even where the parameters are bfloat16: small ones would vanish in the sum.
        zero = jnp.zeros(()), jnp.zeros(()), jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return jax.lax.scan(add, zero, micro_batches)[0]

    # Dropout keys depend on the row's index in the global batch, so accumulation does not change the mask.
    rows = batch, jnp.arange(len(batch.inputs_BxL))
    if accumulate == 1:
        # One backward pass: GSPMD sums its gradients over the devices by itself.
        loss_sum, weight, grads = sums(*rows)
    elif replicas == 1:
        loss_sum, weight, grads = accumulated(*rows)
    else:
        # Each replica sums its own rows' gradients, one all-reduce follows; GSPMD alone would all-reduce after every
        # micro-batch.
        own = jax.tree.map(lambda x: x.reshape(replicas, -1, *x.shape[1:]), rows)
        with meshes.within_replicas():
            totals = jax.vmap(accumulated, spmd_axis_name='data')(*own)
        loss_sum, weight, grads = jax.tree.map(lambda x: jnp.sum(x, axis=0), totals)
    return loss_sum / weight, jax.tree.map(lambda g: g / weight, grads)


def make_train_step(
    sum_loss: SumLoss,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    dropout: bool,
    accumulate: int = 1,
    # The optimizer gets the mean gradient times this: the release sums over micro-batches instead of averaging.
    gradient_scale: float = 1.0,
    replicas: int = 1,
    # Gradients take these shardings, those of the moments, if the moments are split further than the parameters.
    gradient_shardings: dict | None = None,
    # Decay of the state's average of the parameters.
    ema: float | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step(state, batch) -> (state, metrics)`: float32 scalars `loss` (nats) and `grad_norm` (of the mean)."""

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # A function of seed and step alone, so a resumed run drops what the unbroken one would.
        dropout_key = keys.key(seed, 'dropout', state.step) if dropout else None
        loss, grads = loss_and_grads(sum_loss, state.params, batch, dropout_key, accumulate, replicas)
        if gradient_shardings is not None:
            # Each device keeps only its piece of the gradient: the all-reduce becomes a cheaper reduce-scatter.
            grads = jax.lax.with_sharding_constraint(grads, gradient_shardings)
        # The norm of the mean gradient, before any clip, which lies in the optimizer.
        grad_norm = optax.tree.norm(optax.tree.cast(grads, jnp.float32))
        grads = jax.tree.map(lambda g: g * gradient_scale, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema
        if ema is not None:
            # decay * average + (1 - decay) * params, written so that frozen parameters keep their exact average.
            average = optax.tree.add_scale(average, 1 - ema, optax.tree.sub(params, average))
        return TrainState(state.step + 1, params, opt_state, average), {'loss': loss, 'grad_norm': grad_norm}

    return train_step
