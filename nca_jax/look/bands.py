"""The bands of scores between which a calibration chooses: the paper's for what it measured, fifths for all else."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nca_jax.nca import bank, complexity, score
from nca_jax.nca.config import NCAConfig
from nca_jax.nca.score import Progress

PAPER_BANDS = {
    '<10': (0.0, 0.1),
    '10-20': (0.1, 0.2),
    '20-30': (0.2, 0.3),
    '30-40': (0.3, 0.4),
    '40-50': (0.4, 0.5),
    '50+': (0.5, 2.0),
}
FIFTHS = {f'q{low}-{low + 20}': (low / 100, (low + 20) / 100) for low in range(0, 100, 20)}


@dataclasses.dataclass(frozen=True)
class Band:
    """Scores low < s < high and the share of unfiltered rules there; `band` and `band_by` are the config's fields."""

    name: str
    band: tuple[float, float]
    band_by: str
    low: float
    high: float
    share: float


def has_paper_bands(config: NCAConfig) -> bool:
    """Whether the paper's thresholds apply: to its patches of ten colours, as many of them, scored as it does."""
    scored, rule = config.complexity, config.rule
    kind = rule.family, rule.colours, config.patch, scored.measure, scored.level, scored.bytes_per_token
    return (*kind, config.scored_tokens) == ('random', 10, 2, 'gzip', 9, 4, 360)


def make_bands(config: NCAConfig, scores_R: np.ndarray, progress: Progress) -> list[Band]:
    """The paper's bands with their shares of the scores, or the fifths that training takes, of those that hold any."""
    if has_paper_bands(config):
        band_by, limits = 'score', {name: (band, band) for name, band in PAPER_BANDS.items()}
    else:
        scores_R = score.survey(config, 0, config.band_sample, progress)
        band_by, limits = 'quantile', {name: (band, bank.quantiles(scores_R, band)) for name, band in FIFTHS.items()}
    found = [
        Band(name, band, band_by, low, high, float(complexity.in_band(scores_R, (low, high)).mean()))
        for name, (band, (low, high)) in limits.items()
    ]
    return [band for band in found if band.share > 0 or band_by == 'score']


def shares(scores: np.ndarray) -> dict[str, float]:
    """The share of scores in each of the paper's bands, which sum to 1: one on an edge counts above it."""
    edges = [low for low, _ in PAPER_BANDS.values()][1:]
    counts = np.bincount(np.searchsorted(edges, scores, side='right'), minlength=len(PAPER_BANDS))
    return dict(zip(PAPER_BANDS, (counts / len(scores)).tolist(), strict=True))


def nearest(bands: Sequence[Band], score: float) -> Band:
    """The band that holds a score, or else the nearest to it; of those with a rule."""
    held = [band for band in bands if band.share > 0]
    return min(held, key=lambda band: (max(band.low - score, score - band.high, 0.0), -band.low))
