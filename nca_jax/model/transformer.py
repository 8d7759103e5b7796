"""The transformer, behind `init_params`, `abstract_params`, `apply` and `sum_loss`. Nothing else sees a module.

Parameters are plain nested dicts. Every leaf under `blocks` is stacked over the layers on axis 0, however the layers
are run, so a checkpoint doesn't depend on `unroll` or `remat`. Logical axis names (`vocab`, `embed`, `heads`, `ffn`,
`layers`, `batch`, ...) meet the device mesh in `nca_jax.mesh` alone.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from nca_jax.batch import Batch, Vocab
from nca_jax.model.attention import MASKED, Attend, causal_attention
from nca_jax.model.config import ModelConfig
from nca_jax.model.dropout import Dropout, drop
from nca_jax.model.fused_attention import SAVED, cudnn_attention, splash_attention
from nca_jax.model.loss import sum_cross_entropy
from nca_jax.model.product import product
from nca_jax.model.rotary import rotate, rotation_at


class Projection(nn.Module):
    """One matrix of shape `shape` with logical `axes`, contracted with its input as `equation` says."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    equation: str
    std: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = _named(nn.initializers.normal(self.std), self.axes)
        kernel = self.param('kernel', init, self.shape, jnp.dtype(self.dtype))
        return product(self.equation, x, kernel, self.axes)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        scale_D = self.param('scale', _named(nn.initializers.ones, ('embed',)), (c.width,), jnp.dtype(c.param_dtype))
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + c.norm_eps)
        return (normed * scale_D[(None,) * (x.ndim - 1)]).astype(x.dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention with rotary positions; dropout falls on the attention weights."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BxLxD: jax.Array,
        rotation: tuple[jax.Array, jax.Array],
        dropout: Dropout | None,
        attend: Attend | None,
    ) -> tuple[jax.Array, Any]:
        c = self.config
        shape, axes = (c.width, c.heads, c.head_width), ('embed', 'heads', 'head')

        def project(name: str) -> jax.Array:
            return Projection(shape, axes, 'bld,dhk->bhlk', c.init.std, c.param_dtype, name=name)(x_BxLxD)

        q_BxHxLxDh = rotate(project('q'), rotation) * (c.head_width**-0.5)
        k_BxHxLxDh, v_BxHxLxDh = rotate(project('k'), rotation), project('v')
        qkv = tuple(checkpoint_name(x, SAVED) for x in (q_BxHxLxDh, k_BxHxLxDh, v_BxHxLxDh))
        mixed_BxHxLxDh, cache = attend(*qkv) if attend else (self._attend(*qkv, dropout), None)
        mixed_BxHxLxDh = checkpoint_name(mixed_BxHxLxDh, SAVED)
        out_shape, out_axes = (c.heads, c.head_width, c.width), ('heads', 'head', 'embed')
        out = Projection(out_shape, out_axes, 'bhlk,hkd->bld', writer_std(c), c.param_dtype, name='o')
        return out(mixed_BxHxLxDh), cache

    def _attend(self, q_BxHxLxDh, k_BxHxLxDh, v_BxHxLxDh, dropout: Dropout | None) -> jax.Array:
        """Over the sequence itself, by the backend that the config names."""
        c, qkv = self.config, (q_BxHxLxDh, k_BxHxLxDh, v_BxHxLxDh)
        if c.attention != 'einsum':
            spec = nn.logical_to_mesh_axes(('batch', 'heads', 'length', 'head'))
            return {'cudnn': cudnn_attention, 'splash': splash_attention}[c.attention](*qkv, spec)
        if dropout is None:
            return causal_attention(*qkv, lambda weights_BxHxRxM, start: weights_BxHxRxM)
        draws = dropout._replace(key=self.make_rng('dropout'))  # the layer's own
        return causal_attention(*qkv, lambda weights_BxHxRxM, start: drop(weights_BxHxRxM, c.dropout, draws, start))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        c = self.config
        shape, axes = (c.width, c.ffn), ('embed', 'ffn')

        def project(name: str) -> jax.Array:
            projection = Projection(shape, axes, 'bld,df->blf', c.init.std, c.param_dtype, name=name)
            return checkpoint_name(projection(x_BxLxD), SAVED)

        hidden_BxLxF = nn.silu(project('gate')) * project('up')
        hidden_BxLxF = nn.with_logical_constraint(hidden_BxLxF, ('batch', 'length', 'ffn'))
        down = Projection(shape[::-1], axes[::-1], 'blf,fd->bld', writer_std(c), c.param_dtype, name='down')
        return down(hidden_BxLxF)


