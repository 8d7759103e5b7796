"""Measures texts and rules on one scale and proposes a band of rules for each text.

Ratios of a text and of automata can't be compared as they are: they depend on the compressor's header, the width of a
token and the vocabulary. 360 int32 tokens have 0.022 if they are constant and 0.67 if they are drawn uniformly from
10,000 tokens, but at most 0.36 if they are drawn from the 87 characters of source code. So both are normalized.
"""

import argparse
import collections
import dataclasses
import shlex
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nca_jax import files
from nca_jax.config import Config
from nca_jax.data import documents
from nca_jax.errors import UserError, check
from nca_jax.nca import bank, score
from nca_jax.nca.config import ComplexityConfig, NCAConfig
from nca_jax.progress import Progress

PAPER_BANDS = {
    '<10': (0.0, 0.1),
    '10-20': (0.1, 0.2),
    '20-30': (0.2, 0.3),
    '30-40': (0.3, 0.4),
    '40-50': (0.4, 0.5),
    '50+': (0.5, 2.0),
}
FIFTHS = {f'q{low}-{low + 20}': (low / 100, (low + 20) / 100) for low in range(0, 100, 20)}
BUILT_IN = {'python_stdlib': documents.sources, 'python_docs': documents.docstrings}
# Fewer say nothing about a median.
MIN_WINDOWS = 10
LONG_BYTES, LONG_WINDOWS = 2**20, 16
# Share of a text's bytes that its vocabulary covers. Rare bytes come and go with the choice of windows.
COVERED = 0.999


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
    measured = {name: measure_text(data, name, args.windows, seed) for name in args.text}
    scores_R = score.survey(data, seed, args.rules, progress)
    # The automata's vocabulary is all patches.
    scale = make_scale(scored, data.scored_tokens, np.arange(data.vocab.start), seed)
    rules = Ratios(data.scored_tokens, scored.bytes_per_token, scores_R, scale)
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


@dataclasses.dataclass(frozen=True)
class Scale:
    """Mean ratios of constant streams and of uniform ones over a vocabulary of so many tokens."""

    vocabulary: int
    constant: float
    uniform: float

    def normalize(self, ratio: np.ndarray) -> np.ndarray:
        """0 for the constant ratio, 1 for the uniform one."""
        return (ratio - self.constant) / (self.uniform - self.constant)

    def ratio(self, normalized: np.ndarray) -> np.ndarray:
        """The inverse of `normalize`."""
        return self.constant + normalized * (self.uniform - self.constant)


@dataclasses.dataclass(frozen=True)
class Ratios:
    """The ratios of W windows of a text in one setting, or of W rules, and the scale they lie on."""

    # Tokens of a window.
    tokens: int
    bytes_per_token: int
    ratios_W: np.ndarray
    scale: Scale
    # The mean ratio of tokens drawn from the text's frequencies.
    shuffled: float = float('nan')

    def record(self) -> dict[str, Any]:
        """The numbers that calibration.json has of these ratios."""
        quartiles = np.quantile(self.ratios_W, (0.25, 0.5, 0.75))
        return {
            'count': len(self.ratios_W),
            'tokens': self.tokens,
            'bytes_per_token': self.bytes_per_token,
            'ratio_quartiles': quartiles,
            **dataclasses.asdict(self.scale),
            'normalized_ratio': self.scale.normalize(quartiles[1]),
            'shuffled_normalized_ratio': self.scale.normalize(self.shuffled),
        }


def read_corpus(name: str) -> np.ndarray:
    """The bytes of a corpus of BUILT_IN, of a file, or of a folder: all its files by path, except hidden ones.

    Nothing is decoded or decompressed. A file is mapped, a folder's files take memory.
    """
    if name in BUILT_IN:
        texts = [document.text.encode(errors='surrogatepass') for document in BUILT_IN[name]()]
        return np.frombuffer(b''.join(texts), np.uint8)
    root = Path(name).expanduser()
    try:
        paths = [root]
        if root.is_dir():
            # Not hidden ones: .git holds compressed copies of everything.
            paths = [path for path in files.list_files(root) if '/.' not in f'/{path.relative_to(root)}']
        # No memory maps an empty file.
        mapped = [np.memmap(path, np.uint8, 'r') for path in paths if path.is_file() and path.stat().st_size]
    except OSError as error:
        raise UserError(f'--text {name}: {error.filename}: {error.strerror}') from None
    allowed = f'must be a file or folder that holds at least one byte, or one of {", ".join(BUILT_IN)}'
    check(bool(mapped), '--text', name, allowed)
    return np.concatenate(mapped) if len(mapped) > 1 else mapped[0]


