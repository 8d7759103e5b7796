"""Text as a stream of Batches: windows of token shards, in a seeded order or spread evenly for evaluation."""

import bisect
import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from nca_jax import files
from nca_jax.batch import Batch, Vocab, check_vocab
from nca_jax.data import tokenizer as bpe
from nca_jax.data.streams import make_read_stream, shuffled
from nca_jax.errors import UserError, check

# Describes the shards of a folder. It is written last, so a folder with it is whole.
INDEX = 'index.json'
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


class PreparedText:
    """Token stores of both splits and their tokenizer, as `preparation` left them in a folder."""

    def __init__(self, folder: Path):
        """Raises UserError if a file is damaged."""
        index = files.read_json(folder / INDEX)
        self.folder = folder
        self.train = TokenStore(folder, 'train', **index['splits']['train'])
        self.valid = TokenStore(folder, 'valid', **index['splits']['valid'])
        self.tokenizer = bpe.load(str(folder / bpe.FILE))
        self.vocab = Vocab(self.tokenizer.get_vocab_size())
        self.token_bytes_V = bpe.token_bytes(self.tokenizer)
        # Hash of the texts and the tokenizer, free of paths.
        self.identity, self.tokenizer_identity = index['identity'], index['tokenizer']
        # Documents `dropped` as duplicates, `shared` by both sides of a published split, with U+FFFD (`replaced`).
        self.documents = index['documents']


def make_stream(
    prepared: PreparedText, seed: int, batch: int, length: int, sharding: jax.sharding.NamedSharding
) -> Callable[[int], Batch]:
    """`stream(step)`: the step-th Batch of training windows, each once an epoch, in an order of (seed, epoch)."""
    store = prepared.train
    # The tail that fills no window is left out.
    total = (len(store) - 1) // length
    if total < 1:
        raise UserError(f'train has {len(store)} tokens, fewer than a window of {length + 1}')

    def row_of(number: int) -> tuple[np.ndarray, np.ndarray]:
        # The order depends on the seed, so that runs of several seeds see the text in different orders.
        _, window = shuffled(number, total, f'{seed}/text/train')
        return _row(store, window, length)

    return make_read_stream(row_of, batch, length, sharding)


def make_eval_stream(
    prepared: PreparedText, batch: int, length: int, batches: int, sharding: jax.sharding.NamedSharding
) -> tuple[Callable[[int], Batch], int]:
    """`stream(step)` for step in range(batches), of windows spread evenly over validation, and their targets' bytes.

    The bytes are exact: bits per byte = summed nats / ln 2 / bytes. The end of a text costs nats and counts 0 bytes.
    """
    store, windows = prepared.valid, batch * batches
    total = (len(store) - 1) // length
    if total < windows:
        raise UserError(f'valid split: {total} windows of {length} tokens, evaluation wants {windows}')

    def row_of(number: int) -> tuple[np.ndarray, np.ndarray]:
        # Spread, since neighbouring windows are of one document, and a corpus may keep its documents in order.
        return _row(store, number * total // windows, length)

    sizes = (prepared.token_bytes_V[row_of(number)[0][1:]].sum(dtype=np.int64) for number in range(windows))
    return make_read_stream(row_of, batch, length, sharding), int(sum(sizes))


def _row(store: TokenStore, window: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """length + 1 tokens at stride `length`, so that every token but the first is a target once. All weights are 1."""
    return store.read(window * length, (window + 1) * length + 1), np.ones(length + 1, np.float32)
