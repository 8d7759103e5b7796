"""How complex a text is on the scale of the automata's scores: gzip ratios that can be compared, and some that can't.

An automaton's score is the ratio of some hundred patch tokens as integers of fixed width. What it can be at all depends
on the compressor's header, on the width, and on how many tokens there are to choose from: 360 int32 tokens have 0.022
where they are constant and 0.67 where they are drawn from 10,000 alike, but no more than 0.36 where they are drawn from
the 87 characters of source code. So the ratio of a text means nothing on that scale until both ends are known. The
footing on which a proposal rests is therefore: as many of the text's tokens as make a score, as integers of the same
width, and where their ratio lies between a constant stream's (position 0) and a uniform one's over the text's own
alphabet (position 1). The automaton's score of the same position is the text's score. A stream without any structure
then lands at the upper end and a constant one at the lower, whatever the alphabet. Between the ends the position
remains a convention: compressed sizes of different alphabets have no common unit.

Tokens are the text's bytes, or, where a tokenizer is given, its tokens, which are what a language model reads.
"""

import collections
import dataclasses
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from tokenizers import Tokenizer

from nca_jax.data import raw
from nca_jax.data.raw import RawCorpus
from nca_jax.errors import UserError, check
from nca_jax.nca import complexity
from nca_jax.nca.complexity import ComplexityConfig
from nca_jax.nca.config import NCAConfig

MAPPINGS = {
    'bytes': 'every byte is a token: as many as an automaton is scored on, widened to integers as its tokens are',
    'tokens': 'the tokens of --tokenizer, which a language model reads: as many, and as wide, as an automaton is '
    'scored on',
    'raw': 'bytes as they are, as many as an automaton is scored on after widening; for reference',
    'long': 'up to 1 MiB of bytes as they are, where repeats far apart count too; for reference, since the paper seems '
    'to have compressed whole corpora (an assumption of ours)',
}
LEAST_WINDOWS = 10
LONG_BYTES, LONG_WINDOWS = 2**20, 16
COVERED = 0.999  # of the tokens: the alphabet leaves out strays, which come and go with the windows
DRAWS, TOKENS_DRAWN = 64, 100_000  # of uniform streams, whose ratios vary less the longer they are
BYTES_READ_PER_TOKEN = 8  # at first; where they don't suffice, twice as many


@dataclasses.dataclass(frozen=True)
class Ends:
    """What a measure gives on average for constant streams and for uniform ones, from `alphabet` different tokens."""

    alphabet: int
    floor: float
    ceiling: float

    def position(self, ratios: np.ndarray) -> np.ndarray:
        return (ratios - self.floor) / (self.ceiling - self.floor)

    def ratio(self, positions: np.ndarray) -> np.ndarray:
        return self.floor + positions * (self.ceiling - self.floor)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One text on one footing: the ratios of W windows of `tokens` integers each, and their scale."""

    tokens: int
    bytes_per_token: int
    ratios_W: np.ndarray
    ends: Ends


def main_footing(tokenizer: Tokenizer | None) -> str:
    """The one on which a proposal rests."""
    return 'bytes' if tokenizer is None else 'tokens'


def scored_tokens(config: NCAConfig) -> int:
    """Tokens that a score is made of: whole grids without their two delimiters (360 in the paper)."""
    return config.complexity.frames * (config.tokens_per_grid - 2)


def automata_ends(config: NCAConfig, seed: int) -> Ends:
    """The scale of the automata's scores: their alphabet is all patches that there are."""
    return measure_ends(config.complexity, scored_tokens(config), np.arange(config.vocab.start), seed)


