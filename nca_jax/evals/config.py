"""How much held-out data an evaluation reads."""

import dataclasses

from nca_jax.errors import check


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """`batches` batches of `batch` sequences from the split `valid`, the same ones at every evaluation."""

    batch: int
    batches: int

    def __post_init__(self):
        check(self.batch > 0, 'batch', self.batch, 'must be positive')
        check(self.batches > 0, 'batches', self.batches, 'must be positive')
