"""The corpora that need no files of the user's, TFDS's catalogue, and that none of it needs TensorFlow or a network."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from nca_jax import cli
from nca_jax.data import corpora, documents, text
from nca_jax.errors import UserError
from nca_jax.progress import silent


def config(**changes):
    fields = {
        'corpus': 'python_stdlib',
        'path': '',
        'field': '',
        'tokenizer': '',
        'vocab_size': 512,
        'valid_share': 0.05,
        'cache': '',
    }
    return text.TextConfig(**(fields | changes))


def test_the_standard_library_is_whole_and_without_tests():
    found = {document.name: document.text for document in documents.sources()}
    assert list(found) == sorted(found)
    assert {'argparse.py', 'asyncio/base_events.py', 'json/decoder.py', 'unittest/mock.py'} <= found.keys()
    assert not [name for name in found if {'test', 'tests', 'idle_test', 'site-packages'} & set(name.split('/'))]
    with open(sys.modules['argparse'].__file__, encoding='utf-8') as source:
        assert found['argparse.py'] == source.read()
    assert sum(map(len, found.values())) > 8_000_000


@pytest.mark.full
def test_the_standard_library_prepares_to_the_byte(tmp_path):
    """All of it: the documents' bytes are those of the shards and of the tokens."""
    rows = text.scan(documents.sources(), silent)
    found = text.prepare_text(config(cache=str(tmp_path / 'cache')), 'unused')
    _, first = np.unique(rows['digest'], return_index=True)
    assert found.train.bytes + found.valid.bytes == rows['bytes'][first].sum()
    assert found.train.documents + found.valid.documents == len(first)
    tokens = found.train.read(0, len(found.train))
    assert found.token_bytes_V[tokens].sum(dtype=np.int64) == found.train.bytes


def test_python_docs_are_prose_of_the_library_and_the_dependencies(monkeypatch):
    some = documents._library_files()[:20]
    monkeypatch.setattr(documents, '_library_files', lambda: list(some))
    monkeypatch.setattr(documents, 'DEPENDENCIES', ('absl-py',))
    found = {document.name: document.text for document in documents.docstrings.__wrapped__()}
    assert found['pydoc/lambda'].strip()
    assert found['_collections_abc.py'].startswith('_collections_abc\n\nAbstract Base Classes')
    assert '\n\n_collections_abc.Set\n\nA set is a finite' in found['_collections_abc.py']
    assert 'absl.flags' in found['absl/flags/__init__.py']


@pytest.mark.full
def test_python_docs_are_whole():
    found = {document.name: document.text for document in documents.docstrings()}
    assert {'jax/_src/lax/lax.py', 'numpy/lib/_function_base_impl.py', 'argparse.py', 'pydoc/lambda'} <= found.keys()
    assert sum(map(len, found.values())) > 5_000_000


def test_tests_of_dependencies_are_left_out():
    names = {name for name, _ in documents._package_files('optax')}
    assert 'optax/_src/transform.py' in names
    assert not [name for name in names if name.endswith('_test.py')]


def test_docstrings_carry_their_qualified_names():
    source = '"""Top."""\nclass A:\n    """Of A."""\n    async def f(self):\n        "Of f."\n        def g(): "G."\n'
    expected = ('m\n\nTop.\n', 'm.A\n\nOf A.\n', 'm.A.f\n\nOf f.\n', 'm.A.f.g\n\nG.\n')
    assert documents._docstrings(source, 'm') == '\n\n'.join(expected)
    assert documents._docstrings('x = 1\n', 'm') == ''


class NcaToyTexts(tfds.core.GeneratorBasedBuilder):
    """A dataset that a user has prepared with TFDS."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        features = {'label': np.int64, 'body': tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {'train': self._generate_examples(0), 'test': self._generate_examples(1)}

    def _generate_examples(self, side):
        for number in range(side, 200, 2):
            yield number, {'label': number, 'body': f'line {number} of a toy'}


@pytest.fixture
def toy(tmp_path):
    NcaToyTexts(data_dir=str(tmp_path / 'tfds'), file_format='array_record').download_and_prepare()
    return tmp_path


def toy_config(toy, **changes):
    fields = {'corpus': 'tfds:nca_toy_texts', 'path': str(toy / 'tfds'), 'field': 'body', 'vocab_size': 260}
    return config(**(fields | changes))


@pytest.mark.parametrize('below', ['', 'nca_toy_texts/1.0.0'])
def test_a_dataset_of_tfds_is_read_where_it_lies(toy, below, monkeypatch):
    monkeypatch.setattr('socket.getaddrinfo', None)
    before = {file: file.stat().st_mtime_ns for file in (toy / 'tfds').rglob('*')}
    found = text.prepare_text(toy_config(toy, path=str(toy / 'tfds' / below)), toy / 'out')
    assert found.train.documents + found.valid.documents == 100  # the train split
    tokens = np.concatenate([store.read(0, len(store)) for store in (found.train, found.valid)]).tolist()
    lines = found.tokenizer.decode(tokens, skip_special_tokens=False).split('<|endoftext|>')
    assert sorted(lines[:-1]) == sorted(f'line {number} of a toy' for number in range(0, 200, 2))
    assert {file: file.stat().st_mtime_ns for file in (toy / 'tfds').rglob('*')} == before
    assert {path.name for path in (toy / 'out').iterdir()} == {'lock', 'tokens'}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'corpus': 'tfds:nosuch'}, 'must be the folder in which TFDS has prepared nosuch, as tfds.builder'),
        ({'field': 'label'}, r"field = 'label': must be a text of tfds:nca_toy_texts: body"),
        ({'path': ''}, "path = '': must be the folder in which TFDS has prepared nca_toy_texts"),
    ],
)
def test_what_tfds_has_not_prepared_is_refused_with_the_reason(toy, change, message):
    with pytest.raises(UserError, match=message) as caught:
        text.prepare_text(toy_config(toy, **change), toy / 'out')
    assert '\n' not in str(caught.value)


def test_a_copy_that_only_tensorflow_reads_is_refused(toy):
    info = toy / 'tfds' / 'nca_toy_texts' / '1.0.0' / 'dataset_info.json'
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(UserError, match='as tfrecord, which needs TensorFlow'):
        text.prepare_text(toy_config(toy), toy / 'again')


OFFLINE = """
import socket, sys
def refuse(*arguments, **named):
    raise RuntimeError('a network')
socket.socket.connect = socket.getaddrinfo = refuse
from nca_jax import cli
cli.main(['prepare', '--corpus=text_files', f'--path={sys.argv[1]}', '--vocab_size=260', f'--out={sys.argv[2]}'])
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


def test_the_command_ends_with_one_line_and_code_2_on_bad_input(tmp_path, capsys):
    assert cli.main(['prepare', '--corpus=nope', f'--out={tmp_path / "out"}']) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: corpus = 'nope': must be one of python_stdlib python_docs text_files")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / 'out').exists()


def test_the_help_names_every_corpus(capsys):
    with pytest.raises(SystemExit):
        cli.main(['prepare', '--help'])
    words = capsys.readouterr().out.replace(',', ' ').split()
    assert {*corpora.BUILT_IN, *corpora.RECIPES, 'text_files', 'tfds:NAME'} <= set(words)
