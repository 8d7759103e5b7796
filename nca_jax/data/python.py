"""Two corpora that every interpreter brings: the standard library's source (code) and documentation (prose)."""

import ast
import functools
import importlib.metadata
import os
import platform
import pydoc_data.topics
import sysconfig
import tokenize
import warnings
from pathlib import Path

from nca_jax.data.documents import Document

TESTS = {'test', 'tests', 'idle_test'}
# Other people's packages, and pydoc's topics, which are prose.
SKIPPED = TESTS | {'site-packages', 'dist-packages', 'pydoc_data'}
# The package requires them, so that every installation has them.
DEPENDENCIES = (
    *('absl-py', 'flax', 'grain', 'jax', 'matplotlib', 'ml-collections', 'numpy', 'optax', 'orbax-checkpoint'),
    *('rich', 'scipy', 'tensorflow-datasets', 'tokenizers'),
)


def sources() -> list[Document]:
    """The standard library's source files without its tests, sorted by path."""
    return [Document(_read_source(file), name.as_posix()) for file, name in _library_files()]


def source_identity() -> list:
    # The files' sizes tell libraries apart without reading them.
    interpreter = f'{platform.python_implementation()} {platform.python_version()}'
    return [interpreter, [(name.as_posix(), file.stat().st_size) for file, name in _library_files()]]


# Parsing all modules takes many seconds, and the texts take only 16 MB.
@functools.cache
def docstrings() -> list[Document]:
    """pydoc's topics, then one document for each module of the library and the dependencies that has docstrings."""
    documents = [Document(text, f'pydoc/{topic}') for topic, text in sorted(pydoc_data.topics.topics.items())]
    modules = _library_files()
    for dependency in DEPENDENCIES:
        modules += _package_files(dependency)
    for file, name in modules:
        module = name.with_suffix('').as_posix().replace('/', '.').removesuffix('.__init__')
        text = _docstrings(_read_source(file), module)
        if text:
            documents.append(Document(text, name.as_posix()))
    return documents


def docs_identity() -> list:
    return [source_identity(), [(name, importlib.metadata.version(name)) for name in DEPENDENCIES]]


def _library_files() -> list[tuple[Path, Path]]:
    """The library's .py files without its tests, and their names inside it, sorted by name."""
    root, files = Path(sysconfig.get_path('stdlib')), []
    for folder, below, names in os.walk(root):
        # os.walk descends into what stays in `below`. config-* and _sysconfigdata hold this machine's paths.
        below[:] = [name for name in below if name not in SKIPPED and not name.startswith('config-')]
        kept = [name for name in names if name.endswith('.py') and not name.startswith('_sysconfigdata')]
        files += [(Path(folder, name), Path(folder, name).relative_to(root)) for name in kept]
    return sorted(files, key=lambda pair: pair[1].as_posix())


def _package_files(dependency: str) -> list[tuple[Path, Path]]:
    """The .py files of an installed package without its tests, and their names inside it, sorted by name."""
    names = sorted(name for name in importlib.metadata.files(dependency) if name.suffix == '.py')
    # Some packages keep their tests beside what they test.
    kept = [name for name in names if not TESTS & set(name.parts) and not name.stem.endswith('_test')]
    return [(Path(name.locate()), Path(name)) for name in kept if Path(name.locate()).is_file()]


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
