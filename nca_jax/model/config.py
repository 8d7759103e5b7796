"""The shape and numerics of a transformer, and its named sizes (arXiv 2603.10055: 400m, 600m, 1b6)."""

import dataclasses

from nca_jax.batch import Vocab
from nca_jax.errors import check

DTYPES = ('float32', 'bfloat16')
REMATS = ('none', 'full', 'projections', 'dots')
ATTENTIONS = ('einsum', 'cudnn', 'splash')


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Standard deviations and shapes of the initial weights.

    std: of every projection in the blocks. residual 'scaled' divides the residual writers (`attn/o`, `mlp/down`) by
    sqrt(2 layers), 'flat' doesn't (the release). table_std: of the input table (the release draws language tables from
    N(0, 1)). head: 'normal' draws N(0, table_std), 'uniform' draws from +-1/sqrt(width) (the release).
    """

    std: float
    residual: str
    table_std: float
    head: str

    def __post_init__(self):
        check(self.std > 0, 'std', self.std, 'must be positive')
        check(self.table_std > 0, 'table_std', self.table_std, 'must be positive')
        check(self.residual in ('flat', 'scaled'), 'residual', self.residual, "must be 'flat' or 'scaled'")
        check(self.head in ('normal', 'uniform'), 'head', self.head, "must be 'normal' or 'uniform'")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Llama-style decoder: pre-RMSNorm, RoPE, SwiGLU of three matrices, no biases in the layers.

    dropout: on the attention weights. dtype: of activations and products; param_dtype: of parameters and their
    gradients; the loss stays float32.

    How it runs, not what it computes: unroll is the number of layers per step of the scan over them (equal to `layers`:
    no loop, faster on CPU). remat: which activations of a block the backward pass finds saved, all ('none'), its input
    ('full'), the results of its projections and of attention ('projections'), or those of all its products ('dots').
    attention: 'einsum', 'cudnn' (GPU) or 'splash' (TPU). loss_chunks: pieces of the length that meet the head one after
    another in training, so that no more than one piece's logits exist at a time.
    """

    layers: int
    width: int
    heads: int
    ffn: int
    length: int
    rope_theta: float
    norm_eps: float
    dropout: float
    tied: bool
    head_bias: bool
    init: InitConfig
    remat: str
    unroll: int
    attention: str
    loss_chunks: int
    dtype: str
    param_dtype: str

    def __post_init__(self):
        for field in ('layers', 'width', 'heads', 'ffn', 'length'):
            check(getattr(self, field) > 0, field, getattr(self, field), 'must be positive')
        check(self.rope_theta > 0, 'rope_theta', self.rope_theta, 'must be positive')
        check(self.norm_eps > 0, 'norm_eps', self.norm_eps, 'must be positive')
        check(self.width % self.heads == 0, 'heads', self.heads, f'must divide width {self.width}')
        check(self.head_width % 2 == 0, 'heads', self.heads, 'width / heads must be even (rotary embedding)')
        check(0 <= self.dropout < 1, 'dropout', self.dropout, 'must be in [0, 1)')
        check(1 <= self.unroll <= self.layers, 'unroll', self.unroll, f'must be in 1..{self.layers}')
        for field, known in (('dtype', DTYPES), ('param_dtype', DTYPES), ('remat', REMATS), ('attention', ATTENTIONS)):
            check(getattr(self, field) in known, field, getattr(self, field), f'must be one of {", ".join(known)}')
        check(self.loss_chunks > 0, 'loss_chunks', self.loss_chunks, 'must be positive')
        check(self.length % self.loss_chunks == 0, 'loss_chunks', self.loss_chunks, f'must divide length {self.length}')
        self._check_attention()
        check(not (self.tied and self.head_bias), 'head_bias', self.head_bias, 'tied tables have no head to bias')

    def _check_attention(self) -> None:
        if self.attention == 'einsum':
            return
        allowed = "needs attention 'einsum', since no fused kernel has dropout"
        check(self.dropout == 0, 'dropout', self.dropout, allowed)
        if self.attention == 'splash':
            check(self.length % 128 == 0, 'length', self.length, "must be a multiple of 128 for attention 'splash'")
        if self.attention == 'cudnn':
            check(self.dtype == 'bfloat16', 'dtype', self.dtype, "must be bfloat16 for attention 'cudnn'")
            allowed = "must leave heads of at most 128, in eights, for attention 'cudnn'"
            check(self.head_width <= 128 and self.head_width % 8 == 0, 'heads', self.heads, allowed)

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def body_parameters(config: ModelConfig) -> int:
    """Number of parameters outside the tables: attention, MLP and norms of all layers, and the final norm."""
    per_layer = 4 * config.width**2 + 3 * config.width * config.ffn + 2 * config.width
    return config.layers * per_layer + config.width


def step_flops(config: ModelConfig, vocab: Vocab, sequences: int) -> float:
    """FLOPs that the model itself needs for one update on `sequences` of full length, forward and backward.

    6 x parameters x tokens, plus attention with its causal half alone. The input table multiplies nothing and isn't
    counted, the head is (its real rows); nor is what an implementation computes twice (remat) or throws away (masks).
    """
    tokens = sequences * config.length
    attention = 6 * config.layers * config.width * config.length * tokens
    return 6.0 * (body_parameters(config) + vocab.size * config.width) * tokens + attention
