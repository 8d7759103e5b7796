"""Blocked causal attention against the textbook's, and the hand-written gradient of a product against autodiff's."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nca_jax import mesh as meshes
from nca_jax.errors import UserError
from nca_jax.model import attention
from nca_jax.model.attention import Dropout, causal_attention, check_cudnn, splash_attention
from nca_jax.model.product import product


def textbook(q, k, v, drop):
    length = q.shape[2]
    causal = jnp.tril(jnp.ones((length, length), bool))
    scores = jnp.where(causal[None, None], q @ k.swapaxes(2, 3), -jnp.inf)
    return drop(jax.nn.softmax(scores, axis=-1)) @ v


def assert_close(found, expected):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    'length', [12, 130, 256, 301]
)  # one block, two and a rest, four, four of which the last is short
def test_blocks_change_nothing(monkeypatch, length):
    monkeypatch.setattr(attention, 'drop', lambda weights, *_: weights**2)
    dropout = Dropout(jax.random.key(0), jnp.arange(1))
    q, k, v, cotangent = (jax.random.normal(key, (1, 2, length, 4)) for key in jax.random.split(jax.random.key(0), 4))

    def with_gradients(attend):
        mixed, pull = jax.vjp(attend, q, k, v)
        return mixed, pull(cotangent)

    ours = jax.jit(lambda: with_gradients(lambda *qkv: causal_attention(*qkv, 0.5, dropout)))()
    assert_close(ours, with_gradients(lambda *qkv: textbook(*qkv, lambda weights: weights**2)))


@pytest.mark.parametrize('shape', [None, (2, 1, 2)])
def test_splash_attention_equals_the_textbook(shape):
    """The kernel itself, interpreted, on one device and on rows and heads over four."""
    q, k, v, cotangent = (jax.random.normal(key, (2, 2, 256, 8)) for key in jax.random.split(jax.random.key(0), 4))

    def with_gradients(attend):
        mixed, pull = jax.vjp(attend, q, k, v)
        return mixed, pull(cotangent)

    mesh = None if shape is None else meshes.make_mesh(meshes.MeshConfig(*shape), jax.devices()[:4])
    with contextlib.nullcontext() if mesh is None else meshes.use(mesh):
        found = jax.jit(lambda: with_gradients(functools.partial(splash_attention, interpret=True)))()
    assert_close(found, with_gradients(lambda *qkv: textbook(*qkv, lambda weights: weights)))


def test_cudnn_is_tried_before_it_is_used():
    with pytest.raises(UserError, match=r"attention = 'cudnn': refused here \(.*cuDNN.*\); choose 'einsum'"):
        check_cudnn(64)


@pytest.mark.parametrize('equation', ['bld,dhk->bhlk', 'bhlk,hkd->bld', 'bld,df->blf', 'bld,vd->blv'])
def test_product_has_the_gradient_of_einsum(equation):
    sizes = {'b': 2, 'l': 5, 'd': 6, 'h': 2, 'k': 3, 'f': 7, 'v': 8}
    axes = equation.replace('->', ',').split(',')
    x, kernel, cotangent = (jax.random.normal(jax.random.key(i), [sizes[a] for a in axes[i]]) for i in range(3))

    def with_gradients(f):
        out, pull = jax.vjp(f, x, kernel)
        return out, pull(cotangent)

    assert_close(
        with_gradients(lambda x, kernel: product(equation, x, kernel)),
        with_gradients(lambda x, kernel: jnp.einsum(equation, x, kernel)),
    )


def test_kernel_gradients_are_float32_under_bfloat16():
    x, kernel = jnp.ones((1, 4096, 2), jnp.bfloat16), jnp.ones((2, 3))
    gradient = jax.grad(lambda kernel: product('bld,df->blf', x, kernel).astype(jnp.float32).sum())(kernel)
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, 4096.0)