def measure_text(config: NCAConfig, name: str, windows: int, seed: int) -> dict[str, Ratios]:
    """A corpus in each setting (see `calibrate`), by `windows` windows or as many as it has.

    Raises UserError for a corpus that can't be read, or has less than MIN_WINDOWS windows.
    """
    corpus, scored, tokens = read_corpus(name), config.complexity, config.scored_tokens
    width = tokens * scored.bytes_per_token
    needed = MIN_WINDOWS * width
    if len(corpus) < needed:
        raise UserError(f'--text {name}: too small, {len(corpus):,} bytes where {MIN_WINDOWS} windows take {needed:,}')
    # As a compressor of files sees a text.
    one_byte = dataclasses.replace(scored, bytes_per_token=1)
    return {
        'bytes': measure_windows(corpus, scored, tokens, windows, seed),
        'raw': measure_windows(corpus, one_byte, width, windows, seed),
        'long': measure_windows(corpus, one_byte, min(LONG_BYTES, len(corpus)), LONG_WINDOWS, seed),
    }


def measure_windows(corpus: np.ndarray, config: ComplexityConfig, tokens: int, windows: int, seed: int) -> Ratios:
    """The ratios of at most `windows` windows of `tokens` bytes, each byte a token."""
    cuts_WxL = [corpus[start : start + tokens] for start in window_starts(len(corpus), tokens, windows, seed)]
    ratios_W = np.array([score.ratio(config, tokens_L) for tokens_L in cuts_WxL])
    # In the order in which they first occur, which breaks ties and decides what the random streams draw.
    counts = collections.Counter()
    for tokens_L in cuts_WxL:
        counts.update(dict(zip(*np.unique(tokens_L, return_counts=True), strict=True)))
    occurring_V, times_V = np.array(list(counts.items())).T
    generator = np.random.default_rng([seed, zlib.crc32(b'shuffled')])
    shuffled = drawn_ratio(config, tokens, generator, occurring_V, times_V / times_V.sum())
    scale = make_scale(config, tokens, covering(counts), seed)
    return Ratios(tokens, config.bytes_per_token, ratios_W, scale, shuffled)


def window_starts(size: int, length: int, count: int, seed: int) -> list[int]:
    """Where `count` disjoint windows of `length` bytes begin: a seeded choice, or all windows if there are fewer."""
    total = size // length
    generator = np.random.default_rng([seed, zlib.crc32(b'windows')])
    return (generator.choice(total, min(count, total), replace=False) * length).tolist()


def covering(counts: collections.Counter[int]) -> np.ndarray:
    """The most frequent tokens that make up COVERED of all, the most frequent first."""
    tokens, times = zip(*counts.most_common(), strict=True)
    shares = np.cumsum(times) / counts.total()
    return np.array(tokens[: int(np.searchsorted(shares, COVERED)) + 1])


def make_scale(config: ComplexityConfig, tokens: int, vocabulary_V: np.ndarray, seed: int) -> Scale:
    """The scale for streams of `tokens` tokens. The tokens' very numbers matter, since a compressor sees their bytes.

    Raises FieldError if the two ratios don't differ, as for gzip at level 0.
    """
    generator = np.random.default_rng([seed, zlib.crc32(b'uniform')])
    # Uniform tokens take two at least: a vocabulary of one gets a neighbour.
    drawn_from = vocabulary_V if len(vocabulary_V) > 1 else np.append(vocabulary_V, vocabulary_V ^ 1)
    uniform = drawn_ratio(config, tokens, generator, drawn_from)
    constants = generator.choice(vocabulary_V, streams(tokens))
    constant = float(np.mean([score.ratio(config, np.full(tokens, token)) for token in constants]))
    differ = uniform > 1.01 * constant
    check(differ, 'config.data.complexity.level', config.level, 'must compress a constant stream')
    return Scale(len(vocabulary_V), constant, uniform)


def drawn_ratio(
    config: ComplexityConfig,
    tokens: int,
    generator: np.random.Generator,
    vocabulary_V: np.ndarray,
    shares_V: np.ndarray | None = None,
) -> float:
    """The mean ratio of streams of tokens drawn independently, with these shares or uniformly."""
    drawn = (generator.choice(vocabulary_V, tokens, p=shares_V) for _ in range(streams(tokens)))
    return float(np.mean([score.ratio(config, tokens_L) for tokens_L in drawn]))


def streams(tokens: int) -> int:
    """The number of random streams that a reference ratio averages."""
    # Fewer if they are long, since those vary less.
    return max(2, min(64, 100_000 // tokens))
