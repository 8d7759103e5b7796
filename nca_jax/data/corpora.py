"""The corpora by name: what the interpreter brings, a user's own files, published files, and datasets of TFDS.

Every corpus is read where it lies, without a network, and again for each pass over it.
"""

import dataclasses
import functools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from nca_jax.data import documents, python, splits
from nca_jax.data.documents import Document
from nca_jax.data.text import TextConfig
from nca_jax.errors import FieldError, UserError, check

GPT2_VOCAB = 50_257
TFDS_ROWS = 1000  # examples read at once


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Where documents come from, and how they divide into training and validation."""

    name: str
    # A JSON value that changes with the documents and is quickly known, such as sizes and times of files.
    source: object
    # Reads all documents, in the same order at every call.
    read: Callable[[], Iterable[Document]]
    divide: splits.Divide = splits.by_content
    # Tokens of each side, end of text included, that somebody counted and published.
    expected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # Size of the tokenizer that they were counted with, 0 for any.
    vocab_size: int = 0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a published corpus is read from the user's copy of its files."""

    # Repositories on the Hugging Face hub. The paper names no commit; these are read from branch main.
    source: str
    field: str
    divide: splits.Divide
    expected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    vocab_size: int = GPT2_VOCAB


RECIPES = {
    # Licence CC0-1.0. Divided by nanoGPT's data/openwebtext/prepare.py. Its README gives these counts, its script
    # 9,035,582,198 and 4,434,897: the same total, cut elsewhere by another version of the dataset. Both pass the check.
    'openwebtext': Recipe(
        source='Skylion007/openwebtext',
        field='text',
        divide=functools.partial(splits.by_permutation, test_size=0.0005, seed=2357),
        expected={'train': 9_035_582_489, 'valid': 4_434_606},
    ),
    # Licence ODC-By-1.0. OpenWebMath, refined by ProX.
    'openwebmath': Recipe(source='gair-prox/open-web-math-pro', field='text', divide=splits.by_content),
    # Each file has its own licence, in its field `license`.
    'codeparrot': Recipe(
        source='codeparrot/codeparrot-train-v2-near-dedup and codeparrot/codeparrot-valid-v2-near-dedup',
        field='content',
        divide=splits.as_published,
    ),
    # Licence ODC-By-1.0.
    'c4': Recipe(source='allenai/c4, folder en', field='text', divide=splits.as_published),
}


# Corpora that every interpreter brings.
BUILT_IN = {
    'python_stdlib': lambda: Corpus('python_stdlib', python.source_identity(), python.sources),
    'python_docs': lambda: Corpus('python_docs', python.docs_identity(), python.docstrings),
}


def open_corpus(config: TextConfig) -> Corpus:
    """The corpus that the config names, not read yet. Raises UserError."""
    name, errors = config.corpus, config.encoding_errors
    if name in BUILT_IN:
        for unused in ('path', 'field'):
            check(not getattr(config, unused), unused, getattr(config, unused), f"must be '' for {name}")
        return BUILT_IN[name]()
    if name == 'text_files':
        files = documents.find_files(config.path, documents.TEXT_FORMATS)
        return Corpus(name, _stat(files), lambda: _read(files, config.field, errors))
    if name in RECIPES:
        check(not config.field, 'field', config.field, f"must be '' for {name}, which fixes it")
        return _published(name, RECIPES[name], config.path, errors)
    if name.startswith('tfds:'):
        return _prepared_by_tfds(name.removeprefix('tfds:'), config.path, config.field, errors)
    known = ' '.join([*BUILT_IN, 'text_files', *RECIPES, 'tfds:NAME'])
    raise FieldError('corpus', name, f'must be one of {known}')


def open_tfds(name: str, path: str) -> tfds.core.DatasetBuilder:
    """The dataset that TFDS has prepared as ArrayRecord. `path` is TFDS's data folder, or the dataset's own.

    It is only read, so this needs neither TensorFlow nor a network. Raises UserError.
    """
    root = Path(path).expanduser()
    infos = [*root.glob('dataset_info.json'), *root.glob(f'{name}/*/dataset_info.json')] if path and name else []
    build = f"tfds.builder({name!r}, data_dir={path!r}).download_and_prepare(file_format='array_record')"
    check(bool(infos), 'path', path, f'must be the folder in which TFDS has prepared {name}, as {build} does')
    builder = tfds.builder_from_directory(str(max(infos).parent))
    kind = builder.info.file_format.value
    if kind != 'array_record':
        raise UserError(f'path = {path!r}: prepared as {kind}, which needs TensorFlow; it must be array_record')
    return builder


def _published(name: str, recipe: Recipe, path: str, errors: str) -> Corpus:
    """A recipe's corpus. If its division is published, the files with `valid` in their path validate."""
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise UserError(f'path = {path!r}: must be the folder that holds the files of {recipe.source}')
    files, valid = documents.find_files(path, documents.PUBLISHED_FORMATS), set()
    if recipe.divide is splits.as_published:
        valid = {file for file in files if 'valid' in file.relative_to(root).as_posix()}
        if len(valid) in (0, len(files)):
            missing = 'train' if valid else 'valid'
            raise UserError(f"path = {path!r}: no {missing} file (validation files have 'valid' in their path)")
    read = functools.partial(_read, files, recipe.field, errors, valid)
    return Corpus(name, _stat(files), read, recipe.divide, recipe.expected, recipe.vocab_size)


def _stat(files: Iterable[Path]) -> list:
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _read(files: Iterable[Path], field: str, errors: str, valid: Container[Path] = ()) -> Iterator[Document]:
    for file in files:
        yield from documents.read_documents(file, field, errors, file in valid)


def _prepared_by_tfds(name: str, path: str, field: str, errors: str) -> Corpus:
    """The train split of a dataset of TFDS."""
    builder = open_tfds(name, path)
    texts = [key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Text)]
    check(field in texts, 'field', field, f'must be a text of tfds:{name}: {" ".join(texts)}')
    if 'train' not in builder.info.splits:
        raise UserError(f'corpus tfds:{name}: no split train, has {" ".join(builder.info.splits)}')
    train = builder.info.splits['train']

    def read() -> Iterator[Document]:
        examples = builder.as_data_source('train')
        for start in range(0, len(examples), TFDS_ROWS):
            rows = range(start, min(start + TFDS_ROWS, len(examples)))
            for row, example in zip(rows, examples.__getitems__(rows), strict=True):
                place = f'tfds:{name}:{row}'
                text, replaced = documents.decode(example[field], place, errors)
                yield Document(text, place, replaced)

    source = (builder.info.full_name, field, train.num_examples, train.num_bytes)
    return Corpus(name.replace('/', '_'), source, read)
