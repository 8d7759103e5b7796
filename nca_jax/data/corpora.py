"""The corpora by name: what the interpreter brings, a user's own files, published files, and datasets of TFDS.

Every corpus is read where it lies, without a network, and again for each pass over it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nca_jax.batch import check_vocab
from nca_jax.data import documents
from nca_jax.data.documents import Document
from nca_jax.errors import FieldError, check

# Every byte and the end of text.
LEAST_VOCAB = 257
# Published corpora are read with GPT-2's tokenizer alone, since their tokens were counted with it.
GPT2_VOCAB = 50_257
# What the first pass keeps of a document: a digest of the text, its size in UTF-8, whether it holds U+FFFD (which
# replaces bytes that aren't UTF-8), and `Document.valid`.
SCANNED = np.dtype([('digest', 'S16'), ('bytes', np.int64), ('replaced', np.bool_), ('valid', np.bool_)])
# (train_N, valid_N): which documents are on each side. Some may be on none.
Sides = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Where text comes from and how it becomes tokens."""

    # python_stdlib, python_docs, text_files, openwebtext, openwebmath, codeparrot, c4 or tfds:NAME.
    corpus: str
    # The user's file, folder or glob; for tfds:NAME the folder where TFDS has it; '' for python_*.
    path: str
    # The field with the text, in JSON lines and TFDS examples; '' where none is needed or the corpus fixes it.
    field: str
    # A tokenizer.json, or '' to train one on the training split.
    tokenizer: str
    # Tokens of the trained tokenizer, 0 where a file is given.
    vocab_size: int
    # Share of the documents that validate, unless the corpus has a published division.
    valid_share: float
    # A folder that runs share, or '' for the run's own.
    cache: str

    def __post_init__(self):
        check(0 < self.valid_share < 1, 'valid_share', self.valid_share, 'must be between 0 and 1')
        size = self.vocab_size
        check_vocab(size, 'vocab_size', size)
        if self.tokenizer:
            check(size == 0, 'vocab_size', size, 'must be 0 where a tokenizer is given, which has its own')
        else:
            check(size >= LEAST_VOCAB, 'vocab_size', size, f'must be at least {LEAST_VOCAB}, or name a tokenizer')


def by_content(scanned_N: np.ndarray, valid_share: float) -> Sides:
    """Deduplicates; a document is validation if its digest, as a number in [0, 1), is below the share.

    So the side of a document depends on its text alone, and no text is on both sides.
    """
    # The first of equal documents stays.
    first_N = np.zeros(len(scanned_N), bool)
    first_N[np.unique(scanned_N['digest'], return_index=True)[1]] = True
    # NumPy pads a digest that ends in zeros, so its first 8 bytes are always 8.
    valid_N = scanned_N['digest'].astype('S8').view('>u8') / 2.0**64 < valid_share
    return first_N & ~valid_N, first_N & valid_N


def as_published(scanned_N: np.ndarray, valid_share: float) -> Sides:
    """The publisher's own division, untouched."""
    return ~scanned_N['valid'], scanned_N['valid']


