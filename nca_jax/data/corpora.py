"""The corpora by name. Two need nothing but the interpreter, one reads a user's own files."""

from pathlib import Path

import tensorflow_datasets as tfds

from nca_jax.data import catalogue, python, recipes
from nca_jax.data.builder import Corpus, DocumentBuilder, FilesConfig, fingerprint, make_builder, stat_files
from nca_jax.data.files import TEXT_FORMATS, find_files, read_documents
from nca_jax.data.text import TextConfig
from nca_jax.errors import FieldError, check


class PythonStdlib(DocumentBuilder, skip_registration=True):
    """Source files of the running interpreter's standard library, without its tests."""

    def documents(self):
        return {'documents': python.sources()}


class PythonDocs(DocumentBuilder, skip_registration=True):
    """Docstrings and pydoc topics of the standard library and of this project's dependencies."""

    def documents(self):
        return {'documents': python.docstrings()}


class TextFiles(DocumentBuilder, skip_registration=True):
    """A user's own text files."""

    def documents(self):
        config = self.builder_config
        files = find_files(config.path, TEXT_FORMATS)
        read = (read_documents(file, config.field, config.encoding_errors) for file in files)
        return {'documents': (document for documents in read for document in documents)}


def open_corpus(config: TextConfig, data_dir: Path) -> Corpus:
    """The corpus that the config names, not built yet; `data_dir` is where TFDS keeps it. Raises UserError."""
    name = config.corpus
    if name in BUILT_IN:
        for unused in ('path', 'field'):
            check(not getattr(config, unused), unused, getattr(config, unused), f"must be '' for {name}")
        return BUILT_IN[name](data_dir)
    if name == 'text_files':
        return text_files(data_dir, config.path, config.field, config.encoding_errors)
    if name in recipes.RECIPES:
        check(not config.field, 'field', config.field, f"must be '' for {name}, which fixes it")
        return recipes.published_text(data_dir, recipes.RECIPES[name], config.path, config.encoding_errors)
    if name.startswith('tfds:'):
        return catalogue.catalogue(data_dir, name.removeprefix('tfds:'), config.path, config.field)
    known = ' '.join([*BUILT_IN, 'text_files', *recipes.RECIPES, 'tfds:NAME'])
    raise FieldError('corpus', name, f'must be one of {known}')


def python_stdlib(data_dir: Path) -> Corpus:
    config = tfds.core.BuilderConfig(name=fingerprint(python.source_identity()))
    return Corpus('python_stdlib', make_builder(PythonStdlib, data_dir, config))


def python_docs(data_dir: Path) -> Corpus:
    config = tfds.core.BuilderConfig(name=fingerprint(python.docs_identity()))
    return Corpus('python_docs', make_builder(PythonDocs, data_dir, config))


def text_files(data_dir: Path, path: str, field: str, encoding_errors: str) -> Corpus:
    files = find_files(path, TEXT_FORMATS)
    name = fingerprint([stat_files(files), field, encoding_errors])
    config = FilesConfig(name=name, path=path, field=field, encoding_errors=encoding_errors)
    return Corpus('text_files', make_builder(TextFiles, data_dir, config))


BUILT_IN = {'python_stdlib': python_stdlib, 'python_docs': python_docs}
