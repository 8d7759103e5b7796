"""From files to shards: nothing leaks between the splits, bytes are exact, and a killed run goes on where it was."""

import concurrent.futures
import dataclasses
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from nca_jax import cli
from nca_jax.data import corpora, text
from nca_jax.data import tokenizer as bpe
from nca_jax.errors import UserError

VOCAB = 300
PREFIX_SPACE = {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True}


def config(path, /, **changes):
    fields = {
        'corpus': 'text_files',
        'path': str(path),
        'field': 'text',
        'tokenizer': '',
        'vocab_size': 0 if changes.get('tokenizer') else VOCAB,
        'valid_share': 0.2,
        'cache': '',
    }
    return text.TextConfig(**(fields | changes))


def documents(number, seed=0):
    """Texts of a few dozen words, some of them beyond ASCII."""
    rng = random.Random(seed)
    words = ['def', 'return', 'grüße', '細胞', '\U0001f600', '<|endoftext|>', 'automaton', '    ', '\n', '== 1', 'rule']
    return [f'{seed} {number} ' + ' '.join(rng.choices(words, k=rng.randint(5, 60))) for number in range(number)]


def write(folder, texts, name='a.jsonl'):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
    return folder


def decoded(prepared, side):
    """The documents of one side, from its tokens."""
    store = getattr(prepared, side)
    tokens = store.read(0, len(store))
    ends = np.flatnonzero(tokens == bpe.end_of_text(prepared.tokenizer))
    assert ends[-1] == len(tokens) - 1
    return [prepared.tokenizer.decode(part[:-1].tolist(), skip_special_tokens=False) for part in cut(tokens, ends)]


def cut(tokens, ends):
    return np.split(tokens, ends[:-1] + 1)


@pytest.fixture(scope='module')
def texts():
    return documents(150)


@pytest.fixture(scope='module')
def source(tmp_path_factory, texts):
    return write(tmp_path_factory.mktemp('source'), texts + texts[:40] + texts[3:5])


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, source):
    return text.prepare_text(config(source), tmp_path_factory.mktemp('prepared'))


def test_duplicates_go_and_no_document_is_on_both_sides(prepared, texts):
    train, valid = decoded(prepared, 'train'), decoded(prepared, 'valid')
    assert sorted(train + valid) == sorted(texts)
    assert prepared.documents == {'dropped': 42, 'shared': 0, 'replaced': 0}
    assert 10 < len(valid) < 60
    assert (prepared.train.documents, prepared.valid.documents) == (len(train), len(valid))


def test_the_side_of_a_document_depends_on_its_text_alone(tmp_path, prepared, texts):
    others = write(tmp_path, texts[::-2] + documents(60, seed=1))
    again = text.prepare_text(config(others), tmp_path / 'out')
    assert set(decoded(again, 'train')) & set(texts) <= set(decoded(prepared, 'train'))
    assert set(decoded(again, 'valid')) & set(texts) <= set(decoded(prepared, 'valid'))


def test_the_share_of_validation_is_what_was_asked_for():
    digests = np.array([os.urandom(16) for _ in range(20_000)], 'S16')
    scanned = np.zeros(20_000, corpora.SCANNED)
    scanned['digest'] = digests
    for share in (0.01, 0.2, 0.7):
        found = corpora.by_content(scanned, share)[1].mean()
        assert abs(found - share) < 4 * (share * (1 - share) / 20_000) ** 0.5


def test_the_tokenizer_knows_the_training_split_only(tmp_path, prepared, texts):
    valid = set(decoded(prepared, 'valid'))
    train = [text for text in texts if text not in valid]
    without = text.prepare_text(config(write(tmp_path / 'a', [*train, min(valid)])), tmp_path / 'out')
    assert without.tokenizer_identity == prepared.tokenizer_identity
    seen = set()
    for number in range(20):  # a word of one document is learnt where the document trains, and only there
        word = [*texts, f'{number} ' + 'zyzzyva ' * 500]
        found = text.prepare_text(config(write(tmp_path / f'b{number}', word)), tmp_path / 'out')
        trains = word[-1] in decoded(found, 'train')
        assert (found.tokenizer_identity != prepared.tokenizer_identity) == trains
        seen.add(trains)
        if len(seen) == 2:
            break
    assert len(seen) == 2
    assert bpe.train(train, VOCAB).to_str() == prepared.tokenizer.to_str()


