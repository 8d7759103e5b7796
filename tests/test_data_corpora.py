"""The corpora that need no files of the user's, TFDS's catalogue, and that none of it needs TensorFlow or a network."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from nca_jax.data import builder, catalogue, corpora, prepare, python, splits, text
from nca_jax.errors import UserError


def silent(stage, done, total):
    pass


def config(**changes):
    fields = {
        'corpus': 'python_stdlib',
        'path': '',
        'field': '',
        'encoding_errors': 'refuse',
        'tokenizer': '',
        'vocab_size': 512,
        'valid_share': 0.05,
        'cache': '',
    }
    return text.TextConfig(**(fields | changes))


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('corpora')


@pytest.fixture(scope='module')
def stdlib(data_dir):
    corpus = corpora.python_stdlib(data_dir)
    return splits.open_source(builder.build(corpus, silent), 'documents')


def test_the_standard_library_is_whole_and_without_tests(stdlib):
    names = [example['name'].decode() for example in stdlib.__getitems__(list(range(len(stdlib))))]
    assert names == sorted(names)
    assert {'argparse.py', 'asyncio/base_events.py', 'json/decoder.py', 'unittest/mock.py'} <= set(names)
    assert not [name for name in names if {'test', 'tests', 'idle_test', 'site-packages'} & set(name.split('/'))]
    example = stdlib[names.index('argparse.py')]
    with open(sys.modules['argparse'].__file__, encoding='utf-8') as source:
        assert example['text'].decode() == source.read()
    assert sum(len(example['text']) for example in stdlib) > 8_000_000


@pytest.mark.full
def test_the_standard_library_prepares_to_the_byte(data_dir, stdlib):
    """All of it, with the real builder: the documents' bytes are those of the shards and of the tokens."""
    rows = splits.scan(stdlib, 'text', 'refuse', silent)
    found = prepare.prepare_text(config(cache=str(data_dir / 'cache')), 'unused')
    _, first = np.unique(rows.digest_N, return_index=True)
    assert found.train.bytes + found.valid.bytes == rows.bytes_N[first].sum()
    assert found.train.documents + found.valid.documents == len(first)
    tokens = found.train.read(0, len(found.train))
    assert found.token_bytes_V[tokens].sum(dtype=np.int64) == found.train.bytes


def test_python_docs_are_prose_of_the_library_and_the_dependencies():
    found = {document.name: document.text for document in itertools.islice(python.docstrings(), 100)}
    assert found['pydoc/lambda'].strip()
    assert found['_collections_abc.py'].startswith('_collections_abc\n\nAbstract Base Classes')
    assert '\n\n_collections_abc.Set\n\nA set is a finite' in found['_collections_abc.py']
    names = {file.as_posix() for _, file in python._modules('optax')}
    assert 'optax/_src/transform.py' in names
    assert not [name for name in names if name.endswith('_test.py')]


def test_docstrings_carry_their_qualified_names():
    source = '"""Top."""\nclass A:\n    """Of A."""\n    async def f(self):\n        "Of f."\n        def g(): "G."\n'
    expected = ('m\n\nTop.\n', 'm.A\n\nOf A.\n', 'm.A.f\n\nOf f.\n', 'm.A.f.g\n\nG.\n')
    assert python._docstrings(source, 'm') == '\n\n'.join(expected)
    assert python._docstrings('x = 1\n', 'm') == ''


@pytest.mark.full
def test_python_docs_build(data_dir):
    corpus = corpora.python_docs(data_dir)
    source = splits.open_source(builder.build(corpus, silent), 'documents')
    names = {example['name'].decode() for example in source}
    assert {'jax/_src/lax/lax.py', 'numpy/lib/_function_base_impl.py', 'argparse.py', 'pydoc/lambda'} <= names
    assert sum(len(example['text']) for example in source) > 5_000_000


