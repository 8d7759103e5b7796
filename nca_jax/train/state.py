"""What a training step carries from one update to the next."""

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
    """`step` counts the updates done (int32 scalar). There is no key here: dropout's follows from the step."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def init_state(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
