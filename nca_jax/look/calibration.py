"""Measures texts and rules on one scale and proposes a band of rules for each text."""

import argparse
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nca_jax.config import Config
from nca_jax.data import tokenizer
from nca_jax.errors import check
from nca_jax.look import output, pictures, texts
from nca_jax.nca import bank, score
from nca_jax.nca.config import NCAConfig
from nca_jax.progress import Progress
from nca_jax.report import tables

# The least number of rules and windows that a histogram needs.
LEAST = 50
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
Normalized ratio: 0 for constant tokens, 1 for uniform ones over the vocabulary. Score: that of automata with this
normalized ratio. Shuffled: the same for tokens drawn from the text's frequencies. raw and long are for reference.
Shares, min, median and max are of scores."""


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


def calibrate(
    config: Config, args: argparse.Namespace, progress: Progress
) -> tuple[dict[str, Any], dict[str, bytes], str]:
    """The record of all measurements, the figure, and both as text."""
    data, seed, scored = config.data, config.seed, config.data.complexity
    compressors = score.COMPRESSED_SIZE
    allowed = f'must be one of {", ".join(compressors)}: text has no cells that could change'
    check(scored.measure in compressors, 'config.data.complexity.measure', scored.measure, allowed)
    for flag in ('rules', 'windows'):
        check(getattr(args, flag) >= LEAST, f'--{flag}', getattr(args, flag), f'must be at least {LEAST}')
    bpe, width = tokenizer.load(args.tokenizer) if args.tokenizer else None, scored.bytes_per_token
    size = bpe.get_vocab_size() if bpe else 0
    check(size <= 256**width, 'config.data.complexity.bytes_per_token', width, f'enough for {size} tokens')
    # The setting that decides; the other windows are unlike those of automata.
    setting = 'bytes' if bpe is None else 'tokens'
    measured = {}
    for name in args.text:
        progress('texts', len(measured), len(args.text))
        measured[name] = texts.measure_text(data, name, args.windows, seed, bpe)
    progress('texts', len(args.text), len(args.text))
    scores_R = score.survey(data, seed, args.rules, progress)
    # The automata's vocabulary is all patches.
    scale = texts.make_scale(scored, data.scored_tokens, np.arange(data.vocab.start), seed)
    rules = texts.TextRatios(data.scored_tokens, width, scores_R, np.nan, scale)
    bands = make_bands(data, scores_R, lambda _, done, total: progress('fifths', done, total))
    windows, described = {}, {}
    for name, ratios in measured.items():
        settings = {kind: describe(of_kind) for kind, of_kind in ratios.items()}
        for kind in {'bytes', setting}:
            for prefix in ('', 'shuffled_'):
                settings[kind][f'{prefix}score'] = scale.ratio(settings[kind][f'{prefix}normalized_ratio'])
            settings[kind]['band'] = nearest(bands, settings[kind]['score']).name
        chosen = settings[setting]
        windows[name] = scale.ratio(ratios[setting].scale.normalize(ratios[setting].ratios_W))
        described[name] = {
            'settings': settings,
            'score': chosen['score'],
            'band': chosen['band'],
            'rules_below': np.mean(scores_R < chosen['score']),
            'within_rules': scores_R.min() <= chosen['score'] <= scores_R.max(),
            'arguments': training_arguments(args, nearest(bands, chosen['score'])),
        }
        chosen |= summary(windows[name])
    record = {
        'config': args.config,
        'spec': dataclasses.asdict(data),
        'seed': seed,
        'setting': setting,
        'rules': describe(rules) | summary(scores_R),
        'bands': [dataclasses.asdict(band) for band in bands],
        'texts': described,
    }
    record = output.plain(record)
    return record, {'calibration.png': pictures.score_histograms(scores_R, windows, record)}, report(record)


def has_paper_bands(config: NCAConfig) -> bool:
    """Whether the paper's thresholds apply: for its patches of ten colours, as many of them, scored as it does."""
    scored, rule = config.complexity, config.rule
    # Whatever changes a score, or how scores are distributed.
    kind = rule.family, rule.colours, config.patch, scored.measure, scored.level, scored.bytes_per_token
    return (*kind, config.scored_tokens) == ('random', 10, 2, 'gzip', 9, 4, 360)


def make_bands(config: NCAConfig, scores_R: np.ndarray, progress: Progress) -> list[Band]:
    """The paper's bands, or the fifths of unfiltered rules as training cuts them, except empty ones."""
    if has_paper_bands(config):
        band_by, thresholds = 'score', {name: (band, band) for name, band in PAPER_BANDS.items()}
    else:
        # Seed 0, as `bank` surveys: the thresholds must be those of training, whatever this run's seed.
        scores_R, band_by = score.survey(config, 0, config.band_sample, progress), 'quantile'
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


def summary(scores: np.ndarray) -> dict[str, Any]:
    """The range and median of scores, and their shares in the paper's bands."""
    least, median, most = np.quantile(scores, (0, 0.5, 1))
    # Open at both ends, so that the shares sum to 1.
    edges = [-np.inf, *(low for low, _ in PAPER_BANDS.values() if low), np.inf]
    shares = dict(zip(PAPER_BANDS, np.histogram(scores, edges)[0] / len(scores), strict=True))
    return {'min': least, 'median': median, 'max': most, 'shares': shares}


def describe(ratios: texts.TextRatios) -> dict[str, Any]:
    """The record of a text in one setting, or of the rules."""
    quartiles = np.quantile(ratios.ratios_W, (0.25, 0.5, 0.75))
    return {
        'count': len(ratios.ratios_W),
        'tokens': ratios.tokens,
        'bytes_per_token': ratios.bytes_per_token,
        'ratio_quartiles': quartiles,
        **dataclasses.asdict(ratios.scale),
        'normalized_ratio': ratios.scale.normalize(quartiles[1]),
        'shuffled_normalized_ratio': ratios.scale.normalize(ratios.shuffled),
    }


def training_arguments(args: argparse.Namespace, band: Band) -> str:
    """The arguments that train on a band; they override a band that the given ones name."""
    changes = [*args.changes, ('data.band', str(band.band)), ('data.band_by', band.band_by)]
    return shlex.join([f'--config={args.config}', *(f'--config.{field}={text}' for field, text in changes)])


def report(record: Mapping[str, Any]) -> str:
    """A table and a proposal in words for each text."""
    parts, rules = [], record['rules']
    for name, text in record['texts'].items():
        [band] = [band for band in record['bands'] if band['name'] == text['band']]
        sentence = f'In {record["setting"]}, the median window has the score {text["score"]:.3f}, '
        if text['within_rules']:
            sentence += f'above {100 * text["rules_below"]:.0f} % of rules.'
        else:
            sentence += (
                f'OUTSIDE OF WHAT RULES SCORE ({rules["min"]:.3f} to {rules["max"]:.3f}): the band is the nearest.'
            )
        limits = f'scores {tables.number(band["low"])} to {tables.number(band["high"])}'
        proposal = f'{name}: band {band["name"]}, {limits}\n  {text["arguments"]}\n  {sentence}'
        parts += [output.table({'rules': rules} | text['settings']), proposal]
    return '\n\n'.join(parts) + '\n' + NOTE
