"""Measures texts and rules on one scale and proposes a band of rules for each text."""

import argparse
import dataclasses
import functools
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tokenizers import Tokenizer

from nca_jax.config import Config
from nca_jax.data import tokenizer
from nca_jax.errors import check
from nca_jax.look import output, texts
from nca_jax.nca import bank, complexity, score
from nca_jax.nca.config import NCAConfig
from nca_jax.progress import Progress
from nca_jax.report import figures, style, tables

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
Relative ratio: 0 for constant tokens, 1 for uniform ones over the vocabulary. Score: that of automata with this
relative ratio. Shuffled: the same for tokens drawn from the text's frequencies. raw and long are for reference.
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
    data, seed = config.data, config.seed
    bpe = check_input(data, args)
    corpora = [texts.open_corpus(name, progress) for name in dict.fromkeys(args.text)]
    measured = {}
    for corpus in corpora:
        progress('texts', len(measured), len(corpora))
        measured[corpus.name] = texts.measure_text(data, corpus, args.windows, seed, bpe)
    progress('texts', len(corpora), len(corpora))
    scores_R = score.survey(data, seed, args.rules, functools.partial(progress, 'rules'))
    bands = make_bands(data, scores_R, functools.partial(progress, 'fifths'))
    # The automata's vocabulary is all patches.
    scale = texts.make_scale(data.complexity, data.scored_tokens, np.arange(data.vocab.start), seed)
    rules = texts.TextRatios(data.scored_tokens, data.complexity.bytes_per_token, scores_R, np.nan, scale)
    setting = 'bytes' if bpe is None else 'tokens'
    windows = {}
    for name, ratios in measured.items():
        windows[name] = scale.ratio(ratios[setting].scale.relative(ratios[setting].ratios_W))
    record = {
        'config': args.config,
        'spec': dataclasses.asdict(data),
        'seed': seed,
        'setting': setting,
        'rules': describe(rules) | summary(scores_R),
        'bands': [dataclasses.asdict(band) for band in bands],
        'texts': {},
    }
    for corpus in corpora:
        settings = {name: describe(ratios) for name, ratios in measured[corpus.name].items()}
        # The other settings' windows are unlike those of automata.
        for name in {'bytes', setting}:
            for prefix in ('', 'shuffled_'):
                settings[name][f'{prefix}score'] = scale.ratio(settings[name][f'{prefix}relative_ratio'])
            settings[name]['band'] = nearest(bands, settings[name]['score']).name
        settings[setting] |= summary(windows[corpus.name])
        text_score = settings[setting]['score']
        band = nearest(bands, text_score)
        record['texts'][corpus.name] = {
            'bytes': corpus.size,
            'compressed_files': corpus.compressed_files,
            'settings': settings,
            'score': text_score,
            'band': band.name,
            'rules_below': np.mean(scores_R < text_score),
            'within_rules': scores_R.min() <= text_score <= scores_R.max(),
            'arguments': training_arguments(args, band),
        }
    record = output.plain(record)
    with matplotlib.rc_context(style.settings(style.LIGHT)):
        picture = style.png(draw(scores_R, windows, record))
    return record, {'calibration.png': picture}, describe_all(record)


def check_input(data: NCAConfig, args: argparse.Namespace) -> Tokenizer | None:
    """The tokenizer if one is given. Raises UserError for what can't be measured."""
    compressors = complexity.COMPRESSED_SIZE
    allowed = f'must be one of {", ".join(compressors)}: text has no cells that could change'
    check(data.complexity.measure in compressors, 'config.data.complexity.measure', data.complexity.measure, allowed)
    for flag in ('rules', 'windows'):
        check(getattr(args, flag) >= LEAST, f'--{flag}', getattr(args, flag), f'must be at least {LEAST}')
    bpe = tokenizer.load(args.tokenizer) if args.tokenizer else None
    size, width = bpe.get_vocab_size() if bpe else 0, data.complexity.bytes_per_token
    check(size <= 256**width, 'config.data.complexity.bytes_per_token', width, f'enough for {size} tokens')
    return bpe


def has_paper_bands(config: NCAConfig) -> bool:
    """Whether the paper's thresholds apply: for its patches of ten colours, as many of them, scored as it does."""
    scored, rule = config.complexity, config.rule
    kind = rule.family, rule.colours, config.patch, scored.measure, scored.level, scored.bytes_per_token
    return (*kind, config.scored_tokens) == ('random', 10, 2, 'gzip', 9, 4, 360)


def make_bands(config: NCAConfig, scores_R: np.ndarray, progress: score.Progress) -> list[Band]:
    """The paper's bands, or the fifths of unfiltered rules as training cuts them, except empty ones."""
    if has_paper_bands(config):
        band_by, thresholds = 'score', {name: (band, band) for name, band in PAPER_BANDS.items()}
    else:
        scores_R, band_by = score.survey(config, 0, config.band_sample, progress), 'quantile'
        thresholds = {name: (band, bank.quantiles(scores_R, band)) for name, band in FIFTHS.items()}
    bands = [
        Band(name, band, band_by, low, high, complexity.in_band(scores_R, (low, high)).mean())
        for name, (band, (low, high)) in thresholds.items()
    ]
    return [band for band in bands if band.share > 0 or band_by == 'score']


