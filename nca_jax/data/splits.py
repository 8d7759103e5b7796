"""Which documents train and which validate. The first pass over a corpus keeps 26 bytes a document, never its text."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from nca_jax.data.documents import Document
from nca_jax.errors import UserError
from nca_jax.progress import Progress

# A digest of the text, its size in UTF-8, and the two marks of `Document`.
SCANNED = np.dtype([('digest', 'S16'), ('bytes', np.int64), ('replaced', np.bool_), ('valid', np.bool_)])


class Division(NamedTuple):
    """Rows (numbers of documents, ascending) of each side."""

    train_M: np.ndarray
    valid_M: np.ndarray
    # Repeated documents that are left out.
    dropped: int
    # Documents on both sides, which only a published division has.
    shared: int


Divide = Callable[[np.ndarray, float], Division]


def scan(documents: Iterable[Document], progress: Progress) -> np.ndarray:
    """SCANNED records of N documents."""

    def records() -> Iterator[tuple]:
        for number, (text, _, replaced, valid) in enumerate(documents, 1):
            data = text.encode()
            yield _digest(data), len(data), replaced, valid
            progress('scan', number, None)

    scanned_N = np.fromiter(records(), SCANNED)
    progress('scan', len(scanned_N), len(scanned_N))
    return scanned_N


def select(documents: Iterable[Document], scanned_N: np.ndarray, rows_M: np.ndarray) -> Iterator[str]:
    """The texts of these rows (ascending), read one at a time. Raises UserError unless they are what `scan` saw."""
    chosen_N = np.zeros(len(scanned_N), bool)
    chosen_N[rows_M] = True
    number = 0
    for document, digest in itertools.compress(zip(documents, scanned_N['digest'], strict=False), chosen_N):
        # NumPy takes trailing zeros for padding.
        if _digest(document.text.encode()).rstrip(b'\0') != digest:
            raise UserError(f'{document.name}: changed while it was read; start again')
        number += 1
        yield document.text
    if number < len(rows_M):
        raise UserError(f'{len(rows_M) - number} documents vanished while they were read; start again')


def by_content(scanned_N: np.ndarray, valid_share: float) -> Division:
    """Deduplicates; a document is validation if its digest, as a number in [0, 1), is below the share.

    So the side of a document depends on its text alone, and no text is on both sides.
    """
    _, first_M = np.unique(scanned_N['digest'], return_index=True)
    rows_M = np.sort(first_M)
    # NumPy pads a digest that ends in zeros, so its first 8 bytes are always 8.
    head_M = scanned_N['digest'][rows_M].astype('S8').view('>u8')
    valid_M = head_M / 2.0**64 < valid_share
    return Division(rows_M[~valid_M], rows_M[valid_M], dropped=len(scanned_N) - len(rows_M), shared=0)


def as_published(scanned_N: np.ndarray, valid_share: float) -> Division:
    """The publisher's own division, untouched."""
    return _division(scanned_N, np.flatnonzero(~scanned_N['valid']), np.flatnonzero(scanned_N['valid']))


def by_permutation(scanned_N: np.ndarray, valid_share: float, test_size: float, seed: int) -> Division:
    """The sides of `datasets.Dataset.train_test_split(test_size, seed=seed, shuffle=True)`, as nanoGPT published it.

    That function shuffles each side; here the documents stay in the corpus's order.
    """
    permutation_N = np.random.default_rng(seed).permutation(len(scanned_N))
    held = int(np.ceil(test_size * len(scanned_N)))
    return _division(scanned_N, np.sort(permutation_N[held:]), np.sort(permutation_N[:held]))


def _division(scanned_N: np.ndarray, train_M: np.ndarray, valid_M: np.ndarray) -> Division:
    digest_N = scanned_N['digest']
    return Division(train_M, valid_M, dropped=0, shared=int(np.isin(digest_N[valid_M], digest_N[train_M]).sum()))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