class Block(nn.Module):
    """One layer, of training and of decoding. Its carry is the residual stream, as `nn.scan` wants it.

    Without `attend` it sees its input alone; with it whatever that lets it see, and gives back what that returns.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BxLxD: jax.Array,
        rotation: tuple[jax.Array, jax.Array],
        dropout: Dropout | None,
        attend: Attend | None = None,
    ) -> tuple[jax.Array, Any]:
        c = self.config
        attended, cache = Attention(c, name='attn')(RMSNorm(c, name='attn_norm')(x_BxLxD), rotation, dropout, attend)
        x_BxLxD = nn.with_logical_constraint(x_BxLxD + attended, ('batch', 'length', 'residual'))
        x_BxLxD = checkpoint_name(x_BxLxD, SAVED)
        x_BxLxD = x_BxLxD + MLP(c, name='mlp')(RMSNorm(c, name='mlp_norm')(x_BxLxD))
        return nn.with_logical_constraint(x_BxLxD, ('batch', 'length', 'residual')), cache


class Transformer(nn.Module):
    """Tokens (B, L) to the last layer's normed states (B, L, D), of which the head makes logits."""

    config: ModelConfig
    vocab: Vocab

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, dropout: Dropout | None) -> jax.Array:
        c = self.config
        x_BxLxD = Table(self.vocab.padded, c, name='embed')(tokens_BxL).astype(jnp.dtype(c.dtype))
        x_BxLxD = nn.with_logical_constraint(x_BxLxD, ('batch', 'length', 'residual'))
        layers = nn.scan(
            _rematerialised(c),
            variable_axes={'params': 0},
            split_rngs={'params': True, 'dropout': True},
            in_axes=nn.broadcast,
            length=c.layers,
            unroll=c.unroll,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )
        rotation = rotation_at(c, jnp.arange(tokens_BxL.shape[1])[None])
        x_BxLxD, _ = layers(c, name='blocks')(x_BxLxD, rotation, dropout)
        if self.is_initializing() and not c.tied:
            Head(c, self.vocab.padded, name='head')()
        return RMSNorm(c, name='final_norm')(x_BxLxD)


def _rematerialised(config: ModelConfig) -> type[Block]:
    policies = jax.checkpoint_policies
    policy = {
        'full': policies.nothing_saveable,
        'projections': policies.save_only_these_names(SAVED),
        'dots': policies.dots_with_no_batch_dims_saveable,
    }
    if config.remat == 'none':
        return Block
    return nn.remat(Block, policy=policy[config.remat], prevent_cse=config.unroll > 1)


class Table(nn.Module):
    """The input embedding."""

    rows: int
    config: ModelConfig

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        c = self.config
        init = _named(nn.initializers.normal(c.init.table_std), ('vocab', 'embed'))
        return self.param('table', init, (self.rows, c.width), jnp.dtype(c.param_dtype))[tokens_BxL]


class Head(nn.Module):
    """Makes the weights of an untied head, with the bias of the release's NCA stage where the config asks for it."""

    config: ModelConfig
    rows: int

    @nn.compact
    def __call__(self) -> None:
        c, bound, dtype = self.config, self.config.width**-0.5, jnp.dtype(self.config.param_dtype)
        uniform = nn.initializers.uniform(2 * bound)
        init = {
            'normal': nn.initializers.normal(c.init.table_std),
            'uniform': lambda *args: uniform(*args) - jnp.asarray(bound, dtype),
        }[c.init.head]
        self.param('kernel', _named(init, ('embed', 'vocab')), (c.width, self.rows), dtype)
        if c.head_bias:
            self.param('bias', _named(nn.initializers.zeros, ('vocab',)), (self.rows,), dtype)


