"""Text as a stream of Batches: windows of token shards, in a seeded order or spread evenly for evaluation."""

import bisect
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from nca_jax.batch import Batch, Vocab, check_vocab
from nca_jax.data import tokenizer as bpe
from nca_jax.data.streams import make_read_stream, shuffled
from nca_jax.errors import UserError, check

# Every byte and the end of text.
LEAST_VOCAB = 257


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Where text comes from and how it becomes tokens."""

    # python_stdlib, python_docs, text_files, openwebtext, openwebmath, codeparrot, c4 or tfds:NAME.
    corpus: str
    # The user's file, folder or glob; for tfds:NAME the folder where TFDS has it; '' for python_*.
    path: str
    # The field with the text, in JSON lines and TFDS examples; '' where none is needed or the corpus fixes it.
    field: str
    # A tokenizer.json, or '' to train one on the training split.
    tokenizer: str
    # Tokens of the trained tokenizer, 0 where a file is given.
    vocab_size: int
    # Share of the documents that validate, unless the corpus has a published division.
    valid_share: float
    # A folder that runs share, or '' for the run's own.
    cache: str

    def __post_init__(self):
        check(0 < self.valid_share < 1, 'valid_share', self.valid_share, 'must be between 0 and 1')
        size = self.vocab_size
        check_vocab(size, 'vocab_size', size)
        if self.tokenizer:
            check(size == 0, 'vocab_size', size, 'must be 0 where a tokenizer is given, which has its own')
        else:
            check(size >= LEAST_VOCAB, 'vocab_size', size, f'must be at least {LEAST_VOCAB}, or name a tokenizer')


class TokenStore:
    """The tokens of one side as one long array over all its shards, read without loading them."""

    def __init__(self, folder: Path, side: str, shards: int, tokens: int, documents: int, bytes: int):
        """Raises UserError for a missing or damaged shard."""
        self.documents, self.bytes = documents, bytes
        self._shards = [open_shard(shard_file(folder, side, number)) for number in range(shards)]
        self._starts = np.cumsum([0, *map(len, self._shards)]).tolist()
        # Shards of another preparation would make other batches.
        if len(self) != tokens:
            raise UserError(f'{folder}: {side} has {len(self)} of {tokens} tokens; delete it to make it anew')

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """int32 tokens [start, stop)."""
        starts = self._starts
        # A window may cross the border of shards.
        touched = range(bisect.bisect_right(starts, start) - 1, bisect.bisect_left(starts, stop))
        pieces = [self._shards[i][max(start - starts[i], 0) : stop - starts[i]] for i in touched]
        return np.concatenate(pieces, dtype=np.int32)


def shard_file(folder: Path, side: str, number: int) -> Path:
    return folder / f'{side}-{number:05d}.npy'


def open_shard(file: Path) -> np.ndarray:
    """The memory-mapped tokens of a shard. Raises UserError if it can't be read."""
    try:
        return np.load(file, mmap_mode='r')
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f'{file}: not a readable shard ({error}); delete {file.parent} to make it anew') from None


@dataclasses.dataclass(frozen=True)
class PreparedText:
    """Token stores of both splits and their tokenizer."""

    folder: Path
    train: TokenStore
    valid: TokenStore
    tokenizer: Tokenizer
    # Hash of the texts and the tokenizer, free of paths.
    identity: str
    tokenizer_identity: str
    # Documents `dropped` as duplicates, `shared` by both sides of a published split, with U+FFFD (`replaced`).
    documents: dict[str, int]

    @property
    def vocab(self) -> Vocab:
        return Vocab(self.tokenizer.get_vocab_size())

    @functools.cached_property
    def token_bytes_V(self) -> np.ndarray:  # noqa: N802
        return bpe.token_bytes(self.tokenizer)


class EvalRange(NamedTuple):
    """`stream(step)` for step in range(steps) scores a fixed choice of windows once each."""

    stream: Callable[[int], Batch]
    steps: int
    # UTF-8 bytes of the scored targets, exact: bits per byte = summed nats / ln 2 / bytes. The end of a text costs
    # nats and counts 0 bytes.
    bytes: int


def _window(store: TokenStore, number: int, length: int) -> np.ndarray:
    """Window `number` of length + 1 tokens at stride `length`: every token but the first is a target once."""
    return store.read(number * length, (number + 1) * length + 1)


def make_stream(
    prepared: PreparedText, seed: int, split: str, batch: int, length: int, sharding: jax.sharding.NamedSharding
) -> Callable[[int], Batch]:
    """`stream(step)`: the step-th Batch of windows, each once an epoch, in an order of (seed, epoch). All weights 1."""
    store = getattr(prepared, split)
    # The tail that fills no window is left out.
    total = (len(store) - 1) // length
    if total < 1:
        raise UserError(f'{split} has {len(store)} tokens, fewer than a window of {length + 1}')

    def row_of(number: int) -> tuple[np.ndarray, np.ndarray]:
        # The order depends on the seed, so that runs of several seeds see the text in different orders.
        _, window = shuffled(number, total, f'{seed}/text/{split}')
        return _window(store, window, length), np.ones(length + 1, np.float32)

    return make_read_stream(row_of, batch, length, sharding)


def make_eval_range(
    prepared: PreparedText, split: str, batch: int, length: int, windows: int, sharding: jax.sharding.NamedSharding
) -> EvalRange:
    """`windows` windows spread evenly over a split; the last batch is filled with rows of weight 0."""
    store = getattr(prepared, split)
    total = (len(store) - 1) // length
    if total < windows:
        raise UserError(f'{split} split: {total} windows of {length} tokens, evaluation wants {windows}')
    # Spread, since neighbouring windows are of one document, and a corpus may keep its documents in order.
    chosen_W = np.arange(windows) * total // windows

    def row_of(number: int) -> tuple[np.ndarray, np.ndarray]:
        # Rows that only fill the last batch read any window.
        scored = number < windows
        window = int(chosen_W[number]) if scored else 0
        return _window(store, window, length), np.full(length + 1, scored, np.float32)

    targets = (_window(store, window, length)[1:] for window in chosen_W.tolist())
    size = sum(int(prepared.token_bytes_V[tokens_L].sum(dtype=np.int64)) for tokens_L in targets)
    return EvalRange(make_read_stream(row_of, batch, length, sharding), -(-windows // batch), size)