class NcaToyTexts(tfds.core.GeneratorBasedBuilder):
    """A dataset of the catalogue's kind: registered by name, built from a file that TFDS would download."""

    VERSION = tfds.core.Version('1.0.0')
    URL = ''
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'Put toy.txt there.'

    def _info(self):
        features = {'label': np.int64, 'body': tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        lines = manager.download(self.URL) if self.URL else manager.manual_dir / 'toy.txt'
        return {'train': self._generate_examples(lines, 0), 'test': self._generate_examples(lines, 1)}

    def _generate_examples(self, file, side):
        for number, line in enumerate(file.read_text().splitlines()):
            if number % 2 == side:
                yield number, {'label': number, 'body': line}


class NcaToyNeedsTensorflow(NcaToyTexts):
    """Imports TensorFlow to read its files."""

    def _split_generators(self, manager):
        import tensorflow  # noqa: F401

        return {}


@pytest.fixture
def toy(tmp_path):
    (tmp_path / 'files').mkdir()
    (tmp_path / 'files' / 'toy.txt').write_text('\n'.join(f'line {number} of a toy' for number in range(200)))
    return tmp_path


def toy_config(toy, **changes):
    fields = {'corpus': 'tfds:nca_toy_texts', 'path': str(toy / 'files'), 'field': 'body', 'vocab_size': 260}
    return config(**(fields | changes))


def test_a_dataset_of_the_catalogue_is_built_and_then_read_where_it_lies(toy):
    built = prepare.prepare_text(toy_config(toy), toy / 'out')
    assert built.train.documents + built.valid.documents == 100  # the train split
    assert not list((toy / 'files').glob('nca*'))
    read = prepare.prepare_text(toy_config(toy, path=str(toy / 'out' / 'corpora')), toy / 'again')
    assert read.identity == built.identity
    assert not (toy / 'again' / 'corpora').exists()


def test_nothing_is_downloaded(toy, monkeypatch):
    monkeypatch.setattr(NcaToyTexts, 'URL', 'https://example.invalid/toy.txt')
    monkeypatch.setattr('socket.getaddrinfo', None)
    with pytest.raises(UserError, match=r'nothing is downloaded here: get https://example\.invalid/toy\.txt'):
        prepare.prepare_text(toy_config(toy), toy / 'out')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'corpus': 'tfds:nosuch'}, "corpus = 'tfds:nosuch': TFDS has none of this name"),
        ({'corpus': 'tfds:huggingface:imdb'}, 'without a namespace'),
        ({'corpus': 'tfds:natural_questions'}, 'builds it with Apache Beam'),
        ({'corpus': 'tfds:nca_toy_needs_tensorflow'}, 'builds it with tensorflow, which is not installed'),
        ({'field': 'label'}, r"field = 'label': must be a text of tfds:nca_toy_texts: body"),
        ({'path': ''}, 'must be the folder that holds tfds:nca_toy_texts or its source files'),
    ],
)
def test_what_the_catalogue_cannot_give_is_refused_with_the_reason(toy, change, message):
    with pytest.raises(UserError, match=message) as caught:
        prepare.prepare_text(toy_config(toy, **change), toy / 'out')
    assert '\n' not in str(caught.value)


def test_a_copy_that_only_tensorflow_reads_is_refused(toy):
    folder = toy / 'tf' / 'nca_toy_texts' / '1.0.0'
    built = catalogue.catalogue(toy / 'out', 'nca_toy_texts', str(toy / 'files'), 'body')
    source = builder.build(built, silent)
    folder.mkdir(parents=True)
    for name in ('features.json', 'dataset_info.json'):
        with open(f'{source}/{name}') as stream:
            (folder / name).write_text(stream.read().replace('array_record', 'tfrecord'))
    with pytest.raises(UserError, match='as tfrecord, which needs TensorFlow'):
        prepare.prepare_text(toy_config(toy, path=str(toy / 'tf')), toy / 'again')


OFFLINE = """
import socket, sys
def refuse(*arguments, **named):
    raise RuntimeError('a network')
socket.socket.connect = socket.getaddrinfo = refuse
from nca_jax.data import prepare
prepare.main(['--corpus=text_files', f'--path={sys.argv[1]}', '--vocab_size=260', f'--out={sys.argv[2]}'])
found = {'tensorflow', 'torch', 'transformers', 'datasets', 'apache_beam', 'wandb'} & set(sys.modules)
assert not found, found
"""


def test_preparing_imports_no_tensorflow_and_asks_no_network(tmp_path):
    (tmp_path / 'texts').mkdir()
    for number in range(60):
        (tmp_path / 'texts' / f'{number}.txt').write_text(f'document {number}')
    out = tmp_path / 'out'
    run = subprocess.run(
        [sys.executable, '-c', OFFLINE, str(tmp_path / 'texts'), str(out)],
        capture_output=True,
        text=True,
        env={'HOME': str(tmp_path / 'home'), 'PYTHONPATH': ':'.join(sys.path), 'JAX_PLATFORMS': 'cpu'},
    )
    assert run.returncode == 0, run.stderr
    assert all('━' in line for line in run.stderr.splitlines())  # nothing but bars
    assert not (tmp_path / 'home').exists()


def test_the_command_ends_with_one_line_and_code_2_on_bad_input(tmp_path):
    run = subprocess.run(
        [sys.executable, '-m', 'nca_jax.data.prepare', '--corpus=nope', f'--out={tmp_path / "out"}'],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: corpus = 'nope': must be one of python_stdlib python_docs text_files")
    assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / 'out').exists()
