"""The product of activations and a kernel, with a backward pass that suits every backend."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def product(
    equation: str, x: jax.Array, kernel: jax.Array, axes: tuple[str, ...] = (), dtype: jnp.dtype | None = None
) -> jax.Array:
    """`einsum(equation, x, kernel)`, multiplied in x's dtype and given in `dtype` (x's by default).

    The kernel's gradient has the kernel's own dtype. With the kernel's logical `axes`, what is split along `embed` is
    gathered before each product, in x's dtype, and its gradient split again: left to itself a compiler would multiply
    shard by shard, in products too thin to be worth it.

    Autodiff would contract cotangent with x and transpose the result, for which XLA transposes the wider operand on a
    CPU; this order makes that product twice as fast.
    """
    kernel = _whole(kernel.astype(x.dtype), axes)
    return jnp.einsum(equation, x, kernel, preferred_element_type=dtype or x.dtype)


def _whole(kernel: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """A kernel, split as it is kept, as products see it."""
    return nn.with_logical_constraint(kernel, tuple('gathered' if axis == 'embed' else axis for axis in axes) or None)


def _product_forward(equation, x, kernel, axes, dtype):
    return product(equation, x, kernel, axes, dtype), (x, kernel)


def _product_backward(equation, axes, dtype, saved, cotangent):
    x, kernel = saved
    cotangent = cotangent.astype(x.dtype)
    operands, out = equation.split('->')
    x_axes, kernel_axes = operands.split(',')
    x_cotangent = jnp.einsum(f'{out},{kernel_axes}->{x_axes}', cotangent, _whole(kernel.astype(x.dtype), axes))
    to_kernel = f'{x_axes},{out}->{kernel_axes}'
    gradient = jnp.einsum(to_kernel, x, cotangent, preferred_element_type=kernel.dtype)
    return x_cotangent, nn.with_logical_constraint(_whole(gradient, axes), axes or None)


product.defvjp(_product_forward, _product_backward)
