"""Which documents train and which validate: a function of their content, so that nothing leaks."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from nca_jax.data.files import decode
from nca_jax.progress import Progress

CHUNK = 1000  # documents read at once


class Documents(NamedTuple):
    """What the first pass over N documents keeps of each: a digest of its text, its bytes, whether it was repaired."""

    digest_N: np.ndarray  # S16
    bytes_N: np.ndarray  # int64
    replaced_N: np.ndarray  # bool


def open_source(folder: str, split: str) -> Sequence[dict]:
    """Random access to the prepared TFDS dataset in the folder."""
    return tfds.builder_from_directory(folder).as_data_source(split)


def names(folder: str) -> list[str]:
    """The TFDS splits of the prepared dataset in the folder."""
    return list(tfds.builder_from_directory(folder).info.splits)


def iterate(source: Sequence[dict], rows, field: str, encoding_errors: str) -> Iterator[str]:
    """The texts of these rows, a chunk in memory at a time."""
    for start in range(0, len(rows), CHUNK):
        yield from read_texts(source, rows[start : start + CHUNK], field, encoding_errors)


def read_texts(source: Sequence[dict], rows, field: str, encoding_errors: str) -> list[str]:
    """The texts of these rows; TFDS gives bytes."""
    examples = source.__getitems__([int(row) for row in rows])
    return [
        decode(example[field], f'row {row}', encoding_errors)[0] for row, example in zip(rows, examples, strict=True)
    ]


def scan(source: Sequence[dict], field: str, encoding_errors: str, progress: Progress) -> Documents:
    """The first pass."""
    digests, sizes, replaced = [], [], []
    for start in range(0, len(source), CHUNK):
        rows = range(start, min(start + CHUNK, len(source)))
        for row, example in zip(rows, source.__getitems__(list(rows)), strict=True):
            text, broken = decode(example[field], f'row {row}', encoding_errors)
            data = text.encode()
            digests.append(hashlib.blake2b(data, digest_size=16).digest())
            sizes.append(len(data))
            replaced.append(broken or bool(example.get('replaced', False)))
        progress('scan', rows.stop, len(source))
    return Documents(np.array(digests, 'S16'), np.array(sizes, np.int64), np.array(replaced, bool))


class Division(NamedTuple):
    """TFDS split and rows of each side. dropped: repeated documents left out. shared: validation documents that a
    published split also has in training."""

    train: tuple[str, np.ndarray]
    valid: tuple[str, np.ndarray]
    dropped: int
    shared: int


Divide = Callable[[dict[str, Documents], float], Division]


def by_content(scanned: dict[str, Documents], valid_share: float) -> Division:
    """Of equal documents the first stays; one validates where its digest, as a number in [0, 1), is below the share.

    The side that a document is on depends on nothing but its text.
    """
    ((split, documents),) = scanned.items()
    _, first_M = np.unique(documents.digest_N, return_index=True)
    rows_M = np.sort(first_M)
    head_M = documents.digest_N[rows_M].astype('S8')  # the first 8 bytes; NumPy pads those that end in zeros
    valid_M = head_M.view('>u8') / 2.0**64 < valid_share
    return Division((split, rows_M[~valid_M]), (split, rows_M[valid_M]), len(documents.digest_N) - len(rows_M), 0)


def as_published(scanned: dict[str, Documents], valid_share: float) -> Division:
    """The publisher's own files for each side, untouched."""
    train_N, valid_N = (scanned[side].digest_N for side in ('train', 'valid'))
    shared = int(np.isin(valid_N, train_N).sum())
    return Division(('train', np.arange(len(train_N))), ('valid', np.arange(len(valid_N))), 0, shared)


def by_permutation(scanned: dict[str, Documents], valid_share: float, test_size: float, seed: int) -> Division:
    """The rows of `datasets.Dataset.train_test_split(test_size, seed=seed, shuffle=True)`, as nanoGPT published it."""
    ((split, documents),) = scanned.items()
    train, valid = hold_out(len(documents.digest_N), test_size, seed)
    shared = int(np.isin(documents.digest_N[valid], documents.digest_N[train]).sum())
    return Division((split, train), (split, valid), 0, shared)


def hold_out(total: int, test_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that `train_test_split` of Hugging Face's `datasets` keeps, and those that it holds out.

    It holds out the first ceil(test_size * N) entries of `np.random.default_rng(seed).permutation(N)`. The rows here
    stay in the corpus's order: the documents of a side are the same, their order is not.
    """
    permutation_N = np.random.default_rng(seed).permutation(total)
    held = int(np.ceil(test_size * total))
    return np.sort(permutation_N[held:]), np.sort(permutation_N[:held])
