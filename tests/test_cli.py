"""The front end: its listing, its flags, and the exit code of every kind of end."""

import errno
import subprocess
import sys

import pytest

from nca_jax import cli
from nca_jax.errors import NotFiniteError, UserError


def test_the_commands_are_listed(capsys):
    assert cli.main([]) == cli.main(['--help']) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (_, does) in cli.COMMANDS.items():
        assert lines.count(f'  {name:<10} {does}') == 2


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_help_needs_no_jax(name):
    """JAX takes most of a second to import, and --help must answer at once."""
    code = (
        'import sys\nfrom nca_jax import cli\ntry: cli.main([sys.argv[1], "--help"])\nexcept SystemExit: pass\n'
        'slow = {"jax", "flax", "optax", "orbax", "matplotlib", "tokenizers"} & sys.modules.keys()\n'
        'sys.exit(f"imports {slow}" if slow else 0)'
    )
    done = subprocess.run([sys.executable, '-c', code, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'usage: python -m nca_jax {name}')


def test_fields_are_changed_in_both_spellings():
    rest, changes = cli.split_changes(['--config=a.py', '--config.x.y=1=2', '--out', 'b', '--config.z', '-3'])
    assert rest == ['--config=a.py', '--out', 'b']
    assert changes == [('x.y', '1=2'), ('z', '-3')]


@pytest.mark.parametrize(
    ('argv', 'line'),
    [
        (['trian'], "error: 'trian' is no command; known are train, study"),
        (['cost', '--config.model.width'], 'error: --config.model.width: needs a value'),
        (['report', 'runs', '--config.seed=1'], 'error: unexpected argument --config.seed; report takes no --config'),
        (['cost', '--colour=red'], 'error: '),
        (['study'], 'error: the following arguments are required: file'),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(argv, line, capsys):
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(line)
    assert error.count('\n') == 1


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (UserError('seed = -1: must be positive'), 2, 'error: seed = -1: must be positive\n'),
        (NotFiniteError('step 3: the loss is nan'), 1, 'stopped: step 3: the loss is nan\n'),
        (OSError(errno.ENOSPC, 'No space left on device', 'a/b'), 74, 'error: a/b: No space left on device\n'),
        (KeyboardInterrupt(), 130, 'interrupted\n'),
    ],
)
def test_every_end_has_its_code(error, code, line, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, 'start_command', fail)
    assert cli.main(['train']) == code
    assert capsys.readouterr().err == line


def test_a_fault_of_the_program_is_not_the_users(monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOENT, 'No such file or directory')

    monkeypatch.setattr(cli, 'start_command', fail)
    with pytest.raises(FileNotFoundError):
        cli.main(['train'])
