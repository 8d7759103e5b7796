"""Documents: in a user's files, and in every interpreter.

Files are .txt .md .py, .jsonl .json (a document per line), .parquet, each also .gz or .zst. An interpreter brings the
standard library's source (code) and documentation (prose).
"""

import ast
import functools
import glob
import importlib.metadata
import io
import itertools
import os
import platform
import pydoc_data.topics
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from nca_jax import files
from nca_jax.errors import UserError, check

# A file is a document.
WHOLE = ('.txt', '.md', '.py')
# In other formats a line or a row is one. `text_files` takes no .json, which in a user's folder may be of other kinds.
TEXT_FORMATS = (*WHOLE, '.jsonl', *(f'{suffix}.gz' for suffix in (*WHOLE, '.jsonl')))
PUBLISHED_FORMATS = ('.jsonl', '.jsonl.gz', '.json.gz', '.jsonl.zst', '.parquet')
TESTS = {'test', 'tests', 'idle_test'}
# Other people's packages, and pydoc's topics, which are prose.
SKIPPED = TESTS | {'site-packages', 'dist-packages', 'pydoc_data'}
# The package requires them, so that every installation has them.
DEPENDENCIES = (
    *('absl-py', 'flax', 'grain', 'jax', 'matplotlib', 'ml-collections', 'numpy', 'optax', 'orbax-checkpoint'),
    *('rich', 'scipy', 'tensorflow-datasets', 'tokenizers'),
)


class Document(NamedTuple):
    """A text and where it came from."""

    text: str
    # The file, with the number of its line or row.
    name: str
    # The publisher keeps it for validation.
    valid: bool = False


def find_files(path: str, formats: tuple[str, ...]) -> list[Path]:
    """The files of these formats, sorted by path, that a file, a folder (with all below it) or a glob names."""
    # An empty path would be the current folder.
    check(bool(path), 'path', path, 'must name a file, a folder or a glob')
    root = Path(path).expanduser()
    candidates = files.list_files(root) if root.is_dir() else map(Path, glob.glob(str(root), recursive=True))
    # Sorted, because the order of the documents decides the shards.
    matches = sorted(file for file in candidates if file.name.endswith(formats) and file.is_file())
    check(bool(matches), 'path', path, f'no file of the formats {" ".join(formats)} there')
    return matches


def read_documents(file: Path, field: str, valid: bool = False) -> Iterator[Document]:
    """The documents of one file, in order; `field` is where JSON lines and parquet rows hold them.

    U+FFFD replaces bytes that aren't UTF-8. Raises UserError for a file that can't be read.
    """
    kind = Path(file.stem).suffix if file.suffix in ('.gz', '.zst') else file.suffix
    try:
        for name, text in _parquet_rows(file, field) if kind == '.parquet' else _stream_rows(file, kind, field):
            yield Document(text, name, valid)
    # A message of Arrow may have many lines.
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f'{file}: unreadable ({str(error).splitlines()[0]})') from error


def _stream_rows(file: Path, kind: str, field: str) -> Iterator[tuple[str, str]]:
    """(name, text) of the whole file, or of the field in each JSON line that isn't blank."""
    # pyarrow decompresses by the suffix, and raises for a file that is cut off. It can't iterate over lines.
    with io.BufferedReader(pyarrow.input_stream(str(file))) as stream:
        if kind in WHOLE:
            yield str(file), stream.read().decode(errors='replace')
            return
        for number, line in enumerate(stream, 1):
            if line.strip():
                name = f'{file}:{number}'
                record = files.parse_object(line.decode(errors='replace'), name)
                if not isinstance(record.get(field), str):
                    raise UserError(f'{name}: no text in field {field!r}, has {" ".join(record)}')
                # JSON can hold half of a surrogate pair, and UTF-8 can't.
                yield name, record[field].encode(errors='surrogatepass').decode(errors='replace')


def _parquet_rows(file: Path, field: str) -> Iterator[tuple[str, str]]:
    """(name, text of the field) of each row."""
    table = pyarrow.parquet.ParquetFile(file)
    schema, number = table.schema_arrow, 0
    if field not in schema.names or schema.field(field).type not in (pyarrow.string(), pyarrow.large_string()):
        raise UserError(f'{file}: no text in field {field!r}, has {" ".join(schema.names)}')
    for batch in table.iter_batches(columns=[field]):
        # As bytes, since pyarrow refuses to make text of what isn't UTF-8.
        for data in batch.column(0).cast(pyarrow.large_binary()).to_pylist():
            number += 1
            if data is None:
                raise UserError(f'{file}:{number}: no text in field {field!r}, it is null')
            yield f'{file}:{number}', data.decode(errors='replace')


def sources() -> list[Document]:
    """The standard library's source files without its tests, sorted by path."""
    return [Document(_read_source(file), name) for name, file in _library_files()]


def source_identity(packages: Sequence[str] = ()) -> list:
    # The files' sizes tell libraries apart without reading them.
    interpreter = f'{platform.python_implementation()} {platform.python_version()}'
    versions = [(name, importlib.metadata.version(name)) for name in packages]
    return [interpreter, [(name, file.stat().st_size) for name, file in _library_files()], versions]


# Parsing all modules takes many seconds, and the texts take only 16 MB.
@functools.cache
def docstrings() -> list[Document]:
    """pydoc's topics, then one document for each module of the library and the dependencies that has docstrings."""
    documents = [Document(text, f'pydoc/{topic}') for topic, text in sorted(pydoc_data.topics.topics.items())]
    for name, file in itertools.chain(_library_files(), *map(_package_files, DEPENDENCIES)):
        module = name.removesuffix('.py').replace('/', '.').removesuffix('.__init__')
        if text := _docstrings(_read_source(file), module):
            documents.append(Document(text, name))
    return documents


def _library_files() -> list[tuple[str, Path]]:
    """(name inside the library, file) of its .py files without its tests, sorted."""
    root, found = Path(sysconfig.get_path('stdlib')), []
    for folder, below, names in os.walk(root):
        # os.walk descends into what stays in `below`. config-* and _sysconfigdata hold this machine's paths.
        below[:] = [name for name in below if name not in SKIPPED and not name.startswith('config-')]
        kept = [Path(folder, name) for name in names if name.endswith('.py') and not name.startswith('_sysconfigdata')]
        found += [(file.relative_to(root).as_posix(), file) for file in kept]
    return sorted(found)


def _package_files(dependency: str) -> list[tuple[str, Path]]:
    """(name, file) of the .py files of an installed package without its tests, sorted by the parts of the name."""
    found = [(name, Path(name.locate())) for name in sorted(importlib.metadata.files(dependency))]
    # Some packages keep their tests beside what they test.
    return [
        (name.as_posix(), file)
        for name, file in found
        if name.suffix == '.py' and not TESTS & set(name.parts) and not name.stem.endswith('_test') and file.is_file()
    ]


def _read_source(file: Path) -> str:
    # Decodes as the source's own encoding line says.
    with tokenize.open(file) as stream:
        return stream.read()


def _docstrings(source: str, module: str) -> str:
    """Every docstring of a module under its qualified name, in the order of the source."""
    texts = []

    def visit(node: ast.AST, name: str) -> None:
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (doc := ast.get_docstring(node)):
            texts.append(f'{name}\n\n{doc}\n')
        for child in getattr(node, 'body', ()):
            visit(child, f'{name}.{child.name}' if hasattr(child, 'name') else name)

    with warnings.catch_warnings():
        # Invalid escapes in other people's source aren't the user's business.
        warnings.simplefilter('ignore')
        visit(ast.parse(source), module)
    return '\n\n'.join(texts)
