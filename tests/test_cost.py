"""What a run will cost: by hand, at one size, and mistakes in one line."""

import json
import pathlib

import pytest

from nca_jax import cli
from nca_jax.scale import chips

SMOKE = f'--config={pathlib.Path(__file__).parents[1]}/experiments/nca_pretrain.py:smoke'
TEXT = f'--config={pathlib.Path(__file__).parents[1]}/experiments/language.py:smoke'

# Two layers of width 32, with 64 of feed-forward and two norms each, and the last norm; the head of 10^4 + 2 tokens.
PARAMETERS = 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32 + 10_002 * 32
TOKENS = 6 * 8 * 64  # six updates of 8 rows of 64
# Attention's two products over the half of the pairs that is causal, forward and twice that backward.
FLOPS = 6 * PARAMETERS * TOKENS + 3 * 2 * (2 * 2 * 32 * 64 // 2) * TOKENS


def printed(capsys, *argv: str) -> dict:
    assert cli.main(['cost', *argv, '--json']) == 0
    return json.loads(capsys.readouterr().out)


def test_by_hand(capsys):
    found = printed(capsys, SMOKE, '--chip=v5e', '--chips=16', '--mfu=0.5', '--hours=24')
    assert (found['tokens'], found['steps'], found['flops']) == (TOKENS, 6, FLOPS)
    assert found['hours'] == pytest.approx(FLOPS / (16 * 0.5 * 197e12) / 3600)
    assert found['limit_hours'] == 24


def test_changes_count(capsys):
    found = printed(capsys, SMOKE, '--config.train.stop=12 steps', '--config.train.batch=16', '--chip=H100')
    assert (found['tokens'], found['steps'], found['flops']) == (4 * TOKENS, 12, 4 * FLOPS)
    assert found['limit_hours'] is None


def test_texts_have_the_vocabulary_of_their_config(capsys):
    known, more = (printed(capsys, TEXT, f'--config.data.vocab_size={size}')['flops'] for size in (300, 400))
    assert more - known == 6 * 100 * 32 * TOKENS


@pytest.mark.parametrize(
    ('name', 'chip', 'count'),
    [('v5litepod-16', 'v5e', 16), ('v6e-8', 'v6e', 8), ('v5p-32', 'v5p', 16), ('v4-8', 'v4', 4)],
)
def test_slices(name, chip, count, capsys):
    found = printed(capsys, SMOKE, f'--slice={name}')
    assert (found['chip'], found['chips']) == (chip, count)


def test_hours_at_the_mfu_that_a_run_measured(capsys, tmp_path):
    records = [{'kind': 'train', 'mfu': mfu} for mfu in (0.1, 0.4, 0.3)] + [{'kind': 'eval'}]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    found = printed(capsys, SMOKE, '--chip=H100', f'--mfu={tmp_path}')
    assert found['mfu'] == 0.3
    assert found['hours'] == pytest.approx(FLOPS / (0.3 * 989e12) / 3600)
    assert printed(capsys, SMOKE, '--chip=H100')['hours'] is None


def test_lines(capsys):
    assert cli.main(['cost', SMOKE, '--hours=0.5', '--chips=2']) == 0
    assert capsys.readouterr().out == (
        'cost: 3,072 tokens in 6 updates of 8 x 64, 6.36e+09 FLOPs\n'
        'cost: the hours are not estimated on a CPU\n'
        'cost: at most 2 chips x 0.5 hours = 1 chip-hours each time it starts\n'
    )
    assert (
        cli.main(['cost', SMOKE, '--chip=v5e', '--chips=16', '--mfu=0.4', '--config.train.stop=1000000000 steps']) == 0
    )
    hours = FLOPS / 6 * 1e9 / (16 * 0.4 * 197e12) / 3600
    line = f'{hours:.2f} hours on 16 x v5e, {16 * hours:.1f} chip-hours, for training alone at an MFU of 0.4'
    assert capsys.readouterr().out.splitlines()[1] == f'cost: {line}'


@pytest.mark.parametrize(
    ('argument', 'said'),
    [
        ('--chip=H1', f"--chip = 'H1': must be one of {', '.join(chips.CHIPS)}, cpu"),
        ('--chips=0', '--chips = 0: must be positive'),
        ('--mfu=1.1', '--mfu = 1.1: must be above 0 and at most 1'),
        ('--mfu=0', '--mfu = 0.0'),
        ('--mfu=nowhere', "--mfu = 'nowhere': must be a number, or the folder of a run with an MFU"),
        ('--hours=0', '--hours = 0.0: must be positive'),
        ('--slice=v5p-33', 'is counted in cores, 2 to a chip'),
        ('--slice=v7-8', 'must be one of v4, v5litepod, v5p, v6e with its size, such as v5litepod-16'),
        ('--config.train.stop=never', "config.train.stop = 'never'"),
        ('--workdir=runs/x', 'unrecognized arguments: --workdir=runs/x'),
    ],
)
def test_mistakes_are_one_line(argument, said, capsys):
    assert cli.main(['cost', SMOKE, argument]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert (found.out, found.err.count('\n')) == ('', 1)


def test_a_tokenizer_that_isnt_here_is_named(capsys):
    assert cli.main(['cost', TEXT.replace('smoke', 'tokenizer=nowhere.json')]) == 2
    assert "tokenizer = 'nowhere.json'" in capsys.readouterr().err
