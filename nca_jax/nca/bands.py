"""The bands of scores between which a calibration chooses, and the words with which experiments ask for them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nca_jax.nca import complexity
from nca_jax.nca.config import NCAConfig

PAPER_BANDS = {
    '<10': (0.0, 0.1),
    '10-20': (0.1, 0.2),
    '20-30': (0.2, 0.3),
    '30-40': (0.3, 0.4),
    '40-50': (0.4, 0.5),
    '50+': (0.5, 2.0),
}
WORDS = ('20-30', '30-40', '40-50', '50+')  # what `band=` of the experiments knows of them
PERCENTS = (0, 20, 40, 60, 80, 100)


@dataclasses.dataclass(frozen=True)
class Band:
    """Scores low < s < high, the share of unfiltered rules there, and how a command asks for them.

    word: for experiments that have the word `band`, None where they don't know this one. flags: for every experiment.
    """

    name: str
    low: float
    high: float
    share: float
    word: str | None
    flags: str


def has_paper_bands(config: NCAConfig) -> bool:
    """Whether the scores are of the kind that the paper's bands divide: its patches, scored as it does."""
    scored, rule = config.complexity, config.rule
    kind = (rule.family, rule.colours, config.patch, scored.measure, scored.bytes_per_token)
    return kind == ('random', 10, 2, 'gzip', 4)


def make_bands(config: NCAConfig, scores_R: np.ndarray) -> list[Band]:
    """The paper's bands for what it measured; for all else fifths of the unfiltered rules, of those that hold any."""

    def band(name: str, limits: tuple[float, float], field: tuple[float, float], band_by: str, word: str | None):
        share = float(complexity.in_band(scores_R, limits).mean())
        return Band(name, *limits, share, word, f"--config.data.band='{field}' --config.data.band_by={band_by}")

    if has_paper_bands(config):
        return [
            band(name, limits, limits, 'score', f'band={name}' if name in WORDS else None)
            for name, limits in PAPER_BANDS.items()
        ]
    # As bank.thresholds has it: a rule on the upper edge belongs to the band, and one on the lower edge doesn't.
    edges = np.quantile(scores_R, np.array(PERCENTS) / 100, method='inverted_cdf')
    lows, highs = (-1.0, *edges[1:-1].tolist()), np.nextafter(edges[1:], np.inf).tolist()
    fifths = []
    for low, high, *limits in zip(PERCENTS[:-1], PERCENTS[1:], lows, highs, strict=True):
        name = f'q{low}-{high}'
        fifths.append(band(name, tuple(limits), (low / 100, high / 100), 'quantile', f'band={name}'))
    return [found for found in fifths if found.share > 0]


def nearest(bands: Sequence[Band], score: float) -> Band:
    """The band that holds a score, or else the nearest to it; of those with a rule."""
    held = [band for band in bands if band.share > 0]
    return min(held, key=lambda band: (max(band.low - score, score - band.high, 0.0), -band.low))
