"""Scores of trajectories: how far they compress, or how much changes in them. Rules are chosen by their score."""

import dataclasses
import lzma
import zlib
from collections.abc import Callable

import numpy as np
import pyarrow

from nca_jax.errors import check

# zlib's code for the gzip format. Its 10-byte header and 8-byte trailer count, as in the paper.
GZIP_WBITS = 31

# `(content, level) -> compressed bytes` of each compressor.
COMPRESSED_SIZE: dict[str, Callable[[bytes, int], int]] = {
    'gzip': lambda content, level: len(zlib.compress(content, level, GZIP_WBITS)),
    'zstd': lambda content, level: pyarrow.Codec('zstd', compression_level=level).compress(content).size,
    # The older container: its header has 13 bytes, that of .xz over 60.
    'lzma': lambda content, level: len(lzma.compress(content, lzma.FORMAT_ALONE, preset=level)),
}
LEVELS = {'gzip': (0, 9), 'zstd': (1, 22), 'lzma': (0, 9), 'change_rate': (0, 0)}


@dataclasses.dataclass(frozen=True)
class ComplexityConfig:
    """How a trajectory is scored; the paper's values in brackets."""

    # 'gzip' (paper), 'zstd' or 'lzma': compressed over raw size of the patch tokens. 'change_rate': the share of cells
    # that change in an update.
    measure: str
    # Length of what is scored, from the first frame on (10). The change rate takes a frame after each update.
    frames: int
    # Width of the little-endian integers that are compressed (4); scores depend on it.
    bytes_per_token: int
    # The compressor's effort (9); 0 for the change rate.
    level: int

    def __post_init__(self):
        check(self.measure in LEVELS, 'measure', self.measure, f'one of {", ".join(LEVELS)}')
        least = 2 if self.measure == 'change_rate' else 1
        check(self.frames >= least, 'frames', self.frames, f'at least {least}')
        check(self.bytes_per_token in (1, 2, 4, 8), 'bytes_per_token', self.bytes_per_token, '1, 2, 4 or 8')
        low, high = LEVELS[self.measure]
        check(low <= self.level <= high, 'level', self.level, f'{low} to {high} for {self.measure}')


def ratio(config: ComplexityConfig, tokens_L: np.ndarray) -> float:
    """Compressed over raw size of the tokens. Short inputs can exceed 1, since headers count."""
    content = np.ascontiguousarray(tokens_L, f'<u{config.bytes_per_token}').tobytes()
    return COMPRESSED_SIZE[config.measure](content, config.level) / len(content)


def change_rate(frames_TxYxX: np.ndarray) -> float:
    """Mean share of cells that differ between one frame and the next."""
    return float(np.mean(frames_TxYxX[1:] != frames_TxYxX[:-1]))


def scores(config: ComplexityConfig, frames_RxTxYxX: np.ndarray, tokens_RxL: np.ndarray) -> np.ndarray:
    """The score of each trajectory, float64 (R), from its frames or its tokens as the measure needs."""
    if config.measure == 'change_rate':
        return np.array([change_rate(frames_TxYxX) for frames_TxYxX in frames_RxTxYxX])
    return np.array([ratio(config, tokens_L) for tokens_L in tokens_RxL])


def in_band(scores: np.ndarray, band: tuple[float, float]) -> np.ndarray:
    low, high = band
    return (low < scores) & (scores < high)