def nearest(bands: Sequence[Band], score: float) -> Band:
    """The band that holds a score, else the nearest one, among those with rules; the upper one on an edge."""
    filled = [band for band in bands if band.share > 0]
    return min(filled, key=lambda band: (max(band.low - score, score - band.high, 0.0), -band.low))


def summary(scores: np.ndarray) -> dict[str, Any]:
    """The range and median of scores, and their shares in the paper's bands."""
    least, median, most = np.quantile(scores, (0, 0.5, 1))
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
        'relative_ratio': ratios.scale.relative(quartiles[1]),
        'shuffled_relative_ratio': ratios.scale.relative(ratios.shuffled),
    }


def training_arguments(args: argparse.Namespace, band: Band) -> str:
    """The arguments that train on a band; they override a band that the given ones name."""
    changes = [*args.changes, ('data.band', str(band.band)), ('data.band_by', band.band_by)]
    return shlex.join([f'--config={args.config}', *(f'--config.{field}={text}' for field, text in changes)])


def draw(scores_R: np.ndarray, windows: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Figure:
    """Histograms of the rules' scores and, below on the same axis, of the windows' scores of each text."""
    highest = max(scores_R.max(), *(scores.max() for scores in windows.values()))
    width = 0.02 if highest > 0.4 else 0.01
    edges = width * np.arange(1 + np.ceil(1.001 * highest / width))
    figure = Figure(figsize=(figures.WIDTH, 0.95 + 1.75 * (1 + len(windows))), layout='constrained')
    panels = figure.subplots(1 + len(windows), sharex=True)
    rule, bands = record['spec']['rule'], {band['name']: band for band in record['bands']}
    draw_histogram(panels[0], scores_R, edges, style.LIGHT.muted)
    panels[0].set(title=f'Rules of family {rule["family"]}, {rule["colours"]} colours', ylabel='% of rules')
    style.subtitle(panels[0], f'{len(scores_R):,} of them, before filtering; shaded: proposed bands', style.LIGHT)
    for name in {text['band'] for text in record['texts'].values()}:
        shade(panels[0], bands[name], edges, style.LIGHT.muted)
    for number, (axes, (name, scores)) in enumerate(zip(panels[1:], windows.items(), strict=True)):
        colour, text = style.ARMS[number % len(style.ARMS)], record['texts'][name]
        draw_histogram(axes, scores, edges, colour)
        # The end of a long path tells more than its beginning; a $ is no formula.
        axes.set_title(name[-90:], parse_math=False)
        axes.set(ylabel='% of windows')
        note = f'{len(scores):,} windows on the scale of the rules; dashed: their median; shaded: band {text["band"]}'
        style.subtitle(axes, note, style.LIGHT)
        axes.axvline(text['score'], color=style.LIGHT.ink, linewidth=1.2, linestyle=(0, (4, 3)))
        shade(axes, bands[text['band']], edges, colour)
    measure = f'{record["spec"]["complexity"]["measure"]} ratio'
    panels[-1].set(xlim=(0, edges[-1]), xlabel=f"{measure}; of texts: {record['setting']}, on the automata's scale")
    return figure


def draw_histogram(axes: Axes, scores: np.ndarray, edges: np.ndarray, colour: str) -> None:
    percent = np.full(len(scores), 100 / len(scores))
    axes.hist(scores, edges, weights=percent, color=colour, edgecolor=style.LIGHT.paper, linewidth=0.8)
    axes.margins(y=0.3)
    axes.grid(visible=False, axis='x')


def shade(axes: Axes, band: Mapping[str, Any], edges: np.ndarray, colour: str) -> None:
    low, high = band['low'] or 0, edges[-1] if band['high'] is None else min(band['high'], edges[-1])
    axes.axvspan(low, high, color=colour, alpha=0.18, linewidth=0, zorder=0)


def describe_all(record: Mapping[str, Any]) -> str:
    """A table and a proposal in words for each text."""
    parts = []
    for name, text in record['texts'].items():
        parts += [output.table({'rules': record['rules']} | text['settings']), propose(name, text, record)]
    return '\n\n'.join(parts) + '\n' + NOTE


def propose(name: str, text: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """The proposed band in words, with what speaks against it."""
    sentences = [f'In {record["setting"]}, the median window has the score {text["score"]:.3f},']
    if text['within_rules']:
        sentences.append(f'above {100 * text["rules_below"]:.0f} % of rules.')
    else:
        least, most = record['rules']['min'], record['rules']['max']
        sentences.append(f'OUTSIDE OF WHAT RULES SCORE ({least:.3f} to {most:.3f}): this is only the nearest band.')
    for setting, values in text['settings'].items():
        if values.get('band', text['band']) != text['band']:
            sentences.append(f'In {setting} it would be {values["band"]}.')
    if text['compressed_files']:
        sentences.append(f'{text["compressed_files"]} of its files look compressed: decompress them first.')
    [band] = [band for band in record['bands'] if band['name'] == text['band']]
    limits = f'scores {tables.number(band["low"])} to {tables.number(band["high"])}'
    words = textwrap.fill(' '.join(sentences), 118, initial_indent='  ', subsequent_indent='  ', break_on_hyphens=False)
    return f'{name}: band {band["name"]}, {limits}\n  {text["arguments"]}\n{words}'
