"""A corpus is a TFDS builder that writes ArrayRecord files; nothing here needs TensorFlow or a network.

A builder's documents keep their order, in split `documents`, or in `train` and `valid` where the publisher split them.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from nca_jax.data import splits
from nca_jax.data.files import Document
from nca_jax.errors import UserError
from nca_jax.progress import Progress


@dataclasses.dataclass(eq=False)
class FilesConfig(tfds.core.BuilderConfig):
    """Which of the user's files make the corpus, and how they are read."""

    path: str = ''
    field: str = ''
    encoding_errors: str = 'replace'


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A TFDS builder, the feature of its examples that is text, and how its documents divide into the two splits.

    expected: tokens of each split that the publisher counted, empty where none did. vocab_size: of the tokenizer
    that they were counted with, which must be given; 0 where any will do. split: the only TFDS split to read, '' for
    all. source_files: a folder where TFDS finds what its own datasets are built from.
    """

    name: str
    builder: tfds.core.DatasetBuilder
    field: str = 'text'
    divide: splits.Divide = splits.by_content
    expected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    vocab_size: int = 0
    split: str = ''
    source_files: str = ''


class DocumentBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS dataset of texts. The name of its config is a fingerprint of its sources, so a change makes another."""

    VERSION = tfds.core.Version('1.0.0')
    url_infos = None  # downloads nothing, so has no checksums
    progress: Progress = staticmethod(lambda stage, done, total: None)

    def documents(self) -> dict[str, Iterable[Document]]:
        """The documents of each split."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        features = {'text': tfds.features.Text(), 'name': tfds.features.Text(), 'replaced': np.bool_}
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(documents) for split, documents in self.documents().items()}

    def _generate_examples(self, documents: Iterable[Document]) -> Iterator[tuple[int, dict]]:
        number = -1
        for number, document in enumerate(documents):
            self.progress('read', number + 1, None)
            yield number, document._asdict()
        if number < 0:
            raise UserError(f'corpus {self.name}: empty, it has no document')


def fingerprint(parts: object) -> str:
    """16 hex digits that name a JSON value."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def stat_files(files: Iterable[Path]) -> list:
    """What tells that a file has changed, without reading it."""
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def build(corpus: Corpus, progress: Progress) -> str:
    """Writes the corpus if it isn't there yet; the folder that `tfds.builder_from_directory` reads.

    The caller sees to it that no other process builds in the same folder.
    """
    builder = corpus.builder
    builder.progress = progress
    data_dir = Path(builder.data_dir)
    for leftover in data_dir.parent.glob(f'incomplete.*_{data_dir.name}'):  # of a build that was killed
        shutil.rmtree(leftover)
    tfds.disable_progress_bar()  # ours is the one that the user sees
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            files = tfds.download.DownloadConfig(manual_dir=corpus.source_files or None)
            builder.download_and_prepare(file_format='array_record', download_config=files)
    except ModuleNotFoundError as error:
        raise UserError(f'corpus {corpus.name}: TFDS builds it with {error.name}, which is not installed') from error
    return str(builder.data_dir)


def make_builder(kind: type[DocumentBuilder], data_dir: Path, config: tfds.core.BuilderConfig) -> DocumentBuilder:
    with quiet_absl():
        return kind(data_dir=str(data_dir), config=config, file_format='array_record')


@contextlib.contextmanager
def quiet_absl() -> Iterator[None]:
    """TFDS warns of every config that isn't in its own list."""
    logger = logging.getLogger('absl')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
