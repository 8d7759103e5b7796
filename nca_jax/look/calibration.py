"""Measures texts and rules on one scale and proposes a band of rules for each text."""

import argparse
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nca_jax.config import Config
from nca_jax.errors import check
from nca_jax.look import output, texts
from nca_jax.nca import bank, score
from nca_jax.nca.config import NCAConfig
from nca_jax.progress import Progress
from nca_jax.report import tables

PAPER_BANDS = {
    '<10': (0.0, 0.1),
    '10-20': (0.1, 0.2),
    '20-30': (0.2, 0.3),
    '30-40': (0.3, 0.4),
    '40-50': (0.4, 0.5),
    '50+': (0.5, 2.0),
}
FIFTHS = {f'q{low}-{low + 20}': (low / 100, (low + 20) / 100) for low in range(0, 100, 20)}
NOTE = """

`calibrate --help` explains the rows. Above 0 or 100 % of rules, no band holds a text: the nearest one is proposed."""


@dataclasses.dataclass(frozen=True)
class Band:
    """An interval of scores."""

    name: str
    # The config's fields that train on it.
    band: tuple[float, float]
    band_by: str
    # Thresholds, and the share of unfiltered rules between them.
    low: float
    high: float
    share: float


def calibrate(config: Config, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """All measurements: the rules, the bands, and each text with its band."""
    data, seed, scored = config.data, config.seed, config.data.complexity
    compressors = score.COMPRESSED_SIZE
    allowed = f'must be one of {", ".join(compressors)}: text has no cells that could change'
    check(scored.measure in compressors, 'config.data.complexity.measure', scored.measure, allowed)
    # Before the rules, which take longer: a text may be missing or too small.
    measured = {name: texts.measure_text(data, name, args.windows, seed) for name in args.text}
    scores_R = score.survey(data, seed, args.rules, progress)
    # The automata's vocabulary is all patches.
    scale = texts.make_scale(scored, data.scored_tokens, np.arange(data.vocab.start), seed)
    rules = texts.Ratios(data.scored_tokens, scored.bytes_per_token, scores_R, scale)
    bands = make_bands(data, scores_R, progress)
    described = {}
    for name, settings in measured.items():
        records = {setting: ratios.record() for setting, ratios in settings.items()}
        # The setting that decides; the other windows are unlike those of automata.
        of_bytes = records['bytes']
        for prefix in ('', 'shuffled_'):
            of_bytes[f'{prefix}score'] = scale.ratio(of_bytes[f'{prefix}normalized_ratio'])
        of_bytes['scores'] = scale.ratio(settings['bytes'].scale.normalize(settings['bytes'].ratios_W))
        band = nearest(bands, of_bytes['score'])
        described[name] = {
            'settings': records,
            'band': band.name,
            'rules_below': np.mean(scores_R < of_bytes['score']),
            'arguments': training_arguments(args, band),
        }
    least, median, most = np.quantile(scores_R, (0, 0.5, 1))
    scores = {'min': least, 'median': median, 'max': most, **paper_shares(scores_R), 'scores': scores_R}
    return {
        'config': args.config,
        'spec': dataclasses.asdict(data),
        'seed': seed,
        'rules': rules.record() | scores,
        'bands': {band.name: dataclasses.asdict(band) for band in bands},
        'texts': described,
    }


def has_paper_bands(config: NCAConfig) -> bool:
    """Whether the paper's thresholds apply: for its patches of ten colours, as many of them, scored as it does."""
    scored, rule = config.complexity, config.rule
    # The fields that change a score or the distribution of scores.
    kind = rule.family, rule.colours, config.patch, scored.measure, scored.level, scored.bytes_per_token
    return (*kind, config.scored_tokens) == ('random', 10, 2, 'gzip', 9, 4, 360)


def make_bands(config: NCAConfig, scores_R: np.ndarray, progress: Progress) -> list[Band]:
    """The paper's bands, or the fifths of unfiltered rules as training cuts them, except empty ones."""
    if has_paper_bands(config):
        band_by, thresholds = 'score', {name: (band, band) for name, band in PAPER_BANDS.items()}
    else:
        # Seed 0, as in `bank`: the thresholds are those of training and don't depend on this run's seed.
        sampled = score.survey(config, 0, config.band_sample, lambda _, done, total: progress('fifths', done, total))
        scores_R, band_by = sampled, 'quantile'
        thresholds = {name: (band, bank.quantiles(scores_R, band)) for name, band in FIFTHS.items()}
    bands = [
        Band(name, band, band_by, low, high, score.in_band(scores_R, (low, high)).mean())
        for name, (band, (low, high)) in thresholds.items()
    ]
    # Where many rules score alike, some fifths hold none: training on them would find no rule.
    return [band for band in bands if band.share > 0 or band_by == 'score']


def nearest(bands: Sequence[Band], score: float) -> Band:
    """The band that holds a score, else the nearest one, among those with rules; the upper one on an edge."""
    filled = [band for band in bands if band.share > 0]
    # Distance first; on an edge two bands have distance 0.
    return min(filled, key=lambda band: (max(band.low - score, score - band.high, 0.0), -band.low))


def paper_shares(scores: np.ndarray) -> dict[str, float]:
    """The shares of scores in the paper's bands."""
    # Open at both ends, so that the shares sum to 1.
    edges = [-np.inf, *(low for low, _ in PAPER_BANDS.values() if low), np.inf]
    shares = np.histogram(scores, edges)[0] / len(scores)
    return {f'share_{name}': share for name, share in zip(PAPER_BANDS, shares, strict=True)}


def training_arguments(args: argparse.Namespace, band: Band) -> str:
    """The arguments that train on a band; they override a band that the given ones name."""
    changes = [*args.changes, ('data.band', str(band.band)), ('data.band_by', band.band_by)]
    return shlex.join([f'--config={args.config}', *(f'--config.{field}={text}' for field, text in changes)])


def report(record: Mapping[str, Any]) -> str:
    """A table and a proposal in words for each text of a plain record."""
    parts = []
    for name, text in record['texts'].items():
        band, score, below = record['bands'][text['band']], text['settings']['bytes']['score'], text['rules_below']
        parts += [
            output.table({'rules': record['rules']} | text['settings']),
            f'{name}: band {band["name"]}, scores {tables.number(band["low"])} to {tables.number(band["high"])}\n'
            f'  {text["arguments"]}\n'
            f'  In bytes, the median window has the score {score:.3f}, above {100 * below:.0f} % of rules.',
        ]
    return '\n\n'.join(parts) + NOTE