def test_bytes_are_exact(prepared):
    for side in ('train', 'valid'):
        store = getattr(prepared, side)
        size = sum(len(text.encode()) for text in decoded(prepared, side))
        assert store.bytes == size
        assert prepared.token_bytes_V[store.read(0, len(store))].sum() == size


def test_any_range_of_tokens_has_the_bytes_of_its_text(prepared):
    tokens = prepared.train.read(0, len(prepared.train))
    for document in cut(tokens, np.flatnonzero(tokens == 0))[:20]:
        whole = prepared.tokenizer.decode(document.tolist()).encode()
        byte_of = {char: byte for byte, char in enumerate_bytes()}
        pieces = [prepared.tokenizer.id_to_token(int(token)) for token in document[:-1]]
        raw = b''.join(bytes(byte_of[char] for char in piece) for piece in pieces)
        assert raw == whole
        for stop in range(0, len(document), 7):
            size = len(b''.join(bytes(byte_of[char] for char in piece) for piece in pieces[:stop]))
            assert prepared.token_bytes_V[document[:stop]].sum() == size


def enumerate_bytes():
    """GPT-2's table of printable characters for bytes, from its definition."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [(byte, chr(byte)) for byte in printable] + [(byte, chr(256 + k)) for k, byte in enumerate(others)]


def test_the_pieces_of_a_text_are_its_bytes(prepared):
    text = 'def f(x):\n\treturn "é\u4e2d\U0001f600" \x00\x7f\u00a0\u00ad'
    found = bpe.pieces(prepared.tokenizer)
    assert b''.join(found[token] for token in prepared.tokenizer.encode(text).ids) == text.encode()
    assert {piece for piece in found if len(piece) == 1} == {bytes([byte]) for byte in range(256)}
    assert found[bpe.end_of_text(prepared.tokenizer)] == b''


def test_text_that_spells_the_end_of_text_is_text(prepared, texts):
    assert any('<|endoftext|>' in text for text in texts)
    ends = (prepared.train.read(0, len(prepared.train)) == 0).sum()
    assert ends == prepared.train.documents


def test_a_second_call_only_opens(tmp_path, source):
    first = text.prepare_text(config(source, cache=str(tmp_path / 'cache')), tmp_path / 'run1')
    stages = []
    second = text.prepare_text(
        config(source, cache=str(tmp_path / 'cache')), tmp_path / 'run2', lambda *stage: stages.append(stage)
    )
    assert (stages, second.identity, second.folder) == ([], first.identity, first.folder)
    assert not (tmp_path / 'run1').exists()


def test_a_changed_file_makes_other_shards(tmp_path, texts):
    folder = write(tmp_path / 'source', texts)
    first = text.prepare_text(config(folder), tmp_path / 'out')
    write(folder, [*texts[:-1], texts[-1] + ' more'])
    assert text.prepare_text(config(folder), tmp_path / 'out').identity != first.identity


def test_the_identity_is_free_of_paths(tmp_path, prepared, texts):
    copy = write(tmp_path / 'elsewhere', texts)
    assert text.prepare_text(config(copy), tmp_path / 'out').identity == prepared.identity


def test_a_loaded_tokenizer_is_used_as_it_is(tmp_path, source, prepared):
    file = tmp_path / 'tokenizer.json'
    file.write_text(json.dumps(json.loads(prepared.tokenizer.to_str()), indent=3))
    found = text.prepare_text(config(source, tokenizer=str(file)), tmp_path / 'out')
    assert (found.tokenizer_identity, found.identity) == (prepared.tokenizer_identity, prepared.identity)
    with pytest.raises(UserError, match='vocab_size = 400: must be 0 where a tokenizer is given'):
        config(source, tokenizer=str(file), vocab_size=400)


@pytest.mark.parametrize(
    ('file', 'damage', 'message'),
    [
        ('train-00000.npy', lambda data: data[:-9], r'train-00000\.npy: not a readable shard .*; delete '),
        ('train-00000.npy', lambda data: b'', r'train-00000\.npy: not a readable shard .*; delete '),
        ('index.json', lambda data: data[:-9], r'index\.json: not JSON'),
    ],
)
def test_damaged_shards_are_named(tmp_path, source, prepared, file, damage, message):
    folder = shutil.copytree(prepared.folder, tmp_path / prepared.folder.name)
    (folder / file).write_bytes(damage((folder / file).read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        text.PreparedText(folder)
    assert '\n' not in str(caught.value)


def test_a_cache_that_cannot_be_made_is_named(tmp_path, source):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'cache=.*file'):
        text.prepare_text(config(source, cache=str(tmp_path / 'file')), tmp_path)


RUN = """
import os, signal, sys
from nca_jax.data import text
text.SHARD_BYTES, text.CHUNK = 1000, 2
config, out, kill_at = text.TextConfig(*eval(sys.argv[1])), sys.argv[2], int(sys.argv[3])
def progress(stage, done, total):
    if stage == 'tokenize train' and 0 < kill_at < done:
        os.kill(os.getpid(), signal.SIGKILL)
