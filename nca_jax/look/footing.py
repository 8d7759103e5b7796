"""How complex a text is on the scale of the automata's scores.

An automaton's score is the ratio of some hundred patch tokens as integers of fixed width. What it can be at all depends
on the compressor's header, on the width, and on how many kinds of tokens there are: 360 int32 tokens have 0.022 where
they are constant and 0.67 where they are drawn from 10,000 alike, but no more than 0.36 where they are drawn from the
87 characters of source code. So as many of a text's tokens as make a score are compressed as integers of the same
width; the position is where their ratio lies between a constant stream's (0) and a uniform one's over the text's kinds
of tokens (1), and the text's score is that of automata at the same position.

The position is a convention, and it depends on the alphabet, since sizes of different alphabets have no common unit:
one process, which repeats the token before with probability 0.6, scores .489 with 2 kinds of tokens, .432 with 26, .386
with 88 and .340 with 10,000. Nor is 1 the place of all that has no structure but of uniform tokens alone. So each text
is told with the position of tokens drawn from its own frequencies, as if it were shuffled.
"""

import collections
import dataclasses
import zlib
from collections.abc import Callable

import numpy as np
from tokenizers import Tokenizer

from nca_jax.errors import UserError, check
from nca_jax.look import raw
from nca_jax.look.raw import RawCorpus
from nca_jax.nca import complexity
from nca_jax.nca.complexity import ComplexityConfig
from nca_jax.nca.config import NCAConfig

SCORED = ('tokens', 'bytes')  # footings that have a score; the others are for reference
LEAST_WINDOWS = 10
LONG_BYTES, LONG_WINDOWS = 2**20, 16
COVERED = 0.999  # of the bytes: the alphabet leaves out strays, which come and go with the windows
DRAWS, TOKENS_DRAWN = 64, 100_000  # of random streams, whose ratios vary less the longer they are
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
    """One text on one footing: the ratios of W windows of `tokens` integers each, that of tokens drawn from its
    frequencies, on average, and the scale of both."""

    tokens: int
    bytes_per_token: int
    ratios_W: np.ndarray
    shuffled: float
    ends: Ends


def main_footing(tokenizer: Tokenizer | None) -> str:
    """The one on which a proposal rests."""
    return 'bytes' if tokenizer is None else 'tokens'


def automata_ends(config: NCAConfig, seed: int) -> Ends:
    """The scale of the automata's scores: their alphabet is all patches that there are."""
    return measure_ends(config.complexity, config.scored_tokens, np.arange(config.vocab.start), seed)


def measure_ends(config: ComplexityConfig, tokens: int, alphabet_V: np.ndarray, seed: int) -> Ends:
    """The ends for streams of so many tokens from an alphabet, of which the very numbers matter: a compressor sees
    their bytes. Raises FieldError where the ends don't differ, as for gzip at level 0."""
    generator = np.random.default_rng([seed, zlib.crc32(b'uniform')])
    two = alphabet_V if len(alphabet_V) > 1 else np.append(alphabet_V, alphabet_V ^ 1)
    uniform = [complexity.ratio(config, generator.choice(two, tokens)) for _ in range(draws(tokens))]
    chosen = generator.choice(alphabet_V, draws(tokens))
    floor = float(np.mean([complexity.ratio(config, np.full(tokens, token)) for token in chosen]))
    ceiling = float(np.mean(uniform))
    check(ceiling > 1.01 * floor, 'config.data.complexity.level', config.level, 'must compress a constant stream')
    return Ends(len(alphabet_V), floor, ceiling)


def shuffled(config: ComplexityConfig, tokens: int, counts: collections.Counter[int], seed: int) -> float:
    """The mean ratio of streams with these frequencies and no order."""
    generator = np.random.default_rng([seed, zlib.crc32(b'shuffled')])
    kinds, times = np.array(list(counts.items())).T
    streams = (generator.choice(kinds, tokens, p=times / times.sum()) for _ in range(draws(tokens)))
    return float(np.mean([complexity.ratio(config, tokens_L) for tokens_L in streams]))