def init_params(config: ModelConfig, vocab: Vocab, key: jax.Array) -> dict:
    """Fresh parameters of the config's param_dtype; see `InitConfig` for their distributions."""
    return nn.meta.unbox(_boxed_init(config, vocab)(key))


def abstract_params(config: ModelConfig, vocab: Vocab) -> dict:
    """The shapes and dtypes of `init_params`, without computing anything."""
    return jax.eval_shape(lambda: init_params(config, vocab, jax.random.key(0)))


def logical_axes(config: ModelConfig, vocab: Vocab) -> dict:
    """The logical axis names of every parameter, as a tree of PartitionSpecs of the same structure."""
    return nn.get_partition_spec(jax.eval_shape(lambda: _boxed_init(config, vocab)(jax.random.key(0))))


def apply(
    config: ModelConfig, params: dict, tokens_BxL: jax.Array, vocab: Vocab, dropout: Dropout | None = None
) -> jax.Array:
    """Next-token logits, float32 (B, L, V padded), with dropout where it is given what to draw from."""
    x_BxLxD = _states(config, params, tokens_BxL, vocab, dropout)
    return logits_of(vocab, x_BxLxD, head_of(params))


def sum_loss(
    config: ModelConfig, params: dict, batch: Batch, vocab: Vocab, dropout: Dropout | None = None
) -> jax.Array:
    """The sum of weights * nll in nats, float32. Its logits exist in `loss_chunks` pieces, one at a time."""
    x_BxLxD = _states(config, params, batch.inputs_BxL, vocab, dropout)
    return sum_cross_entropy(
        functools.partial(logits_of, vocab),
        config.loss_chunks,
        x_BxLxD,
        head_of(params),
        batch.targets_BxL,
        batch.weights_BxL,
    )


def _states(
    config: ModelConfig, params: dict, tokens_BxL: jax.Array, vocab: Vocab, dropout: Dropout | None
) -> jax.Array:
    rngs = None if dropout is None else {'dropout': dropout.key}
    return Transformer(config, vocab).apply({'params': params}, tokens_BxL, dropout, rngs=rngs)


def head_of(params: dict) -> dict:
    """The weights that make logits: those of the head, or the input table where there is none."""
    return params['head'] if 'head' in params else params['embed']


def logits_of(vocab: Vocab, x_BxLxD: jax.Array, head: dict) -> jax.Array:
    """Float32 logits (B, L, V) of normed states; those of the vocabulary's padding are masked."""
    if 'table' in head:
        logits_BxLxV = product('bld,vd->blv', x_BxLxD, head['table'], ('vocab', 'embed'), jnp.float32)
    else:
        logits_BxLxV = product('bld,dv->blv', x_BxLxD, head['kernel'], ('embed', 'vocab'), jnp.float32)
    if 'bias' in head:
        logits_BxLxV = logits_BxLxV + head['bias'].astype(jnp.float32)[None, None]
    logits_BxLxV = nn.with_logical_constraint(logits_BxLxV, ('batch', 'length', 'vocab'))
    if vocab.padded == vocab.size:
        return logits_BxLxV
    real_V = jnp.arange(vocab.padded) < vocab.size
    return jnp.where(real_V[None, None], logits_BxLxV, MASKED)


def writer_std(config: ModelConfig) -> float:
    """The initial standard deviation of the projections that write into the residual stream."""
    return config.init.std / (math.sqrt(2 * config.layers) if config.init.residual == 'scaled' else 1.0)


def _boxed_init(config: ModelConfig, vocab: Vocab) -> Callable[[jax.Array], dict]:
    module = Transformer(dataclasses.replace(config, attention='einsum'), vocab)  # runs anywhere
    tokens_BxL = jnp.zeros((1, 2), jnp.int32)
    return lambda key: module.init(key, tokens_BxL, None)['params']


def _named(init: Callable, axes: tuple[str, ...]) -> Callable:
    return nn.with_logical_partitioning(init, axes)
