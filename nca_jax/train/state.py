"""What a training step carries from one update to the next."""

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
    """`step` counts the updates done (int32 scalar). There is no key here: dropout's follows from the step.

    `ema` is the exponential moving average of the parameters in float32, or None where none is kept.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ema: dict | None = None


def init_state(params: dict, optimizer: optax.GradientTransformation, average: bool = False) -> TrainState:
    """The state before the first update; with `average` it keeps one of the parameters."""
    ema = first_average(params) if average else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)


def first_average(params: dict) -> dict:
    """The average before any update: the parameters themselves, in buffers of its own."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)


def next_average(average: dict, params: dict, decay: float) -> dict:
    """`decay * average + (1 - decay) * params`, written such that an average that equals the parameters stays so."""
    return optax.tree.add_scale(average, 1 - decay, optax.tree.sub(params, average))
