"""The product of activations and a kernel, with a backward pass that is fast on every backend and every mesh."""

import functools
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

# The logical axis of each letter in an equation. The width has another name in kernels: `mesh` splits it there alone.
ACTIVATION_AXES = {'b': 'batch', 'l': 'length', 'd': 'residual', 'h': 'heads', 'k': 'head', 'f': 'ffn', 'v': 'vocab'}
KERNEL_AXES = ACTIVATION_AXES | {'d': 'embed'}


def operands(equation: str) -> list[str]:
    """The letters of the activations, the kernel and the result: 'bld,df->blf' has 'bld', 'df' and 'blf'."""
    return re.split(',|->', equation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(equation: str, x: jax.Array, kernel: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """`einsum(equation, x, kernel)`, multiplied in x's dtype, with a result in `dtype` (x's by default).

    The kernel's gradient has the kernel's own dtype.
    """
    kernel = _gathered(kernel.astype(x.dtype), operands(equation)[1])
    return jnp.einsum(equation, x, kernel, preferred_element_type=dtype or x.dtype)


def _gathered(kernel: jax.Array, letters: str) -> jax.Array:
    """The kernel with its `embed` axis whole on every device.

    Left alone, the compiler would multiply shard by shard, in products too thin to be fast.
    """
    return nn.with_logical_constraint(kernel, tuple('gathered' if x == 'd' else KERNEL_AXES[x] for x in letters))


def _product_forward(equation, x, kernel, dtype):
    return product(equation, x, kernel, dtype), (x, kernel)


def _product_backward(equation, dtype, saved, cotangent):
    x, kernel = saved
    of_x, of_kernel, of_out = operands(equation)
    # Both products run in x's dtype, as forward did, even where the result was float32.
    cotangent = cotangent.astype(x.dtype)
    x_gradient = jnp.einsum(f'{of_out},{of_kernel}->{of_x}', cotangent, _gathered(kernel.astype(x.dtype), of_kernel))
    # x before the cotangent: autodiff's order makes XLA transpose the wider of them on a CPU, and takes twice as long.
    contract = functools.partial(jnp.einsum, f'{of_x},{of_out}->{of_kernel}', preferred_element_type=kernel.dtype)
    return x_gradient, _reduce_scattered(contract, of_x, of_kernel, of_out)(x, cotangent)


product.defvjp(_product_forward, _product_backward)


def _reduce_scattered(contract: Callable, of_x: str, of_kernel: str, of_out: str) -> Callable:
    """`contract` on each device's rows, then summed over devices and split as the kernel is.

    Left alone, the compiler would sum whole gradients on every device and throw most of each away.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # Outside a mesh one device holds everything.
    if mesh.empty:
        return contract
    kernel_spec = nn.logical_to_mesh_axes([KERNEL_AXES[letter] for letter in of_kernel])
    specs = tuple(nn.logical_to_mesh_axes([ACTIVATION_AXES[x] for x in letters]) for letters in (of_x, of_out))
    row_axes = specs[0][0] if isinstance(specs[0][0], tuple) else (specs[0][0],)
    # Without a mesh axis that splits both rows and kernel a plain sum is right, which the compiler does itself.
    if not any(axis in kernel_spec and mesh.shape[axis] > 1 for axis in row_axes):
        return contract

    def on_each_device(x, cotangent):
        gradient = contract(x, cotangent)
        # The axes that split the kernel come first, so that the other sums are of pieces.
        for axis in sorted(row_axes, key=lambda axis: axis not in kernel_spec):
            if axis in kernel_spec:
                gradient = jax.lax.psum_scatter(gradient, axis, scatter_dimension=kernel_spec.index(axis), tiled=True)
            else:
                gradient = jax.lax.psum(gradient, axis)
        return gradient

    return jax.shard_map(on_each_device, in_specs=specs, out_specs=kernel_spec, check_vma=False)
