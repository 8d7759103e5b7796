"""Text as a stream of Batches: windows of the token store in a seeded order that no device or host can change."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer

from nca_jax.batch import Batch, Vocab
from nca_jax.data.placing import place_rows, shuffled
from nca_jax.data.shards import TokenStore
from nca_jax.errors import UserError, check


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Where text comes from and how it becomes tokens.

    corpus: 'python_stdlib', 'python_docs', 'text_files', a recipe ('openwebtext', 'openwebmath', 'codeparrot', 'c4') or
    'tfds:NAME'. path: the user's file, folder or glob ('' for python_*; for 'tfds:NAME' the folder that has it
    prepared, or the files to build it from). field: of JSON lines or TFDS examples ('' where unused or fixed).
    encoding_errors: 'replace' or 'refuse'. tokenizer: a tokenizer.json, or '' to train one on the training split.
    vocab_size: tokens of the trained one, 0 where a file is given. valid_share: of the documents, by content hash,
    unless the corpus has a published split. cache: a folder that runs share, or '' for the run's own.
    """

    corpus: str
    path: str
    field: str
    encoding_errors: str
    tokenizer: str
    vocab_size: int
    valid_share: float
    cache: str

    def __post_init__(self):
        errors = self.encoding_errors
        check(errors in ('replace', 'refuse'), 'encoding_errors', errors, "must be 'replace' or 'refuse'")
        check(0 < self.valid_share < 1, 'valid_share', self.valid_share, 'must be between 0 and 1')
        size, least = self.vocab_size, 257  # every byte and the end of text
        if self.tokenizer:
            check(size == 0, 'vocab_size', size, 'must be 0 where a tokenizer is given, which has its own')
        else:
            check(size >= least, 'vocab_size', size, f'must be at least {least}, or name a tokenizer')


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Token stores of both splits with what belongs to them.

    identity: hash of the texts and the tokenizer, free of paths. documents: how many were `dropped` as exact
    duplicates, are `shared` by both sides of a published split, and have bytes `replaced` that were no UTF-8.
    """

    folder: Path
    train: TokenStore
    valid: TokenStore
    tokenizer: Tokenizer
    vocab: Vocab
    token_bytes_V: np.ndarray
    identity: str
    tokenizer_identity: str
    documents: dict[str, int]


@dataclasses.dataclass(frozen=True)
class EvalRange:
    """A fixed choice of windows in fixed order: `stream(step)` for step in range(steps) covers each once.

    windows, tokens (scored targets) and bytes (UTF-8 bytes those targets stand for) are exact:
    bits per byte = summed nats of all scored targets / ln 2 / bytes. The end of a text costs nats and counts 0 bytes.
    """

    stream: Callable[[int], Batch]
    steps: int
    windows: int
    tokens: int
    bytes: int


def count_windows(store: TokenStore, length: int) -> int:
    """Windows of length + 1 tokens at stride `length`: every token but the first is a target once, up to the tail."""
    return (len(store) - 1) // length


def make_stream(
    config: TextConfig,
    prepared: Prepared,
    seed: int,
    split: str,
    batch: int,
    length: int,
    sharding: jax.sharding.NamedSharding,
) -> Callable[[int], Batch]:
    """`stream(step)`: the step-th Batch of (B, L) windows, each window once an epoch, in an order of (seed, epoch).

    Row r of step k is window perm[k * B + r mod N]; rows are placed by global index. All loss weights are 1.
    """
    store = {'train': prepared.train, 'valid': prepared.valid}[split]
    total = count_windows(store, length)
    if total < 1:
        raise UserError(f'{config.corpus}: {split} has {len(store)} tokens, fewer than a window of {length + 1}')

    def window(row: int) -> tuple[int, int]:
        return shuffled(row, total, f'{seed}/text/{split}')[1], 1

    def stream(step: int) -> Batch:
        return _place(lambda row: window(step * batch + row), store, batch, length, sharding)

    return stream


def make_eval_range(
    prepared: Prepared, split: str, batch: int, length: int, windows: int | None, sharding: jax.sharding.NamedSharding
) -> EvalRange:
    """`windows` windows spread evenly over a split (None: all of it); the last batch is filled with rows of weight 0.

    Spread, since neighbouring windows are of one document, and a corpus may keep its documents in order.
    """
    store = {'train': prepared.train, 'valid': prepared.valid}[split]
    total = count_windows(store, length)
    if total < (windows or 1):
        raise UserError(f'{split} split: {total} windows of {length} tokens, evaluation wants {windows or 1}')
    windows = windows or total
    chosen_W = np.arange(windows) * total // windows

    def window(row: int) -> tuple[int, int]:
        return (int(chosen_W[row]), 1) if row < windows else (0, 0)

    def stream(step: int) -> Batch:
        return _place(lambda row: window(step * batch + row), store, batch, length, sharding)

    targets = (store.read(window * length + 1, (window + 1) * length + 1) for window in chosen_W)
    size = sum(int(prepared.token_bytes_V[tokens].sum(dtype=np.int64)) for tokens in targets)
    return EvalRange(stream, -(-windows // batch), windows, windows * length, size)


def _place(window_of_row, store: TokenStore, batch: int, length: int, sharding: jax.sharding.NamedSharding) -> Batch:
    """`window_of_row` gives a row's window and weight."""

    def row_of(row: int) -> tuple[np.ndarray, np.ndarray]:
        window, weight = window_of_row(row)
        tokens_L1 = store.read(window * length, (window + 1) * length + 1)
        return tokens_L1, np.full(length + 1, weight, np.float32)

    return place_rows(row_of, batch, length, sharding)
