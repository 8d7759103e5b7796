"""Datasets of TFDS's own catalogue that need neither Beam nor TensorFlow, from files that are already here."""

from pathlib import Path
from typing import NoReturn

import tensorflow_datasets as tfds

from nca_jax.data.builder import Corpus, quiet_absl
from nca_jax.errors import FieldError, UserError, check


def catalogue(data_dir: Path, name: str, path: str, field: str) -> Corpus:
    """Dataset `name` (or `name/config`) of which the feature `field` is text; its `train` split gives the documents.

    path: a TFDS data folder that has it prepared as ArrayRecord, which is only read; or a folder with the files that
    TFDS would download or asks to be put there, from which it is built in `data_dir`. Nothing is ever downloaded.
    Raises UserError with the reason where TFDS would need Beam, TensorFlow or a network.
    """
    corpus = f'tfds:{name}'
    root = Path(path).expanduser()
    check(bool(path) and root.is_dir(), 'path', path, f'must be the folder that holds {corpus} or its source files')
    builder = _find(corpus, name, root)
    if builder.is_prepared():
        kind = builder.info.file_format.value
        if kind != 'array_record':
            raise UserError(f'{corpus}: prepared in {root} as {kind}, which needs TensorFlow; it must be array_record')
    else:
        builder = _find(corpus, name, data_dir)
        if isinstance(builder, tfds.core.BeamBasedBuilder):
            raise UserError(f'{corpus}: TFDS builds it with Apache Beam, which this project does without')
        _forbid_downloads(builder, corpus, root)
    texts = [key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Text)]
    check(field in texts, 'field', field, f'must be a text of {corpus}: {" ".join(texts)}')
    return Corpus(name.replace('/', '_'), builder, field, split='train', source_files=str(root))


def _find(corpus: str, name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    if ':' in name:
        raise FieldError('corpus', corpus, 'must be of the catalogue proper, without a namespace or version')
    try:
        with quiet_absl():
            return tfds.builder(name, data_dir=str(data_dir))
    except tfds.core.DatasetNotFoundError:
        raise FieldError('corpus', corpus, 'TFDS has none of this name that needs no TensorFlow') from None
    except ModuleNotFoundError as error:
        raise UserError(f'{corpus}: TFDS needs {error.name} for it, which is not installed') from error
    except ValueError as error:  # an unknown config of a known dataset
        raise FieldError('corpus', corpus, str(error).splitlines()[0]) from error


def _forbid_downloads(builder: tfds.core.DatasetBuilder, corpus: str, root: Path) -> None:
    """TFDS has no offline mode: it takes files that it finds, and here asks for the others."""
    make = builder._make_download_manager

    def refuse(resource, *_, **__) -> NoReturn:
        url = getattr(resource, 'url', resource)
        raise UserError(f'{corpus}: its source file is not in {root}, and nothing is downloaded here: get {url}')

    def offline(*args, **kwargs) -> tfds.download.DownloadManager:
        manager = make(*args, **kwargs)
        manager._download = refuse
        return manager

    builder._make_download_manager = offline
