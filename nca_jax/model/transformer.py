"""The transformer: tokens -> table -> N blocks of attention and MLP -> norm -> head -> logits. Read it top to bottom.

Outside `nca_jax.model` it is plain functions and nested dicts of parameters. Every leaf under `blocks` is stacked over
the layers on axis 0, however the layers run. Logical axis names meet the device mesh in `nca_jax.mesh` alone.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from nca_jax.batch import Batch, Vocab
from nca_jax.model import attention
from nca_jax.model.attention import MASKED, SAVED, Angles, Attend, Dropout
from nca_jax.model.config import ModelConfig
from nca_jax.model.loss import sum_cross_entropy
from nca_jax.model.product import KERNEL_AXES, operands, product

# The activations that the backward pass finds saved, by `remat`.
POLICIES = {
    'full': jax.checkpoint_policies.nothing_saveable,
    'projections': jax.checkpoint_policies.save_only_these_names(SAVED),
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def init_params(config: ModelConfig, vocab: Vocab, key: jax.Array) -> dict:
    return nn.meta.unbox(_boxed_params(config, vocab, key))


def abstract_params(config: ModelConfig, vocab: Vocab) -> dict:
    """Shapes and dtypes of `init_params`, without computing anything."""
    return jax.eval_shape(lambda: init_params(config, vocab, jax.random.key(0)))


def logical_axes(config: ModelConfig, vocab: Vocab) -> dict:
    """The logical axis names of every parameter, as a tree of PartitionSpecs of the same structure."""
    return nn.get_partition_spec(jax.eval_shape(lambda: _boxed_params(config, vocab, jax.random.key(0))))


def _boxed_params(config: ModelConfig, vocab: Vocab, key: jax.Array) -> dict:
    # The boxes are Flax's: they hold a parameter's logical axes.
    # Any attention draws the same weights; this one runs anywhere and at any length.
    model = Transformer(dataclasses.replace(config, attention='einsum'), vocab)
    return model.init(key, jnp.zeros((1, 2), jnp.int32), None)['params']


def apply(
    config: ModelConfig, params: dict, tokens_BxL: jax.Array, vocab: Vocab, dropout: Dropout | None = None
) -> jax.Array:
    """Next-token logits (B, L, V padded), float32; with dropout if `dropout` is given."""
    return logits_of(vocab, _states(config, params, tokens_BxL, vocab, dropout), head_of(params))


def sum_loss(
    config: ModelConfig, params: dict, batch: Batch, vocab: Vocab, dropout: Dropout | None = None
) -> jax.Array:
    """The sum of weights * nll in nats, float32. Logits exist in `loss_chunks` pieces, one at a time."""
    x_BxLxD = _states(config, params, batch.inputs_BxL, vocab, dropout)
    logits = functools.partial(logits_of, vocab)
    return sum_cross_entropy(logits, config.loss_chunks, x_BxLxD, head_of(params), batch.targets_BxL, batch.weights_BxL)


def _states(
    config: ModelConfig, params: dict, tokens_BxL: jax.Array, vocab: Vocab, dropout: Dropout | None
) -> jax.Array:
    rngs = None if dropout is None else {'dropout': dropout.key}
    return Transformer(config, vocab).apply({'params': params}, tokens_BxL, dropout, rngs=rngs)


class Transformer(nn.Module):
    """Tokens (B, L) to the last layer's normed states (B, L, D), from which the head makes logits."""

    config: ModelConfig
    vocab: Vocab

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, dropout: Dropout | None) -> jax.Array:
        c = self.config
        x_BxLxD = Table(c, self.vocab.padded, name='embed')(tokens_BxL)
        x_BxLxD = nn.with_logical_constraint(x_BxLxD, ('batch', 'length', 'residual'))
        block = Block
        if c.remat != 'none':
            # One layer at a time, the loop already keeps XLA from merging the two computations of a block.
            block = nn.remat(Block, policy=POLICIES[c.remat], prevent_cse=c.unroll > 1)
        layers = nn.scan(
            block,
            # Layers stack their parameters on axis 0.
            variable_axes={'params': 0},
            # Every layer draws its own weights and its own dropout.
            split_rngs={'params': True, 'dropout': True},
            in_axes=nn.broadcast,
            length=c.layers,
            unroll=c.unroll,
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )
        angles = attention.rotary_angles(c.head_width, c.rope_theta, jnp.arange(tokens_BxL.shape[1])[None])
        x_BxLxD, _ = layers(c, name='blocks')(x_BxLxD, angles, dropout)
        # The loss applies the head piece by piece, so it takes the weights alone; here they are only drawn.
        if self.is_initializing() and not c.tied:
            Head(c, self.vocab.padded, name='head')()
        return RMSNorm(c, name='final_norm')(x_BxLxD)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)). Returns (x, the cache that `attend` returned).

    Training attends to the input alone; decoding passes an `attend` that reads and extends a cache.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BxLxD: jax.Array, angles: Angles, dropout: Dropout | None, attend: Attend | None = None
    ) -> tuple[jax.Array, Any]:
        c = self.config
        attended, cache = Attention(c, name='attn')(RMSNorm(c, name='attn_norm')(x_BxLxD), angles, dropout, attend)
        x_BxLxD = nn.with_logical_constraint(x_BxLxD + attended, ('batch', 'length', 'residual'))
        x_BxLxD = checkpoint_name(x_BxLxD, SAVED)
        x_BxLxD = x_BxLxD + MLP(c, name='mlp')(RMSNorm(c, name='mlp_norm')(x_BxLxD))
        return nn.with_logical_constraint(x_BxLxD, ('batch', 'length', 'residual')), cache


