"""The transformer, behind three functions: `init_params`, `abstract_params` and `apply`. Nothing else sees a module.

Parameters are plain nested dicts. Every leaf under `blocks` is stacked over the layers on axis 0, however the layers
are run, so a checkpoint doesn't depend on `unroll` or `remat`. Logical axis names (`vocab`, `embed`, `heads`, `ffn`,
`layers`, `batch`, ...) meet the device mesh in `nca_jax.mesh` alone.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from nca_jax.batch import Vocab
from nca_jax.model.attention import MASKED, causal_attention
from nca_jax.model.config import ModelConfig
from nca_jax.model.product import product


class Projection(nn.Module):
    """One matrix of shape `shape` with logical `axes`, contracted with its input as `equation` says."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    equation: str
    std: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param('kernel', _named(nn.initializers.normal(self.std), self.axes), self.shape)
        return product(self.equation, x, kernel)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32."""

    width: int
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = self.param('scale', _named(nn.initializers.ones, ('embed',)), (self.width,))
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (normed * scale_D[(None,) * (x.ndim - 1)]).astype(x.dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention with rotary positions; dropout falls on the attention weights."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, rotation: tuple[jax.Array, jax.Array], train: bool) -> jax.Array:
        c = self.config
        shape, axes = (c.width, c.heads, c.head_width), ('embed', 'heads', 'head')

        def project(name: str) -> jax.Array:
            return Projection(shape, axes, 'bld,dhk->bhlk', c.init.std, name=name)(x_BxLxD)

        q_BxHxLxDh = _rotate(project('q'), rotation) * (c.head_width**-0.5)
        k_BxHxLxDh, v_BxHxLxDh = _rotate(project('k'), rotation), project('v')
        drop = nn.Dropout(c.dropout, deterministic=not train)
        mixed_BxHxLxDh = causal_attention(q_BxHxLxDh, k_BxHxLxDh, v_BxHxLxDh, drop)
        out_shape, out_axes = (c.heads, c.head_width, c.width), ('heads', 'head', 'embed')
        return Projection(out_shape, out_axes, 'bhlk,hkd->bld', writer_std(c), name='o')(mixed_BxHxLxDh)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        c = self.config
        shape, axes = (c.width, c.ffn), ('embed', 'ffn')
        gate_BxLxF = Projection(shape, axes, 'bld,df->blf', c.init.std, name='gate')(x_BxLxD)
        up_BxLxF = Projection(shape, axes, 'bld,df->blf', c.init.std, name='up')(x_BxLxD)
        hidden_BxLxF = nn.with_logical_constraint(nn.silu(gate_BxLxF) * up_BxLxF, ('batch', 'length', 'ffn'))
        return Projection(shape[::-1], axes[::-1], 'blf,fd->bld', writer_std(c), name='down')(hidden_BxLxF)


class Block(nn.Module):
    """One layer. Its carry is the residual stream, as `nn.scan` wants it."""

    config: ModelConfig
    train: bool

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        c = self.config
        attended = Attention(c, name='attn')(
            RMSNorm(c.width, c.norm_eps, name='attn_norm')(x_BxLxD), rotation, self.train
        )
        x_BxLxD = nn.with_logical_constraint(x_BxLxD + attended, ('batch', 'length', 'residual'))
        x_BxLxD = x_BxLxD + MLP(c, name='mlp')(RMSNorm(c.width, c.norm_eps, name='mlp_norm')(x_BxLxD))
        return nn.with_logical_constraint(x_BxLxD, ('batch', 'length', 'residual')), None


class Transformer(nn.Module):
    """Tokens (B, L) to float32 logits (B, L, V) with V padded; the padding's logits are masked."""

    config: ModelConfig
    vocab: Vocab

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, train: bool) -> jax.Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        embed = Table(self.vocab.padded, c.width, c.init.table_std, name='embed')
        x_BxLxD = nn.with_logical_constraint(embed(tokens_BxL).astype(dtype), ('batch', 'length', 'residual'))
        layers = nn.scan(
            nn.remat(Block, prevent_cse=c.unroll > 1) if c.remat else Block,
            variable_axes={'params': 0},
            split_rngs={'params': True, 'dropout': True},
            in_axes=nn.broadcast,
            length=c.layers,
            unroll=c.unroll,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )
        x_BxLxD, _ = layers(c, train, name='blocks')(x_BxLxD, _rotation(c, tokens_BxL.shape[1]))
        x_BxLxD = RMSNorm(c.width, c.norm_eps, name='final_norm')(x_BxLxD)
        if c.tied:
            logits_BxLxV = product('bld,vd->blv', x_BxLxD, embed.table(), jnp.float32)
        else:
            logits_BxLxV = Head(c, self.vocab.padded, name='head')(x_BxLxD)
        logits_BxLxV = nn.with_logical_constraint(logits_BxLxV, ('batch', 'length', 'vocab'))
        if self.vocab.padded == self.vocab.size:
            return logits_BxLxV
        real_V = jnp.arange(self.vocab.padded) < self.vocab.size
        return jnp.where(real_V[None, None], logits_BxLxV, MASKED)


