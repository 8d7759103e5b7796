"""What every interpreter brings along: the standard library's source (code) and documentation (prose)."""

import ast
import importlib.metadata
import os
import platform
import pydoc_data.topics
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from nca_jax.data.files import Document
from nca_jax.errors import UserError

TESTS = {'test', 'tests', 'idle_test'}
SKIPPED = TESTS | {'site-packages', 'dist-packages', 'pydoc_data'}  # others' packages, and prose
DEPENDENCIES = (
    *('absl-py', 'flax', 'grain', 'jax', 'matplotlib', 'ml-collections', 'numpy', 'optax', 'orbax-checkpoint'),
    *('rich', 'scipy', 'tensorflow-datasets', 'tokenizers'),
)


def library_files() -> list[Path]:
    """The standard library's .py files without its tests, sorted by their path inside the library."""
    files = []
    for folder, below, names in os.walk(_root()):
        below[:] = [name for name in below if name not in SKIPPED and not name.startswith('config-')]
        # _sysconfigdata and config-*: what the build of this very interpreter wrote, with the machine's paths.
        files += [
            Path(folder, name) for name in names if name.endswith('.py') and not name.startswith('_sysconfigdata')
        ]
    if not files:
        raise UserError(f'corpus python_stdlib: no source in {_root()}, this interpreter came without its library')
    return sorted(files, key=lambda file: file.relative_to(_root()).as_posix())


def sources() -> Iterator[Document]:
    root = _root()
    for file in library_files():
        yield Document(read_source(file), file.relative_to(root).as_posix())


def read_source(file: Path) -> str:
    """Python source, decoded as its own encoding line says."""
    with tokenize.open(file) as stream:
        return stream.read()


def source_identity() -> list:
    """Names the library without reading it: the version and the sizes of the files."""
    root = _root()
    return [_interpreter(), [(file.relative_to(root).as_posix(), file.stat().st_size) for file in library_files()]]


def docstrings() -> Iterator[Document]:
    """First the pydoc topics, then one document for each module that has docstrings."""
    for topic, text in sorted(pydoc_data.topics.topics.items()):
        yield Document(text, f'pydoc/{topic}')
    modules = [(file, file.relative_to(_root())) for file in library_files()]
    for dependency in DEPENDENCIES:
        modules += _modules(dependency)
    for file, name in modules:
        module = name.with_suffix('').as_posix().replace('/', '.').removesuffix('.__init__')
        text = _docstrings(read_source(file), module)
        if text:
            yield Document(text, name.as_posix())


def docs_identity() -> list:
    return [source_identity(), [(name, _distribution(name).version) for name in DEPENDENCIES]]


def _docstrings(source: str, module: str) -> str:
    """Every docstring of a module under its qualified name, in the order of the source."""
    found = []

    def visit(node: ast.AST, name: str) -> None:
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (doc := ast.get_docstring(node)):
            found.append(f'{name}\n\n{doc}\n')
        for child in getattr(node, 'body', ()):
            visit(child, f'{name}.{child.name}' if hasattr(child, 'name') else name)

    with warnings.catch_warnings():  # others' invalid escapes are none of the user's business
        warnings.simplefilter('ignore')
        visit(ast.parse(source), module)
    return '\n\n'.join(found)


def _modules(dependency: str) -> list[tuple[Path, Path]]:
    """The .py files of an installed package without its tests, and their names inside it, sorted by name."""
    names = sorted(name for name in _distribution(dependency).files or () if name.suffix == '.py')
    kept = [name for name in names if not TESTS & set(name.parts) and not name.stem.endswith('_test')]
    return [(Path(name.locate()), Path(name)) for name in kept if Path(name.locate()).is_file()]


def _distribution(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f'corpus python_docs: {name} is not installed') from None


def _interpreter() -> str:
    return f'{platform.python_implementation()} {platform.python_version()}'


def _root() -> Path:
    return Path(sysconfig.get_path('stdlib'))
