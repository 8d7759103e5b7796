"""A corpus as one string of bytes, whatever its files hold: nothing is decoded, parsed or unpacked."""

import bisect
import dataclasses
import errno
import itertools
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nca_jax.data import python
from nca_jax.errors import UserError
from nca_jax.progress import Progress

BUILT_IN = {'python_stdlib': python.sources, 'python_docs': python.docstrings}
PACKED = ('.gz', '.zst', '.xz', '.bz2', '.zip', '.7z', '.parquet', '.npz', '.png', '.jpg', '.jpeg', '.webp', '.mp4')


@dataclasses.dataclass(frozen=True)
class RawCorpus:
    """Pieces one after the other, each a file or the bytes themselves; piece i ends before byte ends[i]."""

    name: str
    pieces: tuple[Path | bytes, ...]
    ends: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.ends[-1]

    @property
    def packed(self) -> int:
        """How many of the files look compressed, so that their bytes say little about what is in them."""
        return sum(isinstance(piece, Path) and piece.name.lower().endswith(PACKED) for piece in self.pieces)

    def read(self, start: int, stop: int) -> bytes:
        """Bytes start..stop - 1, fewer where the corpus ends before. UserError where a file can't be read."""
        found, stop = [], min(stop, self.size)
        piece = bisect.bisect_right(self.ends, start)
        while start < stop:
            first = self.ends[piece - 1] if piece else 0
            part = _read(self.pieces[piece], start - first, min(stop, self.ends[piece]) - first)
            found.append(part)
            start += len(part)
            piece += 1
        return b''.join(found)


def open_raw(name: str, progress: Progress) -> RawCorpus:
    """A corpus that needs no files (BUILT_IN), a file, or a folder with all files in it but hidden ones, by path.

    Raises UserError where there is nothing to read.
    """
    if name in BUILT_IN:
        texts = []
        progress(name, 0, None)
        for document in BUILT_IN[name]():
            texts.append(document.text.encode(errors='surrogatepass'))
            progress(name, len(texts), None)
        progress(name, len(texts), len(texts))
        return _corpus(name, [(text, len(text)) for text in texts])
    shown = name.encode(errors='backslashreplace').decode()  # a file's name may be no text
    try:
        root = Path(name).expanduser()
        if not name or not (root.is_file() or root.is_dir()):
            raise UserError(f'--text {shown!r}: no such file or folder, and no corpus of {", ".join(BUILT_IN)}')
        files = [root] if root.is_file() else _files(root)
        for file in files:
            if not os.access(file, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        sized = [(file, file.stat().st_size) for file in files]
    except OSError as error:
        raise UserError(f'--text {shown}: {error.filename}: {error.strerror}') from None
    except RuntimeError as error:  # ~ of a user that there isn't
        raise UserError(f'--text {shown}: {error}') from None
    return _corpus(shown, sized)


def starts(corpus: RawCorpus, length: int, count: int, seed: int) -> Iterator[int]:
    """Where `count` disjoint windows of `length` bytes begin: a seeded choice, or all where there are fewer."""
    total = corpus.size // length
    generator = np.random.default_rng([seed, zlib.crc32(b'windows')])
    for index in generator.choice(total, min(count, total), replace=False):
        yield int(index) * length


def _corpus(name: str, sized: list[tuple[Path | bytes, int]]) -> RawCorpus:
    kept = [(piece, size) for piece, size in sized if size]
    if not kept:
        raise UserError(f'--text {name}: empty, there is not a byte in it')
    pieces, sizes = zip(*kept, strict=True)
    return RawCorpus(name, pieces, tuple(itertools.accumulate(sizes)))


def _files(root: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise error

    found = []
    for folder, below, names in os.walk(root, onerror=fail):
        below[:] = [name for name in below if not name.startswith('.')]
        found += [Path(folder, name) for name in names if not name.startswith('.')]
    return sorted(file for file in found if file.is_file())


def _read(piece: Path | bytes, start: int, stop: int) -> bytes:
    if isinstance(piece, bytes):
        return piece[start:stop]
    try:
        with piece.open('rb') as file:
            file.seek(start)
            part = file.read(stop - start)
    except OSError as error:
        raise UserError(f'{piece}: {error.strerror}') from None
    if len(part) < stop - start:
        raise UserError(f'{piece}: became shorter while it was read')
    return part
