"""Grids as tokens: square patches in reading order between two delimiters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from nca_jax.batch import Vocab
from nca_jax.errors import check


@dataclasses.dataclass(frozen=True)
class PatchVocab(Vocab):
    """A token is a block of patch x patch cells as a number in base `colours`, its lowest digit the top-left cell.

    The last two tokens are the delimiters `start` and `end` of a grid.
    """

    # Follows from the other two.
    size: int = dataclasses.field(init=False)
    colours: int
    patch: int

    def __post_init__(self):
        check(self.patch >= 1, 'patch', self.patch, 'at least 1')
        cells = self.patch * self.patch
        size = self.colours**cells + 2
        check(size < 2**31, 'patch', self.patch, f'{self.colours}^{cells} tokens must fit int32')
        object.__setattr__(self, 'size', size)

    @property
    def start(self) -> int:
        return self.size - 2

    @property
    def end(self) -> int:
        return self.size - 1


def tokens_per_grid(vocab: PatchVocab, height: int, width: int) -> int:
    """Tokens of one grid, its two delimiters included. Raises FieldError if the patch doesn't tile the grid."""
    tiles = height % vocab.patch == width % vocab.patch == 0
    check(tiles, 'patch', vocab.patch, f'a divisor of the {height} x {width} grid')
    return (height // vocab.patch) * (width // vocab.patch) + 2


def encode(vocab: PatchVocab, grid_TxYxX: jax.Array) -> jax.Array:
    """The tokens of the grids one after the other, int32 (T * tokens_per_grid)."""
    frames, height, width = grid_TxYxX.shape
    side = vocab.patch
    blocks = grid_TxYxX.astype(jnp.int32).reshape(frames, height // side, side, width // side, side)
    # Products of whole planes, since integer matrix products are slow.
    token_TxPyxPx = sum(
        vocab.colours ** (row * side + column) * blocks[:, :, row, :, column]
        for row in range(side)
        for column in range(side)
    )
    delimiters = ((0, 0), (vocab.start, vocab.end))
    return jnp.pad(token_TxPyxPx.reshape(frames, -1), ((0, 0), (1, 1)), constant_values=delimiters).reshape(-1)


def decode(vocab: PatchVocab, tokens_L: np.ndarray, height: int, width: int) -> np.ndarray:
    """The inverse of `encode`, on the host: uint8 grids (T, Y, X). Ignores what stands in the delimiters' places."""
    count, side = tokens_per_grid(vocab, height, width), vocab.patch
    token_TxPyxPx = np.asarray(tokens_L).reshape(-1, count)[:, 1:-1].reshape(-1, height // side, width // side)
    powers = vocab.colours ** np.arange(side * side).reshape(1, 1, side, 1, side)
    cells = token_TxPyxPx[:, :, None, :, None] // powers % vocab.colours
    return cells.reshape(-1, height, width).astype(np.uint8)