class Attention(nn.Module):
    """Causal multi-head self-attention with rotary positions; dropout falls on the attention weights."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BxLxD: jax.Array, angles: Angles, dropout: Dropout | None, attend: Attend | None
    ) -> tuple[jax.Array, Any]:
        c = self.config
        q_BxHxLxDh, k_BxHxLxDh, v_BxHxLxDh = (
            Projection(c, 'bld,dhk->bhlk', c.init.std, name=name)(x_BxLxD) for name in 'qkv'
        )
        # The queries are scaled, not the scores: there are fewer of them.
        q_BxHxLxDh = attention.rotate(q_BxHxLxDh, angles) * (c.head_width**-0.5)
        k_BxHxLxDh = attention.rotate(k_BxHxLxDh, angles)
        qkv = tuple(checkpoint_name(x, SAVED) for x in (q_BxHxLxDh, k_BxHxLxDh, v_BxHxLxDh))
        cache = None
        if attend is not None:
            mixed_BxHxLxDh, cache = attend(*qkv)
        elif c.attention == 'cudnn':
            mixed_BxHxLxDh = attention.cudnn_attention(*qkv)
        elif c.attention == 'splash':
            mixed_BxHxLxDh = attention.splash_attention(*qkv)
        else:
            if dropout is not None:
                # Each layer has a key of its own.
                dropout = dropout._replace(key=self.make_rng('dropout'))
            mixed_BxHxLxDh = attention.causal_attention(*qkv, c.dropout, dropout)
        mixed_BxHxLxDh = checkpoint_name(mixed_BxHxLxDh, SAVED)
        return Projection(c, 'bhlk,hkd->bld', c.writer_std, name='o')(mixed_BxHxLxDh), cache


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        c = self.config
        gate_BxLxF, up_BxLxF = (
            checkpoint_name(Projection(c, 'bld,df->blf', c.init.std, name=name)(x_BxLxD), SAVED)
            for name in ('gate', 'up')
        )
        hidden_BxLxF = nn.with_logical_constraint(nn.silu(gate_BxLxF) * up_BxLxF, ('batch', 'length', 'ffn'))
        return Projection(c, 'blf,fd->bld', c.writer_std, name='down')(hidden_BxLxF)


class Projection(nn.Module):
    """The product with one matrix; shape and logical axes follow from the letters of `equation`."""

    config: ModelConfig
    equation: str
    std: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        sizes = {'d': c.width, 'h': c.heads, 'k': c.head_width, 'f': c.ffn}
        letters = operands(self.equation)[1]
        init = nn.with_logical_partitioning(nn.initializers.normal(self.std), tuple(KERNEL_AXES[x] for x in letters))
        kernel = self.param('kernel', init, tuple(sizes[x] for x in letters), jnp.dtype(c.param_dtype))
        return product(self.equation, x, kernel)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        init = nn.with_logical_partitioning(nn.initializers.ones, ('embed',))
        scale_D = self.param('scale', init, (c.width,), jnp.dtype(c.param_dtype))
        # Squares in bfloat16 would lose most of their digits.
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + c.norm_eps)
        return (normed * scale_D[(None,) * (x.ndim - 1)]).astype(x.dtype)


class Table(nn.Module):
    config: ModelConfig
    rows: int

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        c = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(c.init.table_std), ('vocab', 'embed'))
        table_VxD = self.param('table', init, (self.rows, c.width), jnp.dtype(c.param_dtype))
        return table_VxD[tokens_BxL].astype(jnp.dtype(c.dtype))


class Head(nn.Module):
    """Draws the weights of an untied head, with the bias of the release's first stage if the config has it."""

    config: ModelConfig
    rows: int

    @nn.compact
    def __call__(self) -> None:
        c, dtype, bound = self.config, jnp.dtype(self.config.param_dtype), self.config.width**-0.5

        # nn.initializers.uniform draws from [0, scale) alone.
        def uniform(*args) -> jax.Array:
            return nn.initializers.uniform(2 * bound)(*args) - jnp.asarray(bound, dtype)

        init = uniform if c.init.head == 'uniform' else nn.initializers.normal(c.init.table_std)
        self.param('kernel', nn.with_logical_partitioning(init, ('embed', 'vocab')), (c.width, self.rows), dtype)
        if c.head_bias:
            # Zeros, so that no token is likelier at the beginning.
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('vocab',))
            self.param('bias', zeros, (self.rows,), dtype)


