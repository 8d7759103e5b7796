"""How complex a trajectory is: the measure by which rules are chosen."""

import dataclasses
import lzma
import zlib
from collections.abc import Callable

import numpy as np
import pyarrow

from nca_jax.errors import check

GZIP_WBITS = 31  # zlib's name for the gzip container, whose 10-byte header and 8-byte trailer count too


def compressed_with_gzip(raw: bytes, level: int) -> int:
    return len(zlib.compress(raw, level, GZIP_WBITS))


def compressed_with_zstd(raw: bytes, level: int) -> int:
    return pyarrow.Codec('zstd', compression_level=level).compress(raw).size


def compressed_with_lzma(raw: bytes, level: int) -> int:
    return len(lzma.compress(raw, lzma.FORMAT_ALONE, preset=level))  # its header is 13 bytes, .xz has over 60


COMPRESSORS: dict[str, Callable[[bytes, int], int]] = {
    'gzip': compressed_with_gzip,
    'zstd': compressed_with_zstd,
    'lzma': compressed_with_lzma,
}
LEVELS = {'gzip': (0, 9), 'zstd': (1, 22), 'lzma': (0, 9), 'change_rate': (0, 0)}


@dataclasses.dataclass(frozen=True)
class ComplexityConfig:
    """measure: 'gzip' (the paper's), 'zstd' or 'lzma' for compressed over raw size of the patch tokens, or
        'change_rate' for the share of cells that change in an update.
    frames: how many of a trajectory's first frames are scored (10); for the change rate, of its updates and one more.
    bytes_per_token: width of the little-endian integers that are compressed (4); thresholds depend on it.
    level: the compressor's effort (gzip 9); 0 for the change rate.
    """

    measure: str
    frames: int
    bytes_per_token: int
    level: int

    def __post_init__(self):
        check(self.measure in LEVELS, 'measure', self.measure, f'one of {", ".join(LEVELS)}')
        least = 2 if self.measure == 'change_rate' else 1
        check(self.frames >= least, 'frames', self.frames, f'at least {least}')
        check(self.bytes_per_token in (1, 2, 4, 8), 'bytes_per_token', self.bytes_per_token, '1, 2, 4 or 8')
        low, high = LEVELS[self.measure]
        check(low <= self.level <= high, 'level', self.level, f'{low} to {high} for {self.measure}')


def ratio(config: ComplexityConfig, tokens_L: np.ndarray) -> float:
    """Compressed over raw size of the tokens; header and trailer count, so that short inputs can exceed 1."""
    raw = np.ascontiguousarray(tokens_L, f'<u{config.bytes_per_token}').tobytes()
    return COMPRESSORS[config.measure](raw, config.level) / len(raw)


def change_rate(frames_TxYxX: np.ndarray) -> float:
    """Share of the cells that differ between one frame and the next."""
    return float(np.mean(frames_TxYxX[1:] != frames_TxYxX[:-1]))


def scores(config: ComplexityConfig, frames_RxTxYxX: np.ndarray, tokens_RxL: np.ndarray) -> np.ndarray:
    """The score of each trajectory, float64 (R). Compressing lets go of the interpreter."""
    if config.measure == 'change_rate':
        return np.array([change_rate(frames_TxYxX) for frames_TxYxX in frames_RxTxYxX])
    return np.array([ratio(config, tokens_L) for tokens_L in tokens_RxL])


def in_band(scores: np.ndarray, band: tuple[float, float]) -> np.ndarray:
    """Which scores lie strictly inside the band."""
    low, high = band
    return (low < scores) & (scores < high)
