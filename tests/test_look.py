"""The frame of `show` and `calibrate`: what is printed where, and mistakes in one line."""

import argparse
import json

import numpy as np
import pytest

from nca_jax import cli
from nca_jax.look import output


def test_stdout_holds_the_table_or_the_object_alone(tmp_path, capsys):
    record = {'seed': 7, 'scores': np.array([0.5, np.nan]), 'low': -np.inf}
    args = argparse.Namespace(out=tmp_path, json=True)
    output.save(args, 'numbers.json', record, {'picture.png': b'drawn'}, lambda plain: f'a table of {plain["scores"]}')
    printed = capsys.readouterr()
    files = [str(tmp_path / name) for name in ('picture.png', 'numbers.json')]
    assert json.loads(printed.out) == {'seed': 7, 'scores': [0.5, None], 'low': None}
    assert (tmp_path / 'numbers.json').read_text() == printed.out
    assert (tmp_path / 'picture.png').read_bytes() == b'drawn'
    args.json = False
    output.save(args, 'numbers.json', record, {'picture.png': b'drawn'}, lambda plain: f'a table of {plain["scores"]}')
    assert capsys.readouterr().out == '\n'.join(['a table of [0.5, None]', '', *files, ''])


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('x = unknown', "NameError: name 'unknown' is not defined"),
        ('raise KeyError("lost")', "KeyError: 'lost'"),
        ('import nowhere_to_be_found', "No module named 'nowhere_to_be_found'; run it from the repository's root"),
        ('def f(:', 'SyntaxError: invalid syntax'),
        ('x = 1', "AttributeError: module 'tiny' has no attribute 'get_config'"),
        ('def get_config(): ...', 'TypeError: get_config() takes 0 positional arguments'),
        ('def get_config(arg): ...', "AttributeError: 'NoneType' object has no attribute 'to_dict'"),
        ('def get_config(arg):\n    raise ValueError("two\\nlines")', 'tiny.py: two lines'),
    ],
)
def test_a_files_mistakes_are_one_line(content, said, tmp_path, capsys):
    (tmp_path / 'tiny.py').write_text(content)
    assert cli.main(['show', f'--config={tmp_path / "tiny.py"}', f'--out={tmp_path}']) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert (printed.out, printed.err.count('\n')) == ('', 1)


def test_a_path_that_fails_is_one_line(tmp_path, capsys):
    assert cli.main(['show', f'--config={"x" * 300}.py', f'--out={tmp_path}']) == 2
    assert 'File name too long' in capsys.readouterr().err
