"""Documents in files: .txt .md .py, .jsonl .json (a document per line), .parquet, each also .gz or .zst."""

import glob
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow
import pyarrow.parquet

from nca_jax.errors import UserError

WHOLE = ('.txt', '.md', '.py')  # a file is a document
LINES = ('.jsonl', '.json')  # a line is a JSON object with the document in one field
COMPRESSED = ('.gz', '.zst')
TEXT_FORMATS = (*WHOLE, '.jsonl', *(f'{suffix}.gz' for suffix in (*WHOLE, '.jsonl')))
PUBLISHED_FORMATS = ('.jsonl', '.jsonl.gz', '.json.gz', '.jsonl.zst', '.parquet')


class Document(NamedTuple):
    """A text and where it came from."""

    text: str
    name: str
    # Bytes or surrogates that aren't UTF-8 were replaced.
    replaced: bool = False
    # The publisher keeps it for validation.
    valid: bool = False


def find_files(path: str, formats: tuple[str, ...]) -> list[Path]:
    """The files of these formats, sorted by path, that a file, a folder (with all below it) or a glob names."""
    if not path:
        raise UserError('path is empty: name a file, a folder or a glob')
    root = Path(path).expanduser()
    candidates = root.rglob('*') if root.is_dir() else map(Path, glob.glob(str(root), recursive=True))
    files = sorted(file for file in candidates if file.name.endswith(formats) and file.is_file())
    if not files:
        raise UserError(f'path = {path!r}: no file of the formats {" ".join(formats)} there')
    return files


def read_documents(file: Path, field: str, encoding_errors: str, valid: bool = False) -> Iterator[Document]:
    """The documents of one file, in order; `field` is where JSON lines and parquet rows hold them.

    encoding_errors: 'replace' puts U+FFFD for what isn't UTF-8 and marks the document, 'refuse' raises UserError.
    """
    kind = Path(file.stem).suffix if file.suffix in COMPRESSED else file.suffix
    try:
        if kind == '.parquet':
            values = _parquet_values(file, field)
        elif kind in LINES:
            values = _json_values(file, field, encoding_errors)
        else:
            with _open(file) as stream:
                values = [(str(file), stream.read(), False)]
        for name, value, replaced in values:
            text, broken = decode(value, name, encoding_errors)
            yield Document(text, name, replaced or broken, valid)
    except OSError as error:
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
    # pyarrow decompresses by the suffix, and raises for a file that is cut off.
    return io.BufferedReader(pyarrow.input_stream(str(file)))


def _json_values(file: Path, field: str, encoding_errors: str) -> Iterator[tuple[str, bytes, bool]]:
    """(name, bytes of the field, whether the line had bytes replaced) of each line that isn't blank."""
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            name = f'{file}:{number}'
            text, replaced = decode(line, name, encoding_errors)
            try:
                record = json.loads(text)
            # ValueError is also raised for numbers that are too long, RecursionError for nests that are too deep.
            except (ValueError, RecursionError) as error:
                raise UserError(f'{name}: not JSON ({str(error).splitlines()[0]})') from None
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                has = ' '.join(map(str, record)) if isinstance(record, dict) else type(record).__name__
                raise UserError(f'{name}: no text in field {field!r}, has {has}')
            # JSON can hold half of a surrogate pair. UTF-8 can't, so these bytes are decoded like all others.
            yield name, record[field].encode(errors='surrogatepass'), replaced


def _parquet_values(file: Path, field: str) -> Iterator[tuple[str, bytes, bool]]:
    """(name, bytes of the field, False) of each row."""
    row = 0
    try:
        table = pyarrow.parquet.ParquetFile(file)
        if field not in table.schema_arrow.names:
            raise UserError(f'{file}: no field {field!r}, has {" ".join(table.schema_arrow.names)}')
        for batch in table.iter_batches(columns=[field]):
            column = batch.column(0)
            if not pyarrow.types.is_string(column.type) and not pyarrow.types.is_large_string(column.type):
                raise UserError(f'{file}: field {field!r} is {column.type}, not text')
            # As bytes, since pyarrow refuses to make text of what isn't UTF-8.
            for value in column.cast(pyarrow.large_binary()).to_pylist():
                row += 1
                if value is None:
                    raise UserError(f'{file}:{row}: no text in field {field!r}, it is null')
                yield f'{file}:{row}', value, False
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f'{file}: unreadable ({str(error).splitlines()[0]})') from error