def measure_ends(config: ComplexityConfig, tokens: int, alphabet_V: np.ndarray, seed: int) -> Ends:
    """The ends for streams of so many tokens from an alphabet, of which the very numbers matter: a compressor sees
    their bytes. Raises FieldError where the ends don't differ, as for gzip at level 0."""
    generator = np.random.default_rng([seed, zlib.crc32(b'uniform')])
    draws = max(2, min(DRAWS, TOKENS_DRAWN // tokens))
    two = alphabet_V if len(alphabet_V) > 1 else np.append(alphabet_V, alphabet_V ^ 1)
    uniform = [complexity.ratio(config, generator.choice(two, tokens)) for _ in range(draws)]
    constant = [complexity.ratio(config, np.full(tokens, token)) for token in generator.choice(alphabet_V, draws)]
    floor, ceiling = float(np.mean(constant)), float(np.mean(uniform))
    check(ceiling > 1.01 * floor, 'config.data.complexity.level', config.level, 'must compress a constant stream')
    return Ends(len(alphabet_V), floor, ceiling)


def measure(
    config: NCAConfig,
    corpus: RawCorpus,
    count: int,
    seed: int,
    tokenizer: Tokenizer | None,
    progress: Callable[[float], None],
) -> dict[str, Measured]:
    """The corpus on every footing, the main one first, each by `count` windows or as many as it has.

    `progress` is told the share that is done. Raises UserError for a corpus of less than LEAST_WINDOWS windows.
    """
    scored, tokens = config.complexity, scored_tokens(config)
    plain = dataclasses.replace(scored, bytes_per_token=1)
    wide = tokens * scored.bytes_per_token
    if corpus.size < LEAST_WINDOWS * wide:
        least = f'{LEAST_WINDOWS * wide:,} for {LEAST_WINDOWS} windows'
        raise UserError(f'--text {corpus.name}: too small, {corpus.size:,} bytes where it takes {least}')

    def byte_windows(length: int, most: int) -> Iterator[np.ndarray]:
        for start in raw.starts(corpus, length, most, seed):
            yield np.frombuffer(corpus.read(start, start + length), np.uint8)

    long = min(LONG_BYTES, corpus.size)
    cuts = {
        'bytes': (scored, tokens, byte_windows(tokens, count)),
        'raw': (plain, wide, byte_windows(wide, count)),
        'long': (plain, long, byte_windows(long, LONG_WINDOWS)),
    }
    if tokenizer is not None:
        cuts = {'tokens': (scored, tokens, token_windows(corpus, tokenizer, tokens, count, seed))} | cuts
    found = {}
    for number, (name, (how, length, windows)) in enumerate(cuts.items()):
        ratios, counts = [], collections.Counter()
        for tokens_L in windows:
            ratios.append(complexity.ratio(how, tokens_L))
            counts.update(dict(zip(*np.unique(tokens_L, return_counts=True), strict=True)))
            progress((number + len(ratios) / (LONG_WINDOWS if name == 'long' else count)) / len(cuts))
        if len(ratios) < LEAST_WINDOWS and name == 'tokens':
            raise UserError(f'--text {corpus.name}: too small, {len(ratios)} windows of {tokens} tokens')
        ends = measure_ends(how, length, covering(counts), seed)
        progress((number + 1) / len(cuts))
        found[name] = Measured(length, how.bytes_per_token, np.array(ratios), ends)
    return found


def covering(counts: collections.Counter[int]) -> np.ndarray:
    """The tokens, most frequent first, that make up COVERED of all."""
    kinds = counts.most_common()
    shares = np.cumsum([count for _, count in kinds]) / counts.total()
    return np.array([token for token, _ in kinds[: int(np.searchsorted(shares, COVERED)) + 1]])


def token_windows(corpus: RawCorpus, tokenizer: Tokenizer, length: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """`length` tokens from each start on, without the first and the last ones read, which may be cut.

    Bytes that aren't UTF-8 are replaced.
    """
    for start in raw.starts(corpus, BYTES_READ_PER_TOKEN * length, count, seed):
        size, tokens = BYTES_READ_PER_TOKEN * length, []
        while len(tokens) < length and size < 2 * corpus.size:
            tokens = tokenizer.encode(corpus.read(start, start + size).decode(errors='replace')).ids[1:-1]
            size *= 2
        if len(tokens) >= length:
            yield np.array(tokens[:length])
