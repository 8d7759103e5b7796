"""The product of activations and a kernel, with a backward pass that suits every backend and every mesh."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

# The logical axes of activations by their letters in equations; kernels name their own.
ACTIVATIONS = {
    'b': 'batch',
    'l': 'length',
    'd': 'residual',
    'h': 'heads',
    'k': 'head',
    'f': 'ffn',
    'v': 'vocab',
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def product(
    equation: str, x: jax.Array, kernel: jax.Array, axes: tuple[str, ...] = (), dtype: jnp.dtype | None = None
) -> jax.Array:
    """`einsum(equation, x, kernel)`, multiplied in x's dtype and given in `dtype` (x's by default).

    The kernel's gradient has the kernel's own dtype. With the kernel's logical `axes`, what is split along `embed` is
    gathered before each product, in x's dtype, and its gradient is reduced and split after one: left to itself a
    compiler would multiply shard by shard, in products too thin to be worth it, or reduce first and then throw away.

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
    to_kernel = functools.partial(jnp.einsum, f'{x_axes},{out}->{kernel_axes}', preferred_element_type=kernel.dtype)
    return x_cotangent, _reduced(to_kernel, (x_axes, out), axes)(x, cotangent)


product.defvjp(_product_forward, _product_backward)


def _reduced(to_kernel, letters: tuple[str, str], axes: tuple[str, ...]):
    """`to_kernel` on each device's rows, and the sum of that split as the kernel is, where both are split alike."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not axes:
        return to_kernel
    kernel_spec = nn.logical_to_mesh_axes(axes)
    specs = tuple(nn.logical_to_mesh_axes([ACTIVATIONS[letter] for letter in each]) for each in letters)
    rows = specs[0][0] if isinstance(specs[0][0], tuple) else (specs[0][0],)
    if not any(axis in kernel_spec and mesh.shape[axis] > 1 for axis in rows):
        return to_kernel

    def on_each_device(x, cotangent):
        gradient = to_kernel(x, cotangent)
        for axis in sorted(rows, key=lambda axis: axis not in kernel_spec):  # pieces are then summed, not the whole
            if axis in kernel_spec:
                gradient = jax.lax.psum_scatter(gradient, axis, scatter_dimension=kernel_spec.index(axis), tiled=True)
            else:
                gradient = jax.lax.psum(gradient, axis)
        return gradient

    return jax.shard_map(on_each_device, in_specs=specs, out_specs=kernel_spec, check_vma=False)
