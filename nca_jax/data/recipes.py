"""Published corpora, read from the user's own copy of the published files, exactly as published."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nca_jax.data import splits
from nca_jax.data.builder import Corpus, DocumentBuilder, FilesConfig, fingerprint, make_builder, stat_files
from nca_jax.data.files import Document, find_files, read_documents
from nca_jax.errors import UserError

FORMATS = ('.jsonl', '.jsonl.gz', '.json.gz', '.jsonl.zst', '.parquet')
GPT2_VOCAB = 50_257


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is fixed about a published corpus.

    source: the repository on the Hugging Face hub, the files of which the user has. revision: the branch; no commit was
    published with the paper. sides: whether training and validation are separate files. expected: GPT-2 tokens of each
    split, end of text counted, where somebody published them.
    """

    name: str
    source: str
    revision: str
    field: str
    licence: str
    sides: bool
    divide: splits.Divide
    expected: Mapping[str, int]
    vocab_size: int = GPT2_VOCAB


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name='openwebtext',
            source='Skylion007/openwebtext',
            revision='main',
            field='text',
            licence='CC0-1.0',
            sides=False,
            # nanoGPT's data/openwebtext/prepare.py. Its README gives these counts and its script 9,035,582,198 and
            # 4,434,897: the same total, cut elsewhere by another version of the dataset. Both are within the check.
            divide=functools.partial(splits.by_permutation, test_size=0.0005, seed=2357),
            expected={'train': 9_035_582_489, 'valid': 4_434_606},
        ),
        Recipe(
            name='openwebmath',
            source='gair-prox/open-web-math-pro',  # OpenWebMath, refined by ProX
            revision='main',
            field='text',
            licence='ODC-By-1.0',
            sides=False,
            divide=splits.by_content,
            expected={},
        ),
        Recipe(
            name='codeparrot',
            source='codeparrot/codeparrot-train-v2-near-dedup and codeparrot/codeparrot-valid-v2-near-dedup',
            revision='main',
            field='content',
            licence="each file's own, in its field `license`",
            sides=True,
            divide=splits.as_published,
            expected={},
        ),
        Recipe(
            name='c4',
            source='allenai/c4, folder en',
            revision='main',
            field='text',
            licence='ODC-By-1.0',
            sides=True,
            divide=splits.as_published,
            expected={},
        ),
    )
}


class PublishedText(DocumentBuilder, skip_registration=True):
    """A published corpus from the user's copy of its files."""

    def documents(self):
        config = self.builder_config
        return {split: _read(files, config) for split, files in _sides(config.path, config.separate).items()}


@dataclasses.dataclass(eq=False)
class PublishedConfig(FilesConfig):
    """separate: training and validation are separate files."""

    separate: bool = False


def published_text(data_dir: Path, recipe: Recipe, path: str, encoding_errors: str) -> Corpus:
    """The corpus of a recipe from the folder `path`; where sides are separate, files with `valid` in their path below
    it validate and the others train."""
    sides = _sides(path, recipe.sides)
    files = {split: stat_files(found) for split, found in sides.items()}
    config = PublishedConfig(
        name=f'{recipe.name}-{fingerprint([files, recipe.field, encoding_errors])}',
        description=f'{recipe.source}, revision {recipe.revision}, licence {recipe.licence}',
        path=path,
        field=recipe.field,
        encoding_errors=encoding_errors,
        separate=recipe.sides,
    )
    builder = make_builder(PublishedText, data_dir, config)
    return Corpus(recipe.name, builder, 'text', recipe.divide, recipe.expected, recipe.vocab_size)


def _sides(path: str, separate: bool) -> dict[str, list[Path]]:
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise UserError(f'path = {path!r}: must be the folder that holds the published files')
    files = find_files(path, FORMATS)
    if not separate:
        return {'documents': files}
    sides = {'train': [], 'valid': []}
    for file in files:
        sides['valid' if 'valid' in file.relative_to(root).as_posix() else 'train'].append(file)
    for split, found in sides.items():
        if not found:
            raise UserError(f"path = {path!r}: no {split} file (validation files have 'valid' in their path)")
    return sides


def _read(files: Iterable[Path], config: FilesConfig) -> Iterator[Document]:
    for file in files:
        yield from read_documents(file, config.field, config.encoding_errors)