print(text.prepare_text(config, out, progress).identity)
"""


def launch(source, out, kill_at=0):
    arguments = repr(dataclasses.astuple(config(source)))
    return subprocess.Popen(
        [sys.executable, '-c', RUN, arguments, str(out), str(kill_at)], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_finish_what_a_killed_one_left(tmp_path, source, prepared):
    assert launch(source, tmp_path, kill_at=7000).wait() == -signal.SIGKILL
    (folder,) = (tmp_path / 'tokens').iterdir()
    left = {file.name: file.stat().st_mtime_ns for file in folder.glob('*.npy')}
    assert len(left) > 3
    assert not (folder / text.INDEX).exists()
    both = [launch(source, tmp_path) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == [prepared.identity] * 2
    assert {name: (folder / name).stat().st_mtime_ns for name in left} == left
    found = text.PreparedText(folder)
    for side in ('train', 'valid'):
        one, other = getattr(found, side), getattr(prepared, side)
        np.testing.assert_array_equal(one.read(0, len(one)), other.read(0, len(other)))
        assert (one.documents, one.bytes) == (other.documents, other.bytes)
    assert not list(folder.glob('.*'))


def test_who_comes_second_waits(tmp_path, source, prepared):
    stages, waiting = [], threading.Event()

    def progress(stage, done, total):
        stages.append(stage)
        waiting.set()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with (tmp_path / 'lock').open('a') as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            result = pool.submit(text.prepare_text, config(source), tmp_path, progress)
            assert waiting.wait(60)
            time.sleep(0.3)
            assert stages == ['wait']
        assert result.result().identity == prepared.identity


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda texts: [*texts[:-1], texts[-1][::-1]], 'corpus text_files: changed while it was read'),
        (lambda texts: texts[:-1], r'tokens stand for \d+ of \d+ bytes; .* text, or the text changed'),
    ],
)
def test_text_that_changes_between_the_passes_is_refused(tmp_path, texts, change, message):
    folder = write(tmp_path / 'source', texts)
    os.utime(folder / 'a.jsonl', (0, 0))

    def progress(stage, done, total):
        if (stage, done) == ('scan', len(texts)):
            write(folder, change(texts))

    with pytest.raises(UserError, match=message):
        text.prepare_text(config(folder), tmp_path / 'out', progress)
    assert not list(tmp_path.rglob(text.INDEX))


def test_vocabularies_above_65536_take_four_bytes(tmp_path, prepared):
    layout = json.loads(prepared.tokenizer.to_str())
    for number in range(VOCAB, 66_000):  # tokens that no merge makes
        layout['model']['vocab'][f'{number:08d}'] = number
    (tmp_path / 'tokenizer.json').write_text(json.dumps(layout))
    found = config(write(tmp_path / 'a', documents(30)), tokenizer=str(tmp_path / 'tokenizer.json'))
    big = text.prepare_text(found, tmp_path / 'out')
    assert np.load(big.folder / 'train-00000.npy').dtype == np.uint32
    assert np.load(prepared.folder / 'train-00000.npy').dtype == np.uint16


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            {'corpus': 'text_fils'},
            r"corpus = 'text_fils': must be one of python_stdlib python_docs ",
        ),
        ({'path': '/no/where'}, r"path = '/no/where': no file of the formats"),
        ({'corpus': 'python_stdlib', 'path': 'x'}, r"path = 'x': must be '' for python_stdlib"),
        ({'field': 'body'}, r"a\.jsonl:1: no text in field 'body', has text"),
        ({'tokenizer': '/no/t.json'}, r"tokenizer = '/no/t\.json': no readable tokenizer\.json"),
        ({'vocab_size': 5000}, r'vocab_size = 5000: this corpus fills \d+ tokens at most'),
        ({'corpus': 'c4', 'field': ''}, r'path = .*: no file of the formats|must have files of both sides'),
        ({'corpus': 'c4'}, r"field = 'text': must be '' for c4"),
    ],
)
def test_bad_input_is_one_line(tmp_path, source, change, message):
    with pytest.raises(UserError, match=message) as caught:
        text.prepare_text(config(source, **change), tmp_path)
    assert '\n' not in str(caught.value)
    assert not list(tmp_path.rglob(text.INDEX))


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ([], 'corpus text_files: no document for train'),
        (['alone'], r'corpus text_files: no document for (train|valid)'),
    ],
)
def test_a_corpus_with_too_little_is_refused(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        text.prepare_text(config(write(tmp_path / 'a', lines)), tmp_path / 'out')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'normalizer': {'type': 'Lowercase'}}, 'must be a byte-level BPE'),
        ({'added_tokens': []}, 'must be a byte-level BPE'),
        (
            {'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True}},
            'loses text',
        ),
    ],
)
def test_tokenizers_that_lose_or_add_text_are_refused(tmp_path, source, prepared, change, message):
    layout = json.loads(prepared.tokenizer.to_str()) | change
    (tmp_path / 'tokenizer.json').write_text(json.dumps(layout))
    with pytest.raises(UserError, match=message):
        text.prepare_text(config(source, tokenizer=str(tmp_path / 'tokenizer.json')), tmp_path / 'out')


def test_replaced_bytes_are_counted(tmp_path, texts):
    folder = write(tmp_path / 'a', texts)
    (folder / 'b.txt').write_bytes(b'caf\xe9')
    assert text.prepare_text(config(folder), tmp_path / 'out').documents['replaced'] == 1


def test_the_command_prepares_and_prints_what_it_made(tmp_path, source, capsys):
    flags = ['--corpus=text_files', f'--path={source}', '--field=text', '--vocab_size=300', f'--out={tmp_path}']
    assert cli.main(['prepare', *flags]) == 0
    printed = capsys.readouterr().out
    assert 'train: ' in printed
    assert 'dropped 42' in printed
    assert cli.main(['prepare', *flags]) == 0
    assert capsys.readouterr().out == printed


def test_openwebtext_is_cut_as_nanogpt_cut_it():
    train, valid = corpora.by_permutation(np.zeros(10, corpora.SCANNED), 0, 0.25, 2357)
    order = np.random.default_rng(2357).permutation(10).tolist()
    sides = [np.flatnonzero(side).tolist() for side in (valid, train)]
    assert sides == [sorted(order[:3]), sorted(order[3:])]


@pytest.mark.full
def test_openwebtext_has_the_rows_that_nanogpts_script_prints():
    train, valid = corpora.by_permutation(np.zeros(8_013_769, corpora.SCANNED), 0, 0.0005, 2357)
    assert (train.sum(), valid.sum()) == (8_009_762, 4_007)
    assert not (train & valid).any()


@pytest.fixture
def small_recipes(monkeypatch, tmp_path, prepared):
    """The recipes with a small tokenizer in GPT-2's place, and without the count that only the whole corpus has."""
    monkeypatch.setattr(corpora, 'GPT2_VOCAB', VOCAB)
    for name, recipe in corpora.RECIPES.items():
        monkeypatch.setitem(corpora.RECIPES, name, dataclasses.replace(recipe, expected={}))
    prepared.tokenizer.save(str(tmp_path / 'gpt2.json'))
    return str(tmp_path / 'gpt2.json')


