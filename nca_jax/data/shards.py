"""Token shards: memory-mapped .npy files, written one by one so that a killed run goes on."""

import bisect
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from nca_jax import files
from nca_jax.data import splits
from nca_jax.data import tokenizer as bpe
from nca_jax.data.documents import Document
from nca_jax.errors import UserError

CHUNK = 256  # documents encoded at once
AHEAD = 4  # chunks encoded at the same time, so that reading and copying hide behind encoding
SHARD_BYTES = 1 << 25  # of text; about 8M GPT-2 tokens, a few seconds of work


class TokenStore:
    """The tokens of one side as one long array over all its shards, read without loading them."""

    def __init__(self, folder: Path, side: str, shards: int, tokens: int, documents: int, bytes: int):
        """Takes what `write_side` returned. Raises UserError for a missing or damaged shard."""
        self.tokens, self.documents, self.bytes = tokens, documents, bytes
        self._shards = [_open_shard(_file(folder, side, number)) for number in range(shards)]
        self._starts = np.cumsum([0, *map(len, self._shards)]).tolist()
        if self._starts[-1] != tokens:
            raise UserError(f'{folder}: {side} has {self._starts[-1]} of {tokens} tokens; delete it to make it anew')

    def __len__(self) -> int:
        return self.tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        """int32 tokens [start, stop)."""
        pieces = []
        number = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            offset = self._starts[number]
            piece = self._shards[number][start - offset : stop - offset]
            pieces.append(piece)
            start += len(piece)
            number += 1
        return np.concatenate(pieces, dtype=np.int32)


def write_side(
    out: Path,
    side: str,
    read: Callable[[], Iterable[Document]],
    scanned_N: np.ndarray,
    rows_M: np.ndarray,
    tokenizer: Tokenizer,
    progress: Callable[[int], None],
) -> dict[str, int]:
    """Tokenizes these rows of the corpus into shards, with an end of text after each document.

    Returns the arguments of the side's TokenStore. A shard that exists already is never done again. progress(done)
    counts bytes of text, and is first called when work begins. Raises UserError for a tokenizer that loses text.
    """
    # A shard ends with the document that fills it, so its documents are known before any is tokenized.
    size_M = scanned_N['bytes'][rows_M]
    cuts = np.flatnonzero(np.diff(np.cumsum(size_M) // SHARD_BYTES)) + 1
    shards = {_file(out, side, number): rows for number, rows in enumerate(np.split(rows_M, cuts))}
    missing = [rows for file, rows in shards.items() if not file.exists()]
    # One pass over the corpus fills all missing shards, one after the other.
    texts = splits.select(read(), scanned_N, np.concatenate(missing)) if missing else iter(())
    tokens, done = 0, 0
    for file, rows in shards.items():
        size = int(scanned_N['bytes'][rows].sum())
        if not file.exists():
            progress(done)
            pieces = []
            for piece, counted in _tokenize(itertools.islice(texts, len(rows)), tokenizer):
                pieces.append(piece)
                progress(done + counted)
            # `select` has checked the texts, so it's the tokenizer that adds or drops bytes.
            if counted != size:
                raise UserError(f'tokenizer: loses text, its tokens stand for {counted} of {size} bytes')
            with files.replacing(file) as stream:
                np.save(stream, np.concatenate(pieces))
        tokens += len(_open_shard(file))
        done += size
    return {'shards': len(shards), 'tokens': tokens, 'documents': len(rows_M), 'bytes': done}


def _tokenize(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, int]]:
    """(tokens of the next texts, bytes that all tokens so far stand for).

    Encoding runs on all cores, outside Python's lock; this thread reads ahead.
    """
    # Two bytes hold most vocabularies, GPT-2's among them.
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    end, bytes_V, counted = bpe.end_of_text(tokenizer), bpe.token_bytes(tokenizer), 0

    def encode(chunk: list[str]) -> np.ndarray:
        encodings = tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
        return np.concatenate([np.array([*encoding.ids, end], dtype) for encoding in encodings])

    with concurrent.futures.ThreadPoolExecutor(AHEAD) as pool:
        for tokens in pool.map(encode, iter(lambda: list(itertools.islice(texts, CHUNK)), [])):
            counted += int(bytes_V[tokens].sum(dtype=np.int64))
            yield tokens, counted


def _file(folder: Path, side: str, number: int) -> Path:
    return folder / f'{side}-{number:05d}.npy'


def _open_shard(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode='r')
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f'{file}: not a readable shard ({error}); delete {file.parent} to make it anew') from None
