"""Documents in files: every format, and every way in which a file can be bad."""

import gzip
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from nca_jax.data import files, recipes
from nca_jax.errors import UserError

TEXTS = ['one\r\n\n', 'zwei Äöü', '三 \U0001f600 <|endoftext|>', '']
LINES = '\n'.join(json.dumps({'body': text, 'other': 1}) for text in TEXTS).encode() + b'\n'


def read(path, field='body', errors='refuse', formats=files.TEXT_FORMATS):
    return [
        document
        for file in files.find_files(str(path), formats)
        for document in files.read_documents(file, field, errors)
    ]


def write(file, data):
    if file.suffix == '.gz':
        data = gzip.compress(data)
    elif file.suffix == '.zst':
        data = zstandard.ZstdCompressor().compress(data)
    file.write_bytes(data)
    return file


@pytest.mark.parametrize('suffix', ['.txt', '.md', '.py', '.txt.gz', '.md.gz', '.py.gz'])
def test_a_file_is_a_document_to_the_byte(tmp_path, suffix):
    file = write(tmp_path / f'a{suffix}', 'a\r\nÄ\t三\n'.encode())
    assert read(tmp_path) == [files.Document('a\r\nÄ\t三\n', str(file))]


@pytest.mark.parametrize('suffix', ['.jsonl', '.jsonl.gz', '.json.gz', '.jsonl.zst'])
def test_a_json_line_is_a_document(tmp_path, suffix):
    file = write(tmp_path / f'a{suffix}', LINES)
    found = read(tmp_path, formats=recipes.FORMATS)
    assert [document.text for document in found] == TEXTS
    assert found[1].name == f'{file}:2'


def test_a_parquet_row_is_a_document(tmp_path):
    table = pyarrow.table({'body': TEXTS * 50, 'other': [1] * 200})
    pyarrow.parquet.write_table(table, tmp_path / 'a.parquet', row_group_size=7)
    assert [document.text for document in read(tmp_path, formats=recipes.FORMATS)] == TEXTS * 50


def test_folders_are_searched_to_their_depth_and_globs_expanded_in_order(tmp_path):
    (tmp_path / 'b').mkdir()
    for name in ('z.txt', 'b/a.md', 'b/skipped.rst'):
        (tmp_path / name).write_text(name)
    assert [document.text for document in read(tmp_path)] == ['b/a.md', 'z.txt']
    assert [document.text for document in read(tmp_path / '*' / '*.md')] == ['b/a.md']
    assert [document.text for document in read(tmp_path / 'z.txt')] == ['z.txt']


def test_what_is_not_utf8_is_replaced_and_marked_or_refused(tmp_path):
    file = write(tmp_path / 'a.txt', b'ab\xffc')
    assert read(tmp_path, errors='replace') == [files.Document('ab�c', str(file), replaced=True)]
    with pytest.raises(UserError, match=r'a\.txt: not UTF-8 at byte 2'):
        read(tmp_path)


def test_half_a_surrogate_pair_in_json_is_not_utf8(tmp_path):
    write(tmp_path / 'a.jsonl', b'{"body": "x\\ud800"}\n')
    (document,) = read(tmp_path, errors='replace')
    assert document.replaced
    document.text.encode()
    with pytest.raises(UserError, match=r'a\.jsonl:1: not UTF-8'):
        read(tmp_path)


@pytest.mark.parametrize(
    ('name', 'data', 'message'),
    [
        ('a.jsonl', b'{"body": "x"}\n{"bod', r'a\.jsonl:2: not JSON'),
        ('a.jsonl', b'{"text": "x"}\n', r"a\.jsonl:1: no text in field 'body', has text"),
        ('a.jsonl', b'{"body": 3}\n', r"no text in field 'body', has body"),
        ('a.jsonl', b'[1]\n', r"no text in field 'body', has list"),
        ('a.txt.gz', None, r'a\.txt\.gz: unreadable'),
        ('a.jsonl.zst', None, r'a\.jsonl\.zst: unreadable'),
        ('a.parquet', None, r'a\.parquet: unreadable'),
        ('a.rst', b'x', r'no file of the formats \.txt'),
    ],
)
def test_bad_files_are_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(b'garbage' if data is None else data)
    formats = recipes.FORMATS if name.endswith(('.zst', '.parquet')) else files.TEXT_FORMATS
    with pytest.raises(UserError, match=message):
        read(tmp_path, formats=formats)


def test_a_cut_gzip_file_is_named(tmp_path):
    (tmp_path / 'a.txt.gz').write_bytes(gzip.compress(b'x' * 1000)[:-9])
    with pytest.raises(UserError, match=r'a\.txt\.gz: unreadable'):
        read(tmp_path)


def test_a_parquet_file_without_the_field_is_named(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({'other': ['x']}), tmp_path / 'a.parquet')
    with pytest.raises(UserError, match=r"a\.parquet: no field 'body', has other"):
        read(tmp_path, formats=recipes.FORMATS)


@pytest.mark.parametrize(('path', 'message'), [('', 'path is empty'), ('nowhere/*.txt', 'no file of the formats')])
def test_paths_that_name_nothing(path, message):
    with pytest.raises(UserError, match=message):
        read(path) if path else files.find_files(path, files.TEXT_FORMATS)


def test_missing_packages_name_their_extra(tmp_path, monkeypatch):
    write(tmp_path / 'a.jsonl.zst', LINES)
    monkeypatch.setitem(sys.modules, 'zstandard', None)
    with pytest.raises(UserError, match=r"a\.jsonl\.zst needs zstandard: pip install 'nca_jax\[formats\]'"):
        read(tmp_path, formats=recipes.FORMATS)