@pytest.mark.parametrize('name', ['openwebtext', 'openwebmath', 'codeparrot', 'c4'])
def test_recipes_read_published_files(tmp_path, small_recipes, texts, name):
    field, divide = corpora.RECIPES[name].field, corpora.RECIPES[name].divide
    sides = divide is corpora.as_published
    cuts = {'train': texts[:120] + texts[:5], 'valid': texts[118:]} if sides else {'part': texts + texts[:5]}
    for side, found in cuts.items():
        folder = tmp_path / 'data' / f'x-{side}'
        folder.mkdir(parents=True)
        (folder / 'train-00000.jsonl').write_text(''.join(json.dumps({field: text}) + '\n' for text in found))
    recipe = config(tmp_path / 'data', corpus=name, field='', tokenizer=small_recipes)
    found = text.prepare_text(recipe, tmp_path / 'out')
    train, valid = decoded(found, 'train'), decoded(found, 'valid')
    if sides:  # as published: neither cut anew nor rid of duplicates, but what both sides have is counted
        assert (train, valid) == (cuts['train'], cuts['valid'])
        assert found.documents['shared'] == 2
    elif name == 'openwebtext':
        assert (len(train), len(valid)) == (154, 1)
    else:
        assert sorted(train + valid) == sorted(texts)


