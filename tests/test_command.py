"""The frame of the commands that look at automata: what is printed where, and mistakes in one line."""

import argparse
import json
import os
import tempfile

import pytest

from nca_jax import command, experiment
from nca_jax.errors import UserError

SMOKE = f'{command.EXPERIMENT}:seed=7,smoke'


def run(*argv: str) -> int:
    return command.run(argparse.ArgumentParser(prog='python -m nca_jax.look'), work, 'numbers.json', argv)


def work(config, args, progress):
    progress('work', 0, 3)
    progress('work', 3, 3)
    if config.data.burn_in == 99:
        raise UserError('too hot')
    record = {'seed': config.seed, 'changes': args.changes}
    return command.Result(record, {'picture.png': b'drawn'}, 'a table')


def test_stdout_holds_the_table_or_the_object_alone(tmp_path, capsys):
    change = '--config.data.burn_in=3'
    assert run(f'--config={SMOKE}', f'--out={tmp_path}', change, '--json') == 0
    printed = capsys.readouterr()
    files = [str(tmp_path / name) for name in ('picture.png', 'numbers.json')]
    assert json.loads(printed.out) == {'seed': 7, 'changes': [change], 'files': files}
    assert (tmp_path / 'numbers.json').read_text() == printed.out
    assert (tmp_path / 'picture.png').read_bytes() == b'drawn'
    assert '3/3' in printed.err
    assert run(f'--config={SMOKE}', f'--out={tmp_path}', '--seed=8') == 0
    assert capsys.readouterr().out == '\n'.join(['a table', '', *files, ''])
    assert json.loads((tmp_path / 'numbers.json').read_text())['seed'] == 8


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('x = unknown', "NameError: name 'unknown' is not defined"),
        ('raise KeyError("lost")', "KeyError: 'lost'"),
        ('import nowhere_to_be_found', "No module named 'nowhere_to_be_found'; run it from the repository's root"),
        ('def f(:', 'SyntaxError: invalid syntax'),
        ('x = 1', 'has no get_config'),
        ('def get_config(): ...', 'TypeError: get_config() takes 0 positional arguments'),
        ('def get_config(arg): ...', 'AttributeError'),
        ('def get_config(arg):\n    raise ValueError("two\\nlines")', 'tiny.py: two lines'),
    ],
)
def test_a_files_mistakes_are_one_line(content, said, tmp_path, capsys):
    (tmp_path / 'tiny.py').write_text(content)
    assert run(f'--config={tmp_path / "tiny.py"}', f'--out={tmp_path}') == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert (printed.out, printed.err.count('\n')) == ('', 1)


def test_paths_that_fail_are_one_line(tmp_path, monkeypatch, capsys):
    assert run(f'--config={"x" * 300}.py', f'--out={tmp_path}') == 2
    assert 'File name too long' in capsys.readouterr().err
    (tmp_path / 'picture.png').mkdir()
    assert run(f'--config={SMOKE}', f'--out={tmp_path}') == 2
    assert capsys.readouterr().err.endswith(f'error: {tmp_path}/picture.png: Is a directory\n')

    def full(dir):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(tempfile, 'TemporaryFile', full)
    assert run(f'--config={SMOKE}', f'--out={tmp_path}', '--config.data.burn_in=99') == 2
    assert capsys.readouterr().err == f'error: --out={tmp_path}: No space left on device\n'


def test_work_that_fails_says_so_alone(tmp_path, capsys):
    assert run(f'--config={SMOKE}', f'--out={tmp_path}', '--config.data.burn_in=99') == 2
    assert capsys.readouterr() == ('', 'error: too hot\n')


def test_values_that_python_cant_hash_are_text():
    assert experiment.literal('{[1]:2}') == '{[1]:2}'
    assert experiment.literal('(0.5, 2)') == (0.5, 2)