class Table(nn.Module):
    """The input embedding; `table()` lends its weights to a tied head."""

    rows: int
    width: int
    std: float

    def setup(self):
        init = _named(nn.initializers.normal(self.std), ('vocab', 'embed'))
        self.weights_VxD = self.param('table', init, (self.rows, self.width))

    def table(self) -> jax.Array:
        return self.weights_VxD

    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        return self.weights_VxD[tokens_BxL]


class Head(nn.Module):
    """The untied output head, with the bias of the release's NCA stage where the config asks for it."""

    config: ModelConfig
    rows: int

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        c, bound = self.config, self.config.width**-0.5
        uniform = nn.initializers.uniform(2 * bound)
        init = {
            'normal': nn.initializers.normal(c.init.table_std),
            'uniform': lambda *args: uniform(*args) - bound,
        }[c.init.head]
        kernel_DxV = self.param('kernel', _named(init, ('embed', 'vocab')), (c.width, self.rows))
        logits_BxLxV = product('bld,dv->blv', x_BxLxD, kernel_DxV, jnp.float32)
        if c.head_bias:
            bias_V = self.param('bias', _named(nn.initializers.zeros, ('vocab',)), (self.rows,))
            logits_BxLxV = logits_BxLxV + bias_V[None, None]
        return logits_BxLxV


def init_params(config: ModelConfig, vocab: Vocab, key: jax.Array) -> dict:
    """Fresh float32 parameters; see `InitConfig` for their distributions."""
    return nn.meta.unbox(_boxed_init(config, vocab)(key))


def abstract_params(config: ModelConfig, vocab: Vocab) -> dict:
    """The shapes and dtypes of `init_params`, without computing anything."""
    return jax.eval_shape(lambda: init_params(config, vocab, jax.random.key(0)))


def logical_axes(config: ModelConfig, vocab: Vocab) -> dict:
    """The logical axis names of every parameter, as a tree of PartitionSpecs of the same structure."""
    return nn.get_partition_spec(jax.eval_shape(_boxed_init(config, vocab), jax.random.key(0)))


def apply(
    config: ModelConfig, params: dict, tokens_BxL: jax.Array, vocab: Vocab, dropout_key: jax.Array | None = None
) -> jax.Array:
    """Next-token logits, float32 (B, L, V padded). Dropout is on when a `dropout_key` is given."""
    rngs = None if dropout_key is None else {'dropout': dropout_key}
    return Transformer(config, vocab).apply({'params': params}, tokens_BxL, train=dropout_key is not None, rngs=rngs)


def writer_std(config: ModelConfig) -> float:
    """The initial standard deviation of the projections that write into the residual stream."""
    return config.init.std / (math.sqrt(2 * config.layers) if config.init.residual == 'scaled' else 1.0)


def _boxed_init(config: ModelConfig, vocab: Vocab) -> Callable[[jax.Array], dict]:
    tokens_BxL = jnp.zeros((1, 2), jnp.int32)
    return lambda key: Transformer(config, vocab).init(key, tokens_BxL, train=False)['params']


def _named(init: Callable, axes: tuple[str, ...]) -> Callable:
    return nn.with_logical_partitioning(init, axes)


def _rotation(config: ModelConfig, length: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines (L, Dh/2) of the rotary position embedding, float32."""
    exponents = jnp.arange(0, config.head_width, 2, dtype=jnp.float32) / config.head_width
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * (config.rope_theta**-exponents)[None]
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x_BxHxLxDh: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each half-split pair (x[i], x[i + Dh/2]) by its position's angle, as Llama does."""
    cos, sin = (table[None, None].astype(x_BxHxLxDh.dtype) for table in rotation)
    first, second = jnp.split(x_BxHxLxDh, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