def test_a_published_count_is_checked_to_a_thousandth(tmp_path, small_recipes, texts, monkeypatch):
    folder = write(tmp_path / 'data', texts)
    recipe = config(folder, corpus='openwebtext', field='', tokenizer=small_recipes)
    tokens = len(text.prepare_text(recipe, tmp_path / 'free').train)
    assert tokens > 1001
    for error, ok in ((0, True), (tokens // 1000, True), (tokens // 500, False), (-tokens // 500, False)):
        fixed = dataclasses.replace(corpora.RECIPES['openwebtext'], expected={'train': tokens + error})
        monkeypatch.setitem(corpora.RECIPES, 'openwebtext', fixed)
        if ok:
            text.prepare_text(recipe, tmp_path / f'out{error}')
        else:
            with pytest.raises(
                UserError, match=rf'openwebtext: {tokens:,} train tokens, published are {tokens + error:,}'
            ):
                text.prepare_text(recipe, tmp_path / f'out{error}')


def test_recipes_take_gpt2s_tokenizer_alone(tmp_path, prepared, texts):
    folder = write(tmp_path / 'data', texts)
    recipe = config(folder, corpus='openwebtext', field='')
    with pytest.raises(
        UserError, match=r"tokenizer = '': must be GPT-2's tokenizer\.json, of 50257 tokens, for openwebtext"
    ):
        text.prepare_text(recipe, tmp_path / 'out')
    prepared.tokenizer.save(str(tmp_path / 'small.json'))
    given = config(folder, corpus='openwebtext', field='', tokenizer=str(tmp_path / 'small.json'))
    with pytest.raises(UserError, match=r"small\.json': must be GPT-2's tokenizer"):
        text.prepare_text(given, tmp_path / 'out')


def test_the_data_that_the_paper_used_is_fixed():
    assert corpora.RECIPES['openwebtext'].expected == {'train': 9_035_582_489, 'valid': 4_434_606}
    assert corpora.GPT2_VOCAB == 50_257
    assert corpora.BUILT_IN.keys() == {'python_stdlib', 'python_docs'}
