"""Documents in a user's files: .txt .md .py, .jsonl .json (a document per line), .parquet, each also .gz or .zst."""

import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow
import pyarrow.parquet

from nca_jax.errors import UserError

WHOLE = ('.txt', '.md', '.py')  # a file is a document
LINES = ('.jsonl', '.json')  # a line is a JSON object, one field of which is a document
COMPRESSED = ('.gz', '.zst')
TEXT_FORMATS = (*WHOLE, '.jsonl', *(f'{suffix}.gz' for suffix in (*WHOLE, '.jsonl')))


class Document(NamedTuple):
    """A text, where it came from, and whether bytes or surrogates that are no UTF-8 were replaced in it."""

    text: str
    name: str
    replaced: bool = False


def find_files(path: str, formats: Iterable[str]) -> list[Path]:
    """The files of these formats that a file, a folder (searched to its depth) or a glob names, sorted by path."""
    formats = tuple(formats)
    if not path:
        raise UserError('path is empty: name a file, a folder or a glob')
    root = Path(path).expanduser()
    if root.is_dir():
        found = [file for file in root.rglob('*') if file.name.endswith(formats) and file.is_file()]
    else:
        found = [Path(name) for name in glob.glob(str(root), recursive=True) if Path(name).is_file()]
        for file in found:
            if not file.name.endswith(formats):
                raise UserError(f'{file}: unknown format, must be one of {" ".join(formats)}')
    if not found:
        raise UserError(f'path = {path!r}: no file of the formats {" ".join(formats)} there')
    return sorted(found)


def read_documents(file: Path, field: str, encoding_errors: str) -> Iterator[Document]:
    """The documents of one file, in order; `field` is where JSON lines and parquet rows hold them.

    encoding_errors: 'replace' puts U+FFFD for what isn't UTF-8 and marks the document, 'refuse' raises.
    """
    kind = Path(file.stem).suffix if file.suffix in COMPRESSED else file.suffix
    try:
        if kind == '.parquet':
            yield from _parquet(file, field, encoding_errors)
        elif kind in LINES:
            with _open(file) as stream:
                yield from _json_lines(stream, file, field, encoding_errors)
        else:
            with _open(file) as stream:
                text, replaced = decode(stream.read(), str(file), encoding_errors)
            yield Document(text, str(file), replaced)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'{file}: unreadable ({error})') from error


def decode(data: bytes, name: str, encoding_errors: str) -> tuple[str, bool]:
    """UTF-8 text of the bytes, and whether anything was replaced."""
    try:
        return data.decode(), False
    except UnicodeDecodeError as error:
        if encoding_errors == 'refuse':
            raise UserError(
                f"{name}: not UTF-8 at byte {error.start}; encoding_errors = 'replace' accepts it"
            ) from None
        return data.decode(errors='replace'), True


def _open(file: Path) -> IO[bytes]:
    if file.suffix == '.gz':
        return gzip.open(file, 'rb')
    if file.suffix == '.zst':
        # pyarrow tells a file that is cut off, which zstandard's own reader takes for its end.
        return io.BufferedReader(pyarrow.input_stream(str(file), compression='zstd'))
    return file.open('rb')


def _json_lines(stream: IO[bytes], file: Path, field: str, encoding_errors: str) -> Iterator[Document]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        name = f'{file}:{number}'
        text, replaced = decode(line, name, encoding_errors)
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:  # also of numbers too long and nests too deep
            raise UserError(f'{name}: not JSON ({str(error).splitlines()[0]})') from None
        yield _field(record, name, field, encoding_errors, replaced)


def _parquet(file: Path, field: str, encoding_errors: str) -> Iterator[Document]:
    row = 0
    try:
        table = pyarrow.parquet.ParquetFile(file)
        if field not in table.schema_arrow.names:
            raise UserError(f'{file}: no field {field!r}, has {" ".join(table.schema_arrow.names)}')
        for batch in table.iter_batches(columns=[field]):
            column = batch.column(0)
            if not pyarrow.types.is_string(column.type) and not pyarrow.types.is_large_string(column.type):
                raise UserError(f'{file}: field {field!r} is {column.type}, not text')
            for value in column.cast(pyarrow.large_binary()).to_pylist():  # pyarrow's own text must be UTF-8
                row += 1
                if value is None:
                    raise UserError(f'{file}:{row}: no text in field {field!r}, it is null')
                text, replaced = decode(value, f'{file}:{row}', encoding_errors)
                yield Document(text, f'{file}:{row}', replaced)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f'{file}: unreadable ({str(error).splitlines()[0]})') from error


def _field(record: object, name: str, field: str, encoding_errors: str, replaced: bool) -> Document:
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        has = ' '.join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise UserError(f'{name}: no text in field {field!r}, has {has}')
    # JSON can hold half of a surrogate pair, which no UTF-8 can.
    text, broken = decode(record[field].encode(errors='surrogatepass'), name, encoding_errors)
    return Document(text, name, replaced or broken)
