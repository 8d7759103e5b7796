"""The frame of `show` and `calibrate`: what is printed where, and mistakes in one line."""

import argparse
import json

import pytest

from nca_jax import cli, progress
from nca_jax.errors import UserError
from nca_jax.look import output, show

SMOKE = f'{output.EXPERIMENT}:seed=7,smoke'


@pytest.fixture
def run(monkeypatch):
    """Runs `show` with other work."""
    monkeypatch.setattr(show, 'run', lambda args: output.run(args, work, 'numbers.json'))
    return lambda *argv: cli.main(['show', *argv])


def work(config, args: argparse.Namespace, show_progress: progress.Progress):
    show_progress('work', 0, 3)
    show_progress('work', 3, 3)
    if config.data.burn_in == 99:
        raise UserError('too hot')
    return {'seed': config.seed, 'changes': args.changes}, {'picture.png': b'drawn'}, 'a table'


def test_stdout_holds_the_table_or_the_object_alone(run, tmp_path, capsys):
    assert run(f'--config={SMOKE}', f'--out={tmp_path}', '--config.data.burn_in=3', '--json') == 0
    printed = capsys.readouterr()
    files = [str(tmp_path / name) for name in ('picture.png', 'numbers.json')]
    assert json.loads(printed.out) == {'seed': 7, 'changes': [['data.burn_in', '3']], 'files': files}
    assert (tmp_path / 'numbers.json').read_text() == printed.out
    assert (tmp_path / 'picture.png').read_bytes() == b'drawn'
    assert '3/3' in printed.err
    assert run(f'--config={SMOKE}', f'--out={tmp_path}', '--config.seed=8') == 0
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
        ('def get_config(arg): ...', 'get_config must return a ConfigDict'),
        ('def get_config(arg):\n    raise ValueError("two\\nlines")', 'tiny.py: two lines'),
    ],
)
def test_a_files_mistakes_are_one_line(run, content, said, tmp_path, capsys):
    (tmp_path / 'tiny.py').write_text(content)
    assert run(f'--config={tmp_path / "tiny.py"}', f'--out={tmp_path}') == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert (printed.out, printed.err.count('\n')) == ('', 1)


def test_a_path_that_fails_is_one_line(run, tmp_path, capsys):
    assert run(f'--config={"x" * 300}.py', f'--out={tmp_path}') == 2
    assert 'File name too long' in capsys.readouterr().err


def test_work_that_fails_says_so_alone(run, tmp_path, capsys):
    assert run(f'--config={SMOKE}', f'--out={tmp_path}', '--config.data.burn_in=99') == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.endswith('error: too hot\n')
    assert 'Traceback' not in printed.err
