"""Documents in files: every format, and every way in which a file can be bad."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from nca_jax.data import documents
from nca_jax.errors import UserError

TEXTS = ['one\r\n\n', 'zwei Äöü', '三 \U0001f600 <|endoftext|>', '']
LINES = '\n'.join(json.dumps({'body': text, 'other': 1}) for text in TEXTS).encode() + b'\n'


def read(path, field='body', formats=documents.TEXT_FORMATS):
    return [
        document
        for file in documents.find_files(str(path), formats)
        for document in documents.read_documents(file, field)
    ]


def write(file, data):
    if file.suffix == '.gz':
        data = gzip.compress(data)
    elif file.suffix == '.zst':
        data = pyarrow.compress(data, 'zstd', asbytes=True)
    file.write_bytes(data)
    return file


@pytest.mark.parametrize('suffix', ['.txt', '.md', '.py', '.txt.gz', '.md.gz', '.py.gz'])
def test_a_file_is_a_document_to_the_byte(tmp_path, suffix):
    file = write(tmp_path / f'a{suffix}', 'a\r\nÄ\t三\n'.encode())
    assert read(tmp_path) == [documents.Document('a\r\nÄ\t三\n', str(file))]


@pytest.mark.parametrize('suffix', ['.jsonl', '.jsonl.gz', '.json.gz', '.jsonl.zst'])
def test_a_json_line_is_a_document(tmp_path, suffix):
    file = write(tmp_path / f'a{suffix}', LINES)
    found = read(tmp_path, formats=documents.PUBLISHED_FORMATS)
    assert [document.text for document in found] == TEXTS
    assert found[1].name == f'{file}:2'


def test_a_parquet_row_is_a_document(tmp_path):
    table = pyarrow.table({'body': TEXTS * 50, 'other': [1] * 200})
    pyarrow.parquet.write_table(table, tmp_path / 'a.parquet', row_group_size=7)
    assert [document.text for document in read(tmp_path, formats=documents.PUBLISHED_FORMATS)] == TEXTS * 50


def test_folders_are_searched_to_their_depth_and_globs_expanded_in_order(tmp_path):
    (tmp_path / 'b').mkdir()
    for name in ('z.txt', 'b/a.md', 'b/skipped.rst'):
        (tmp_path / name).write_text(name)
    assert [document.text for document in read(tmp_path)] == ['b/a.md', 'z.txt']
    assert [document.text for document in read(tmp_path / '*' / '*.md')] == ['b/a.md']
    assert [document.text for document in read(tmp_path / 'z.txt')] == ['z.txt']


def test_what_is_not_utf8_is_replaced(tmp_path):
    file = write(tmp_path / 'a.txt', b'ab\xffc')
    assert read(tmp_path) == [documents.Document('ab�c', str(file))]


def test_half_a_surrogate_pair_in_json_is_not_utf8(tmp_path):
    write(tmp_path / 'a.jsonl', b'{"body": "x\\ud800"}\n')
    (document,) = read(tmp_path)
    assert document.text == 'x' + '\ufffd' * 3


@pytest.mark.parametrize(
    ('name', 'data', 'message'),
    [
        ('a.jsonl', b'{"body": "x"}\n{"bod', r'a\.jsonl:2: not JSON'),
        ('a.jsonl', b'{"text": "x"}\n', r"a\.jsonl:1: no text in field 'body', has text"),
        ('a.jsonl', b'{"body": 3}\n', r"no text in field 'body', has body"),
        pytest.param('a.jsonl', b'{"body": ' + b'9' * 5000 + b'}', r'a\.jsonl:1: not JSON', id='long number'),
        pytest.param('a.jsonl', b'[' * 100_000, r'a\.jsonl:1: not JSON', id='deep nest'),
        ('a.jsonl', b'[1]\n', r'must be a JSON object, not list'),
        ('a.txt.gz', None, r'a\.txt\.gz: unreadable'),
        ('a.jsonl.zst', None, r'a\.jsonl\.zst: unreadable'),
        ('a.parquet', None, r'a\.parquet: unreadable'),
        ('a.rst', b'x', r'no file of the formats \.txt'),
    ],
)
def test_bad_files_are_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(b'garbage' if data is None else data)
    formats = documents.PUBLISHED_FORMATS if name.endswith(('.zst', '.parquet')) else documents.TEXT_FORMATS
    with pytest.raises(UserError, match=message):
        read(tmp_path, formats=formats)


@pytest.mark.parametrize('suffix', ['gz', 'zst'])
def test_a_file_that_is_cut_off_is_named_and_several_frames_are_read(tmp_path, suffix):
    file = write(tmp_path / f'a.jsonl.{suffix}', LINES)
    whole = file.read_bytes()
    file.write_bytes(whole * 2)
    assert [document.text for document in read(tmp_path, formats=documents.PUBLISHED_FORMATS)] == TEXTS * 2
    for data in (whole[:-9], whole + whole[:-9]):
        file.write_bytes(data)
        with pytest.raises(UserError, match=rf'a\.jsonl\.{suffix}: unreadable'):
            read(tmp_path, formats=documents.PUBLISHED_FORMATS)


def test_text_in_parquet_that_is_not_utf8_is_replaced(tmp_path):
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, pyarrow.array([b'ok', b'ab\xffc']).buffers())
    pyarrow.parquet.write_table(pyarrow.table({'body': text}), tmp_path / 'a.parquet')
    found = read(tmp_path, formats=documents.PUBLISHED_FORMATS)
    assert [document.text for document in found] == ['ok', 'ab\ufffdc']


@pytest.mark.parametrize('values', [['x', None], [1, 2]])
def test_a_parquet_field_without_text_is_named(tmp_path, values):
    pyarrow.parquet.write_table(pyarrow.table({'body': values}), tmp_path / 'a.parquet')
    with pytest.raises(UserError, match=r"a\.parquet.* field 'body'"):
        read(tmp_path, formats=documents.PUBLISHED_FORMATS)


def test_a_damaged_parquet_page_is_one_line(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({'body': ['x' * 500] * 50}), tmp_path / 'a.parquet', compression='none')
    data = bytearray((tmp_path / 'a.parquet').read_bytes())
    data[4:24] = bytes(20)
    (tmp_path / 'a.parquet').write_bytes(data)
    with pytest.raises(UserError, match=r'a\.parquet: unreadable') as caught:
        read(tmp_path, formats=documents.PUBLISHED_FORMATS)
    assert '\n' not in str(caught.value)


def test_a_parquet_file_without_the_field_is_named(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({'other': ['x']}), tmp_path / 'a.parquet')
    with pytest.raises(UserError, match=r"a\.parquet: no text in field 'body', has other"):
        read(tmp_path, formats=documents.PUBLISHED_FORMATS)


@pytest.mark.parametrize(('path', 'message'), [('', 'must name a file'), ('nowhere/*.txt', 'no file of the formats')])
def test_paths_that_name_nothing(path, message):
    with pytest.raises(UserError, match=message):
        read(path) if path else documents.find_files(path, documents.TEXT_FORMATS)
