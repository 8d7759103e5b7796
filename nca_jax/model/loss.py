"""Cross-entropy, and its sum with a hand-written backward pass that computes nothing twice and keeps little alive."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def cross_entropy(logits_BxLxV: jax.Array, targets_BxL: jax.Array) -> jax.Array:
    """Negative log-likelihood of each target in nats, (B, L). Logits are float32."""
    picked_BxL = jnp.take_along_axis(logits_BxLxV, targets_BxL[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BxLxV, axis=-1) - picked_BxL


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_cross_entropy(
    logits_of: Callable[[jax.Array, dict], jax.Array],
    chunks: int,
    x_BxLxD: jax.Array,
    head: dict,
    targets_BxL: jax.Array,
    weights_BxL: jax.Array,
) -> jax.Array:
    """The sum of weights * nll, float32, over the logits `logits_of(x, head)` of `chunks` pieces of the length.

    Differentiable in x and head, not in the weights. Without differentiation it costs as much.
    """
    return _sum_forward(logits_of, chunks, x_BxLxD, head, targets_BxL, weights_BxL)[0]


def _sum_forward(logits_of, chunks, x_BxLxD, head, targets_BxL, weights_BxL):
    # Each piece's gradient is taken while its logits exist, and only the gradient is kept: with several pieces the
    # (B, L, V) logits never exist, and the backward pass recomputes nothing.
    def add(carry, piece):
        total, head_gradient = carry
        x_BxMxD, targets_BxM, weights_BxM = piece
        logits_BxMxV, backward = jax.vjp(logits_of, x_BxMxD, head)
        nll_BxM = cross_entropy(logits_BxMxV, targets_BxM)
        # XLA merges this with the same one in `cross_entropy`.
        logsumexp_BxM = jax.nn.logsumexp(logits_BxMxV, axis=-1)
        # The gradient is softmax - one-hot. Autodiff would also keep exp(logits), and differentiate the maximum. A
        # comparison makes the one-hot without a scatter, in the same fused loop.
        is_target_BxMxV = jnp.arange(logits_BxMxV.shape[-1])[None, None] == targets_BxM[..., None]
        gradient_BxMxV = jnp.exp(logits_BxMxV - logsumexp_BxM[..., None]) - is_target_BxMxV
        x_gradient_BxMxD, piece_gradient = backward(gradient_BxMxV * weights_BxM[..., None])
        total = total + jnp.sum(nll_BxM * weights_BxM)
        return (total, jax.tree.map(jnp.add, head_gradient, piece_gradient)), x_gradient_BxMxD

    start = jnp.zeros(()), jax.tree.map(jnp.zeros_like, head)
    # (B, L, ...) becomes (chunks, B, M, ...) with M = L / chunks.
    pieces = (x.reshape(len(x), chunks, -1, *x.shape[2:]).swapaxes(0, 1) for x in (x_BxLxD, targets_BxL, weights_BxL))
    (total, head_gradient), x_gradient = jax.lax.scan(add, start, tuple(pieces))
    return total, (head_gradient, x_gradient.swapaxes(0, 1).reshape(x_BxLxD.shape))


def _sum_backward(logits_of, chunks, saved, cotangent):
    head_gradient, x_gradient_BxLxD = jax.tree.map(lambda g: (g * cotangent).astype(g.dtype), saved)
    return x_gradient_BxLxD, head_gradient, None, None


sum_cross_entropy.defvjp(_sum_forward, _sum_backward)
