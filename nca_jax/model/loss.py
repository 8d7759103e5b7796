"""Cross-entropy whose backward pass reuses the log-sum-exp of the forward one."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def cross_entropy(logits_BxLxV: jax.Array, targets_BxL: jax.Array) -> jax.Array:
    """Negative log-likelihood of each target in nats, (B, L). Logits are float32; masked ones get no gradient."""
    return _forward(logits_BxLxV, targets_BxL)[0]


def _forward(logits_BxLxV, targets_BxL):
    # Sums of exp need no second pass for the maximum's gradient, and autodiff would keep exp(logits) alive as well.
    logsumexp_BxL = jax.nn.logsumexp(logits_BxLxV, axis=-1)
    picked_BxL = jnp.take_along_axis(logits_BxLxV, targets_BxL[..., None], axis=-1)[..., 0]
    return logsumexp_BxL - picked_BxL, (logits_BxLxV, targets_BxL, logsumexp_BxL)


def _backward(saved, cotangent_BxL):
    logits_BxLxV, targets_BxL, logsumexp_BxL = saved
    is_target_BxLxV = jnp.arange(logits_BxLxV.shape[-1])[None, None] == targets_BxL[..., None]
    gradient_BxLxV = jnp.exp(logits_BxLxV - logsumexp_BxL[..., None]) - is_target_BxLxV
    return gradient_BxLxV * cotangent_BxL[..., None], None


cross_entropy.defvjp(_forward, _backward)