def draws(tokens: int) -> int:
    return max(2, min(DRAWS, TOKENS_DRAWN // tokens))


def measure(
    config: NCAConfig,
    corpus: RawCorpus,
    count: int,
    seed: int,
    tokenizer: Tokenizer | None,
    progress: Callable[[int, int], None],
) -> dict[str, Measured]:
    """The corpus on every footing, the main one first, each by `count` windows or as many as it has.

    The alphabet is that of the bytes in the windows, and of a tokenizer its whole vocabulary. `progress(windows,
    total)` is told. Raises UserError for a corpus of less than LEAST_WINDOWS windows.
    """
    scored, tokens = config.complexity, config.scored_tokens
    plain = dataclasses.replace(scored, bytes_per_token=1)
    wide = tokens * scored.bytes_per_token
    if corpus.size < LEAST_WINDOWS * wide:
        least = f'{LEAST_WINDOWS * wide:,} for {LEAST_WINDOWS} windows'
        raise UserError(f'--text {corpus.name}: too small, {corpus.size:,} bytes where it takes {least}')
    long = min(LONG_BYTES, corpus.size)
    # How windows are compressed, their tokens, the bytes from one to the next, and how many there may be.
    cuts = {
        'bytes': (scored, tokens, tokens, count),
        'raw': (plain, wide, wide, count),
        'long': (plain, long, long, LONG_WINDOWS),
    }
    if tokenizer is not None:
        cuts = {'tokens': (scored, tokens, BYTES_READ_PER_TOKEN * tokens, count)} | cuts
    total = sum(min(most, corpus.size // apart) for _, _, apart, most in cuts.values())
    done, found = 0, {}
    progress(done, total)
    for name, (how, length, apart, most) in cuts.items():
        ratios, counts = [], collections.Counter()
        for start in raw.starts(corpus, apart, most, seed):
            if name == 'tokens':
                tokens_L = read_tokens(corpus, tokenizer, start, length)
            else:
                tokens_L = np.frombuffer(corpus.read(start, start + length), np.uint8)
            if len(tokens_L) == length:
                ratios.append(complexity.ratio(how, tokens_L))
                counts.update(dict(zip(*np.unique(tokens_L, return_counts=True), strict=True)))
            done += 1
            progress(done, total)
        if len(ratios) < LEAST_WINDOWS and name == 'tokens':
            raise UserError(f'--text {corpus.name}: too small, {len(ratios)} windows of {tokens} tokens')
        alphabet_V = np.arange(tokenizer.get_vocab_size()) if name == 'tokens' else covering(counts)
        ends = measure_ends(how, length, alphabet_V, seed)
        ratios_W = np.array(ratios)
        found[name] = Measured(length, how.bytes_per_token, ratios_W, shuffled(how, length, counts, seed), ends)
    return found


def covering(counts: collections.Counter[int]) -> np.ndarray:
    """The tokens, most frequent first, that make up COVERED of all."""
    kinds = counts.most_common()
    shares = np.cumsum([count for _, count in kinds]) / counts.total()
    return np.array([token for token, _ in kinds[: int(np.searchsorted(shares, COVERED)) + 1]])


def read_tokens(corpus: RawCorpus, tokenizer: Tokenizer, start: int, length: int) -> np.ndarray:
    """`length` tokens from a byte on, or fewer at the corpus's end, without the first and last ones, which may be cut.

    Bytes that aren't UTF-8 are replaced.
    """
    size, tokens = BYTES_READ_PER_TOKEN * length, []
    while len(tokens) < length and size < 2 * corpus.size:
        tokens = tokenizer.encode(corpus.read(start, start + size).decode(errors='replace')).ids[1:-1]
        size *= 2
    return np.array(tokens[:length])
