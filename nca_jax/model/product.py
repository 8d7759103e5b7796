"""The product of activations and a kernel, with a backward pass that suits every backend."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(equation: str, x: jax.Array, kernel: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """`einsum(equation, x, kernel)`, multiplied in x's dtype and given in `dtype` (x's by default).

    The kernel's gradient has the kernel's own dtype, float32.

    Autodiff would contract cotangent with x and transpose the result, for which XLA transposes the wider operand on a
    CPU; this order makes that product twice as fast.
    """
    return jnp.einsum(equation, x, kernel.astype(x.dtype), preferred_element_type=dtype or x.dtype)


def _product_forward(equation, x, kernel, dtype):
    return product(equation, x, kernel, dtype), (x, kernel)


def _product_backward(equation, dtype, saved, cotangent):
    x, kernel = saved
    cotangent = cotangent.astype(x.dtype)
    operands, out = equation.split('->')
    x_axes, kernel_axes = operands.split(',')
    x_cotangent = jnp.einsum(f'{out},{kernel_axes}->{x_axes}', cotangent, kernel.astype(x.dtype))
    to_kernel = f'{x_axes},{out}->{kernel_axes}'
    return x_cotangent, jnp.einsum(to_kernel, x, cotangent, preferred_element_type=kernel.dtype)


product.defvjp(_product_forward, _product_backward)