def head_of(params: dict) -> dict:
    """The weights that make logits: those of the head, or the input table of a tied model."""
    return params['head'] if 'head' in params else params['embed']


def logits_of(vocab: Vocab, x_BxLxD: jax.Array, head: dict) -> jax.Array:
    """Float32 logits (B, L, V padded) of normed states; those of the padding are masked."""
    # A tied table lies the other way round; a transposed copy would cost memory.
    if 'table' in head:
        logits_BxLxV = product('bld,vd->blv', x_BxLxD, head['table'], jnp.float32)
    else:
        logits_BxLxV = product('bld,dv->blv', x_BxLxD, head['kernel'], jnp.float32)
    if 'bias' in head:
        logits_BxLxV = logits_BxLxV + head['bias'].astype(jnp.float32)[None, None]
    logits_BxLxV = nn.with_logical_constraint(logits_BxLxV, ('batch', 'length', 'vocab'))
    if vocab.padded == vocab.size:
        return logits_BxLxV
    # Padding takes no part in the softmax and is never sampled.
    real_V = jnp.arange(vocab.padded) < vocab.size
    return jnp.where(real_V[None, None], logits_BxLxV, MASKED)


def by_layer(config: ModelConfig, params: dict) -> dict:
    """Parameters as decoding reads them: a tuple of layers under `blocks`, kernels and tables in the config's dtype."""

    def cast(path: tuple, leaf: jax.Array) -> jax.Array:
        # Norms and biases stay: they are applied in float32.
        return leaf.astype(jnp.dtype(config.dtype)) if path[-1].key in ('kernel', 'table') else leaf

    params = jax.tree_util.tree_map_with_path(cast, params)
    layers = (jax.tree.map(lambda leaf, n=n: leaf[n], params['blocks']) for n in range(config.layers))
    return params | {'blocks': tuple(layers)}


def apply_cached(
    config: ModelConfig,
    layers: dict,
    tokens_BxL: jax.Array,
    position_BxL: jax.Array,
    attends: Sequence[Attend],
    vocab: Vocab,
) -> tuple[jax.Array, tuple]:
    """Logits (B, L, V padded) of tokens at their positions and the cache of each layer, for decoding.

    `layers` comes from `by_layer`. `attends[n]` is the attention of layer n, over whatever its cache holds.
    """
    angles = attention.rotary_angles(config.head_width, config.rope_theta, position_BxL)
    # Layer by layer without a scan: each cache is an array of its own, which decoding updates in place.
    x_BxLxD = layers['embed']['table'][tokens_BxL].astype(jnp.dtype(config.dtype))
    caches = []
    for layer, attend in zip(layers['blocks'], attends, strict=True):
        x_BxLxD, cache = Block(config).apply({'params': layer}, x_BxLxD, angles, None, attend)
        caches.append(cache)
    x_BxLxD = RMSNorm(config).apply({'params': layers['final_norm']}, x_BxLxD)
    return logits_of(vocab, x_BxLxD, head_of(layers)), tuple(caches)
