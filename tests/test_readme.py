"""The README's example runs as it stands, and its commands are commands."""

import pathlib
import re

from nca_jax import cli

ROOT = pathlib.Path(__file__).parents[1]


def test_the_example_trains_a_step(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    exec(compile(example, 'README.md', 'exec'), {})
    loss = float(re.match(r'loss ([\d.]+) nats', capsys.readouterr().out)[1])
    # Before its first update a model guesses: ln 10,002 = 9.21.
    assert 9.0 < loss < 9.5


def test_every_command_is_in_the_readme_and_no_other():
    text = (ROOT / 'README.md').read_text()
    table = text[text.index('| command |') : text.index('Words after the colon')]
    assert set(re.findall(r'`(\w+)`', table)) == set(cli.COMMANDS)
    for path in ROOT.glob('**/*.md'):
        if not any(part.startswith('.') for part in path.relative_to(ROOT).parts):
            commands = set(re.findall(r'-m nca_jax (\w+)', path.read_text()))
            assert commands - {'COMMAND'} <= cli.COMMANDS.keys(), path
