"""Token shards: memory-mapped .npy files under one JSON index, written part by part so that a killed run goes on."""

import bisect
import concurrent.futures
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from nca_jax.data import splits
from nca_jax.data import tokenizer as bpe
from nca_jax.errors import UserError
from nca_jax.progress import Progress

INDEX = 'index.json'
TOKENIZER = 'tokenizer.json'
CHUNK = 256  # documents encoded at once
AHEAD = 4  # chunks encoded at the same time, so that reading and copying hide behind encoding
PART_BYTES = 1 << 25  # of text; about 8M GPT-2 tokens, a few seconds of work


@dataclasses.dataclass(frozen=True)
class Part:
    """One shard to write: these rows of a split of a TFDS dataset, each followed by the end-of-text token."""

    name: str
    side: str
    folder: str
    split: str
    rows: np.ndarray
    bytes: int
    field: str
    encoding_errors: str


class TokenStore:
    """The tokens of one split as one long array over all its shards, read without loading them."""

    def __init__(self, folder: Path, split: dict):
        self.tokens, self.documents, self.bytes = split['tokens'], split['documents'], split['bytes']
        self._parts = [_open_part(folder / f'{part["name"]}.npy', part['tokens']) for part in split['parts']]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)]).tolist()

    def __len__(self) -> int:
        return self.tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        """int32 tokens [start, stop)."""
        pieces = []
        number = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            offset = self._starts[number]
            piece = self._parts[number][start - offset : stop - offset]
            pieces.append(piece)
            start += len(piece)
            number += 1
        return np.concatenate(pieces, dtype=np.int32)


def _open_part(file: Path, tokens: int) -> np.ndarray:
    try:
        part = np.load(file, mmap_mode='r')
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f'{file}: not a readable shard ({error}); delete {file.parent} to make it anew') from None
    if part.shape != (tokens,):
        raise UserError(f'{file}: holds {part.shape} tokens and not {tokens}; delete {file.parent} to make it anew')
    return part


def plan(
    side: str, rows_M: np.ndarray, bytes_N: np.ndarray, folder: str, split: str, field: str, encoding_errors: str
) -> list[Part]:
    """Cuts the rows of one side, train or valid, into parts of about PART_BYTES of text."""
    part_M = np.cumsum(bytes_N[rows_M]) // PART_BYTES
    cuts = np.flatnonzero(np.diff(part_M)) + 1
    return [
        Part(f'{side}-{number:05d}', side, folder, split, rows, int(bytes_N[rows].sum()), field, encoding_errors)
        for number, rows in enumerate(np.split(rows_M, cuts))
    ]


def write_parts(parts: Sequence[Part], out: Path, tokenizer: Tokenizer, progress: Progress) -> list[dict]:
    """Their entries in the index, in order; a part that is there already is never done again.

    progress('tokenize', done, total) counts bytes of text, and is called first when there is something to do.
    """
    entries, done, total = [], 0, sum(part.bytes for part in parts)
    for part in parts:
        entry_file = out / f'{part.name}.json'
        if not entry_file.exists():
            progress('tokenize', done, total)
            _write_part(part, out, tokenizer, lambda size, done=done: progress('tokenize', done + size, total))
        entries.append(read_json(entry_file))
        done += part.bytes
    return entries


def _write_part(part: Part, out: Path, tokenizer: Tokenizer, progress: Callable[[int], None]) -> None:
    """Tokenizes and writes one shard. Encoding runs on all cores, outside of Python's lock; this thread reads ahead."""
    source = splits.open_source(part.folder, part.split)
    chunks = [part.rows[start : start + CHUNK] for start in range(0, len(part.rows), CHUNK)]
    texts = (splits.read_texts(source, rows, part.field, part.encoding_errors) for rows in chunks)
    end = bpe.end_of_text(tokenizer)
    pieces, size = [], 0
    with concurrent.futures.ThreadPoolExecutor(AHEAD) as pool:
        for tokens, chunk_bytes in pool.map(lambda chunk: _encode(chunk, tokenizer, end), texts):
            pieces.append(tokens)
            size += chunk_bytes
            progress(size)
    tokens = np.concatenate(pieces)
    counted = int(bpe.token_bytes(tokenizer)[tokens].sum(dtype=np.int64))
    if counted != size:
        raise UserError(f'tokenizer: loses text, its tokens stand for {counted} of {size} bytes')
    with (out / f'{part.name}.tmp').open('wb') as stream:
        np.save(stream, tokens)
    os.replace(out / f'{part.name}.tmp', out / f'{part.name}.npy')
    entry = {'name': part.name, 'side': part.side, 'tokens': len(tokens), 'documents': len(part.rows), 'bytes': size}
    write_json(out / f'{part.name}.json', entry)  # last: where it exists, so does the shard


def _encode(texts: list[str], tokenizer: Tokenizer, end: int) -> tuple[np.ndarray, int]:
    """The tokens of the texts with the end after each, and the bytes of the texts."""
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    tokens = np.concatenate([np.array([*encoding.ids, end], dtype) for encoding in encodings])
    return tokens, sum(len(text.encode()) for text in texts)


def write_json(file: Path, value: object) -> None:
    """Whole or not at all."""
    partial = file.with_name(f'{file.name}.tmp')
    partial.write_text(json.dumps(value, indent=1))
    os.replace(partial, file)


def read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f'{file}: not JSON ({error}); delete {file.parent} to make it anew') from None


def totals(entries: Sequence[dict], side: str) -> dict:
    """What the index says of one side."""
    parts = [entry for entry in entries if entry['side'] == side]
    return {key: sum(part[key] for part in parts) for key in ('tokens', 'documents', 'bytes')} | {'parts': parts}


def read_index(folder: Path, tokenizer: Tokenizer) -> dict:
    """The index of finished shards; UserError where `tokenizer` isn't theirs."""
    index = read_json(folder / INDEX)
    found = bpe.identity(tokenizer)
    if found != index['tokenizer']:
        raise UserError(f'{folder}: written with tokenizer {index["tokenizer"][:12]}, this one is {found[:12]}')
    return index
