"""The shape and numerics of a transformer, and its size in parameters and FLOPs."""

import dataclasses
import math

from nca_jax.batch import Vocab
from nca_jax.errors import check

CHOICES = {
    **dict.fromkeys(('dtype', 'param_dtype'), ('float32', 'bfloat16')),
    'remat': ('none', 'full', 'projections', 'dots'),
    'attention': ('einsum', 'cudnn', 'splash'),
}


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """How initial weights are drawn: from N(0, deviation), unless `head` says otherwise."""

    # Standard deviation of all projections in the blocks.
    std: float
    # 'scaled' divides the deviation of the residual writers (attn/o, mlp/down) by sqrt(2 layers); 'flat' (the release)
    # does not.
    residual: str
    # Standard deviation of the input table. The release draws language tables from N(0, 1).
    table_std: float
    # 'normal' draws from N(0, table_std), 'uniform' (the release) from +-1 / sqrt(width).
    head: str

    def __post_init__(self):
        check(self.std > 0, 'std', self.std, 'must be positive')
        check(self.table_std > 0, 'table_std', self.table_std, 'must be positive')
        check(self.residual in ('flat', 'scaled'), 'residual', self.residual, "must be 'flat' or 'scaled'")
        check(self.head in ('normal', 'uniform'), 'head', self.head, "must be 'normal' or 'uniform'")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Llama-style decoder: pre-RMSNorm, RoPE, SwiGLU of three matrices, no biases in the layers."""

    # The shape.
    layers: int
    width: int
    heads: int
    ffn: int
    length: int
    rope_theta: float
    norm_eps: float
    # Share of the attention weights that training drops.
    dropout: float
    # Whether the input table is the output head as well.
    tied: bool
    # The release's first stage has a bias at the head.
    head_bias: bool
    init: InitConfig

    # How it runs, which changes no result but for rounding.
    # The activations that the backward pass finds saved: 'none' rematerialises nothing, 'full' all but each block's
    # input, 'projections' keeps the results of projections and attention, 'dots' those of all products.
    remat: str
    # Layers in one step of the scan over them. Equal to `layers` it is no loop: faster on CPU, slower to compile.
    unroll: int
    # 'einsum' runs anywhere, 'cudnn' on a GPU, 'splash' on a TPU.
    attention: str
    # Training computes logits for this many pieces of the length in turn: only one piece's logits exist at a time.
    loss_chunks: int
    # Dtype of activations and products. The loss stays float32.
    dtype: str
    # Dtype of parameters and their gradients.
    param_dtype: str

    def __post_init__(self):
        for field in ('layers', 'width', 'heads', 'ffn', 'length', 'rope_theta', 'norm_eps', 'loss_chunks'):
            check(getattr(self, field) > 0, field, getattr(self, field), 'must be positive')
        for field, known in CHOICES.items():
            check(getattr(self, field) in known, field, getattr(self, field), f'must be one of {", ".join(known)}')
        check(self.width % self.heads == 0, 'heads', self.heads, f'must divide width {self.width}')
        check(self.head_width % 2 == 0, 'heads', self.heads, 'width / heads must be even (rotary embedding)')
        check(0 <= self.dropout < 1, 'dropout', self.dropout, 'must be in [0, 1)')
        check(1 <= self.unroll <= self.layers, 'unroll', self.unroll, f'must be in 1..{self.layers}')
        check(self.length % self.loss_chunks == 0, 'loss_chunks', self.loss_chunks, f'must divide length {self.length}')
        check(not (self.tied and self.head_bias), 'head_bias', self.head_bias, 'tied tables have no head to bias')
        if self.attention != 'einsum':
            check(self.dropout == 0, 'dropout', self.dropout, "needs attention 'einsum': no fused kernel has dropout")
        if self.attention == 'splash':
            check(self.length % 128 == 0, 'length', self.length, "must be a multiple of 128 for attention 'splash'")
        if self.attention == 'cudnn':
            # The head widths that it takes differ by version and GPU, so `run.check_fit` tries.
            check(self.dtype == 'bfloat16', 'dtype', self.dtype, "must be bfloat16 for attention 'cudnn'")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def writer_std(self) -> float:
        """The initial standard deviation of the projections that add to the residual stream."""
        return self.init.std / (math.sqrt(2 * self.layers) if self.init.residual == 'scaled' else 1.0)


def body_parameters(config: ModelConfig) -> int:
    """Number of parameters outside the tables."""
    # Four matrices of attention, three of the MLP, two norms; then the final norm.
    per_layer = 4 * config.width**2 + 3 * config.width * config.ffn + 2 * config.width
    return config.layers * per_layer + config.width


def step_flops(config: ModelConfig, vocab: Vocab, sequences: int) -> float:
    """FLOPs that the model needs for one update on `sequences` of full length, forward and backward.

    counted:     6 x parameters x tokens, the real rows of the head, the causal half of attention
    not counted: the input table (it multiplies nothing), recomputation by remat, scores that the mask hides
    """
    tokens = sequences * config.length
    # Scores and mixing: 2 products x 2 FLOPs x 3 (forward, and twice that backward) x half of the length.
    attention = 6 * config.layers * config.width * config.length * tokens
    return 6.0 * (body_parameters(config) + vocab.size * config.width) * tokens + attention
