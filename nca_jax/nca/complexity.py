"""How hard a trajectory is to compress: the measure by which rules are chosen."""

import concurrent.futures
import dataclasses
import zlib

import numpy as np

from nca_jax.errors import check

GZIP_WBITS = 31  # zlib's name for the gzip container, whose 10-byte header and 8-byte trailer count too


@dataclasses.dataclass(frozen=True)
class ComplexityConfig:
    """frames: how many of a trajectory's first frames are scored (10).

    bytes_per_token: width of the little-endian integers that are compressed (4); thresholds depend on it.
    level: gzip's effort (9).
    """

    frames: int
    bytes_per_token: int
    level: int

    def __post_init__(self):
        check(self.frames >= 1, 'frames', self.frames, 'at least 1')
        check(self.bytes_per_token in (1, 2, 4, 8), 'bytes_per_token', self.bytes_per_token, '1, 2, 4 or 8')
        check(0 <= self.level <= 9, 'level', self.level, '0 to 9')


def gzip_ratio(config: ComplexityConfig, tokens_L: np.ndarray) -> float:
    """Compressed over raw size of the tokens; header and trailer count, so that short inputs can exceed 1."""
    raw = np.ascontiguousarray(tokens_L, f'<u{config.bytes_per_token}').tobytes()
    return len(zlib.compress(raw, config.level, GZIP_WBITS)) / len(raw)


def gzip_ratios(config: ComplexityConfig, tokens_RxL: np.ndarray, pool: concurrent.futures.Executor) -> np.ndarray:
    """The ratio of every row, float64 (R); zlib lets go of the interpreter, so that the pool's threads run at once."""
    return np.fromiter(pool.map(lambda tokens_L: gzip_ratio(config, tokens_L), tokens_RxL), float, len(tokens_RxL))


def in_band(ratios: np.ndarray, band: tuple[float, float]) -> np.ndarray:
    """Which ratios lie strictly inside the band."""
    low, high = band
    return (low < ratios) & (ratios < high)
