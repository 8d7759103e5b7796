"""The shape and numerics of a transformer, and its named sizes (arXiv 2603.10055: 400m, 600m, 1b6)."""

import dataclasses

from nca_jax.errors import check


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

    unroll: layers per step of the scan over layers (equal to `layers`: no loop, faster on CPU). remat: recompute each
    block in the backward pass. dropout: on the attention weights. dtype: of activations and products, one of float32
    and bfloat16; parameters and the loss stay float32.
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
    remat: bool
    unroll: int
    dtype: str

    def __post_init__(self):
        for field in ('layers', 'width', 'heads', 'ffn', 'length'):
            check(getattr(self, field) > 0, field, getattr(self, field), 'must be positive')
        check(self.rope_theta > 0, 'rope_theta', self.rope_theta, 'must be positive')
        check(self.norm_eps > 0, 'norm_eps', self.norm_eps, 'must be positive')
        check(self.width % self.heads == 0, 'heads', self.heads, f'must divide width {self.width}')
        check(self.head_width % 2 == 0, 'heads', self.heads, 'width / heads must be even (rotary embedding)')
        check(0 <= self.dropout < 1, 'dropout', self.dropout, 'must be in [0, 1)')
        check(1 <= self.unroll <= self.layers, 'unroll', self.unroll, f'must be in 1..{self.layers}')
        check(self.dtype in ('float32', 'bfloat16'), 'dtype', self.dtype, "must be 'float32' or 'bfloat16'")
        check(not (self.tied and self.head_bias), 'head_bias', self.head_bias, 'tied tables have no head to bias')

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def body_parameters(config: ModelConfig) -> int:
    """Number of parameters outside the tables: attention, MLP and norms of all layers, and the final norm."""
    per_layer = 4 * config.width**2 + 3 * config.width * config.ffn + 2 * config.width
    return config.layers * per_layer + config.width