def by_permutation(scanned_N: np.ndarray, valid_share: float, test_size: float, seed: int) -> Sides:
    """The sides of `datasets.Dataset.train_test_split(test_size, seed=seed, shuffle=True)`, as nanoGPT published it.

    That function also shuffles each side. Here the documents stay in the corpus's order, so that one pass reads them.
    """
    valid_N = np.zeros(len(scanned_N), bool)
    held = int(np.ceil(test_size * len(scanned_N)))
    valid_N[np.random.default_rng(seed).permutation(len(scanned_N))[:held]] = True
    return ~valid_N, valid_N


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a corpus is read and divided, and what is known about a published one."""

    # Repositories on the Hugging Face hub. The paper names no commit; these are read from branch main.
    source: str = ''
    # The field with the text; '' where the config names it.
    field: str = ''
    divide: Callable[[np.ndarray, float], Sides] = by_content
    # Tokens of each side, end of text included, that somebody counted and published.
    expected: Mapping[str, int] = dataclasses.field(default_factory=dict)


# The published corpora, each read from the user's copy of its files.
RECIPES = {
    # Licence CC0-1.0. Divided by nanoGPT's data/openwebtext/prepare.py. Its README gives these counts, its script
    # 9,035,582,198 and 4,434,897: the same total, cut elsewhere by another version of the dataset. Both pass the check.
    'openwebtext': Recipe(
        source='Skylion007/openwebtext',
        field='text',
        divide=functools.partial(by_permutation, test_size=0.0005, seed=2357),
        expected={'train': 9_035_582_489, 'valid': 4_434_606},
    ),
    # Licence ODC-By-1.0. OpenWebMath, refined by ProX.
    'openwebmath': Recipe(source='gair-prox/open-web-math-pro', field='text'),
    # Each file has its own licence, in its field `license`.
    'codeparrot': Recipe(
        source='codeparrot/codeparrot-train-v2-near-dedup and codeparrot/codeparrot-valid-v2-near-dedup',
        field='content',
        divide=as_published,
    ),
    # Licence ODC-By-1.0.
    'c4': Recipe(source='allenai/c4, folder en', field='text', divide=as_published),
}


class Corpus(NamedTuple):
    """Where documents come from."""

    name: str
    # A JSON value that changes with the documents and is quickly known, such as sizes and times of files.
    source: object
    # Reads all documents, in the same order at every call.
    read: Callable[[], Iterable[Document]]
    recipe: Recipe = Recipe()


# Corpora that every interpreter brings.
BUILT_IN = {
    'python_stdlib': lambda: Corpus('python_stdlib', documents.source_identity(), documents.sources),
    'python_docs': lambda: Corpus(
        'python_docs', documents.source_identity(documents.DEPENDENCIES), documents.docstrings
    ),
}


def open_corpus(config: TextConfig) -> Corpus:
    """The corpus that the config names, not read yet. Raises UserError."""
    name = config.corpus
    if name in BUILT_IN:
        for unused in ('path', 'field'):
            check(not getattr(config, unused), unused, getattr(config, unused), f"must be '' for {name}")
        return BUILT_IN[name]()
    if name == 'text_files' or name in RECIPES:
        return _of_files(config)
    if name.startswith('tfds:'):
        return _prepared_by_tfds(name.removeprefix('tfds:'), config.path, config.field)
    names = ' '.join([*BUILT_IN, 'text_files', *RECIPES, 'tfds:NAME'])
    raise FieldError('corpus', name, f'must be one of {names}')


def _of_files(config: TextConfig) -> Corpus:
    """The user's own files, or the user's copy of a published corpus."""
    name, path, field = config.corpus, config.path, config.field
    recipe, formats = Recipe(), documents.TEXT_FORMATS
    root, valid = Path(path).expanduser(), set()
    if name in RECIPES:
        recipe, formats = RECIPES[name], documents.PUBLISHED_FORMATS
        check(not field, 'field', field, f"must be '' for {name}, which fixes it")
        # A folder, not a glob, so that the paths inside it tell the sides apart.
        folder = f'must be the folder that holds the files of {recipe.source}'
        check(bool(path) and root.is_dir(), 'path', path, folder)
    files = documents.find_files(path, formats)
    if recipe.divide is as_published:
        valid = {file for file in files if 'valid' in file.relative_to(root).as_posix()}
        both = 0 < len(valid) < len(files)
        check(both, 'path', path, "must have files of both sides; those of validation have 'valid' in their path")

    def read() -> Iterator[Document]:
        for file in files:
            yield from documents.read_documents(file, recipe.field or field, file in valid)

    source = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return Corpus(name, source, read, recipe)


def _prepared_by_tfds(name: str, path: str, field: str) -> Corpus:
    """The train split of a dataset that TFDS prepared. `path` is the data folder of TFDS, or the dataset's own.

    It is only read, so this needs neither TensorFlow nor a network.
    """
    # Only these corpora need it, and it takes seconds to import.
    import tensorflow_datasets as tfds

    root = Path(path).expanduser()
    infos = [*root.glob('dataset_info.json'), *root.glob(f'{name}/*/dataset_info.json')] if path and name else []
    build = f"tfds.builder({name!r}, data_dir={path!r}).download_and_prepare(file_format='array_record')"
    check(bool(infos), 'path', path, f'must be the folder in which TFDS has prepared {name}, as {build} does')
    # The latest of several versions.
    builder = tfds.builder_from_directory(str(max(infos).parent))
    kind, features, splits = builder.info.file_format.value, builder.info.features, builder.info.splits
    allowed = f'must be prepared as array_record, and is prepared as {kind}, which needs TensorFlow'
    check(kind == 'array_record', 'path', path, allowed)
    texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    check(field in texts, 'field', field, f'must be a text of tfds:{name}: {" ".join(texts)}')

    def read() -> Iterator[Document]:
        for row, example in enumerate(builder.as_data_source('train')):
            yield Document(example[field].decode(errors='replace'), f'tfds:{name}:{row}')

    source = (builder.info.full_name, field, splits['train'].num_examples, splits['train'].num_bytes)
    # A TFDS name may hold a config, after a slash, and becomes part of a folder's name.
    return Corpus(name.replace('/', '_'), source, read)
