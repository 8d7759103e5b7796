"""Whole reports from synthetic run folders: reading, pairing, refusals, words, tables and the self-contained page."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from nca_jax import cli, errors
from nca_jax.report import figures, first_stages, losses, page, runs, stats, tables, write
from nca_jax.report.runs import make_study

STEPS = (50, 100, 200, 300, 400, 500, 600)
TOKENS_PER_STEP = 4096
# Curves of small real runs: held-out loss, three paired seeds (offsets), as tables of final losses around these means.
CURVES = {
    'scratch': (5.415, 4.099, 3.271, 2.940, 2.763, 2.622, 2.567),
    'nca': (5.356, 4.019, 3.221, 2.900, 2.705, 2.559, 2.500),
    'only_attn': (5.523, 4.167, 3.284, 2.963, 2.783, 2.647, 2.594),
}
OFFSETS = {'scratch': (0, 0.024, 0.011), 'nca': (0, 0.016, -0.028), 'only_attn': (0, -0.030, 0.035)}
BYTES_PER_TOKEN = 3.1
EVALUATORS = {'nca': 'nca_grid', 'text': 'perplexity', 'instruct': 'benchmark'}


def write_run(folder, arm, stage='text', seed=0, records=(), done=True, **about):
    """A run's folder as the trainer writes it; returns it."""
    folder.mkdir(parents=True)
    tokens = records[-1]['tokens'] if records else 0
    default = {
        'name': 'experiment',
        'arm': arm,
        'stage': stage,
        'evaluator': EVALUATORS.get(stage, 'held_out'),
        'seed': seed,
        'identity': hashlib.sha256(f'{arm} {stage} {seed}'.encode()).hexdigest(),
        'config': {'seed': seed, 'smoke': False, 'optimizer': {'lr': 1e-3}, 'transfer': arm},
        'code': {'commit': '0123456789abcdef', 'dirty': False},
        'versions': {'jax': '0.10.2', 'numpy': '2.4.6'},
        'device': {'kind': 'cpu', 'count': 1},
        'data': {'text': 'ab', 'tokenizer': 'cd'},
        'parent': None,
        'vocab_size': 1024,
        'parameters': 1_300_000,
        'tokens_per_step': TOKENS_PER_STEP,
        'started': '2026-11-23T12:00:00+00:00',
    }
    (folder / 'run.json').write_text(json.dumps(default | about))
    lines = list(records)
    if done:
        seconds = {'compile': 4.0, 'train': 61.5, 'eval': 3.25, 'data': 0.5, 'checkpoint': 0.75}
        lines.append(
            {'kind': 'done', 'step': tokens // TOKENS_PER_STEP, 'tokens': tokens, 'seconds': seconds, 'time': 0}
        )
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return folder


def text_records(losses, steps=STEPS, bytes_per_token=BYTES_PER_TOKEN):
    """Train and evaluation lines of a text run."""
    lines = []
    for step, loss in zip(steps, losses, strict=True):
        common = {'step': step, 'tokens': step * TOKENS_PER_STEP, 'loss': loss, 'time': 0}
        bits = loss / math.log(2) / bytes_per_token
        lines.append({'kind': 'train', 'grad_norm': 0.5, 'lr': 1e-3, 'tokens_per_s': 9e3} | common)
        extra = {'perplexity': math.exp(loss), 'bits_per_byte': bits, 'scored_tokens': 51_200, 'manifest': 'ab'}
        lines.append({'kind': 'eval', 'evaluator': 'perplexity'} | common | extra)
    return lines


def nca_records(losses=(4.9, 3.1, 1.4, 0.8, 0.6), grids=15):
    lines = []
    for step, loss in zip((100, 250, 500, 750, 1000), losses, strict=True):
        seen = np.arange(grids)
        cell = 1 - 0.55 * np.exp(-seen / 3) - 0.05 * loss
        extra = {
            'cell_accuracy': cell.mean(),
            'grid_accuracy': (cell**8).mean(),
            'copy_accuracy': 0.41,
            'loss_by_grid': [loss] * grids,
        }
        lists = {'cell_accuracy_by_grid': list(cell), 'grid_accuracy_by_grid': list(cell**8)}
        tokens = step * TOKENS_PER_STEP
        line = {'kind': 'eval', 'evaluator': 'nca_grid', 'step': step, 'tokens': tokens, 'loss': loss, 'time': 0}
        lines.append(line | extra | lists)
    return lines


def write_automata(folder, colours=10, size=12):
    """What an NCA run writes at its start; the rows are wave, crystal and noise, which look like their levels."""
    rng, grids = np.random.default_rng(0), []
    for row in range(9):
        change = (0.01, 0.15, 0.9)[row // 3]
        grid = np.repeat(np.repeat(rng.integers(0, colours, (size // 4, size // 4)), 4, 0), 4, 1)
        frames = []
        for _ in range(27):
            grid = np.roll(grid, row % 2, axis=1)
            grid = np.where(rng.random(grid.shape) < change, rng.integers(0, colours, grid.shape), grid)
            frames.append(grid)
        grids.append(frames)
    np.savez(
        folder / 'automata.npz',
        frames=np.array(grids, np.uint8),
        ratios=np.array([0.09, 0.14, 0.18, 0.27, 0.33, 0.38, 0.55, 0.61, 0.66]),
        level=np.repeat(['low', 'medium', 'high'], 3).astype('<U6'),
        colours=colours,
    )
    counts = rng.poisson(60 * np.exp(-(((np.arange(32) - 21) / 6) ** 2)) + 6).tolist()
    found = {
        'edges': np.linspace(0, 0.8, 33).tolist(),
        'counts': counts,
        'band': [0.5, 1.0],
        'candidates': sum(counts),
        'accepted': sum(counts[20:]),
        'bytes_per_token': 4,
        'score': 'gzip',
        'spec': {},
    }
    (folder / 'complexity.json').write_text(json.dumps(found))


def write_study(root, **about):
    """An automata run and three arms with three seeds each; `about` overrides fields of every run.json."""
    parent = write_run(root / 'nca_pretrain', 'nca_pretrain', 'nca', records=nca_records(), vocab_size=258, **about)
    write_automata(parent)
    identity = json.loads((parent / 'run.json').read_text())['identity']
    plan = [['embed/.*', 'fresh'], ['head/.*', 'fresh'], ['.*/o/kernel', 'carry', {'scale': 0.2}], ['.*', 'carry']]
    for arm, means in CURVES.items():
        for seed, offset in enumerate(OFFSETS[arm]):
            drift = np.linspace(0.3, 1, len(means)) * offset
            handed = None if arm == 'scratch' else {'identity': identity, 'step': 1000, 'plan': plan}
            records = text_records([6.93, *np.add(means, drift)], (0, *STEPS))  # evaluated before training, too
            write_run(root / 'text' / f'{arm}-{seed}', arm, seed=seed, records=records, parent=handed, **about)
    return root


def edit(folder, **fields):
    """Changes fields of a run's run.json."""
    path = folder / 'run.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def study_of(*folders, baseline=None):
    return make_study(runs.find_runs(folders), baseline)


def blocks_of(study):
    return list(itertools.chain(*write.make_sections(study)))


def pair(root, finals, baseline=(2.567, 2.591, 2.578)):
    """Runs of two arms with the given final losses; returns their study."""
    for arm, values in (('scratch', baseline), ('nca', finals)):
        for seed, loss in enumerate(values):
            write_run(root / f'{arm}-{seed}', arm, seed=seed, records=text_records((4.0, loss), (100, 200)))
    return study_of(root)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = write_study(tmp_path_factory.mktemp('runs'))
    killed = text_records(CURVES['nca'][:3], STEPS[:3])
    write_run(root / 'text' / 'nca-3', 'nca', seed=3, records=killed, done=False)
    return root


@pytest.fixture(scope='module')
def report(root, tmp_path_factory):
    """The command run once on the whole study: its folder."""
    out = tmp_path_factory.mktemp('out') / 'report'
    with (out.parent / 'terminal').open('w', encoding='utf-8') as terminal, contextlib.redirect_stdout(terminal):
        assert cli.main(['report', str(root), '--out', str(out)]) == 0
    return out


# Reading


def test_a_half_written_last_line_is_forgiven_and_nothing_else(tmp_path):
    folder = write_run(tmp_path / 'a', 'scratch')
    path = folder / 'metrics.jsonl'
    good = b'{"kind": "train", "step": 1, "tokens": 5, "loss": 2.0}\n'
    path.write_bytes(good + good + b'{"kind": "eval", "evalu')
    assert len(runs.read_run(folder).metrics) == 2
    path.write_bytes(good + '{"kind": "train", "note": "é'.encode()[:-1])  # cut inside a character
    assert len(runs.read_run(folder).metrics) == 1
    path.write_bytes(good + b'{"kind": "eval", "evalu\n')
    with pytest.raises(errors.UserError, match=r'metrics\.jsonl:2: not JSON'):
        runs.read_run(folder)
    path.write_bytes(good + b'{"kind": "ev\n' + good)
    with pytest.raises(errors.UserError, match=r'metrics\.jsonl:2: not JSON'):
        runs.read_run(folder)
    path.write_bytes(b'[1, 2]\n')
    with pytest.raises(errors.UserError, match=r'metrics\.jsonl:1: must be a JSON object, not list'):
        runs.read_run(folder)
    path.write_bytes(b'{"kind": "eval", "step": 1, "tokens": 5}\n')
    with pytest.raises(errors.UserError, match=r'metrics\.jsonl:1: lacks evaluator'):
        runs.read_run(folder)


def test_runs_are_found_at_any_depth_and_once(root):
    found = runs.find_runs([root, root / 'text', root / 'text' / 'nca-0', root / 'text' / '..' / 'text'])
    assert sorted(run.folder.name for run in found) == sorted(
        ['nca_pretrain', 'nca-3', *(f'{arm}-{seed}' for arm in CURVES for seed in range(3))]
    )


def test_checkpoint_folders_are_not_searched(tmp_path):
    run = write_run(tmp_path / 'a', 'scratch', records=text_records((3.0,), (100,)))
    (run / 'checkpoints' / '100').mkdir(parents=True)
    (run / 'checkpoints' / '100' / 'run.json').write_text('not even JSON')
    assert len(runs.find_runs([tmp_path])) == 1


def test_unfinished_runs_are_named_and_left_out(tmp_path):
    records = text_records((3.0, 2.5), (100, 200))
    write_run(tmp_path / 'scratch-0', 'scratch', records=records)
    write_run(tmp_path / 'killed', 'scratch', seed=1, records=records, done=False)
    write_run(tmp_path / 'young', 'scratch', seed=2, done=False)
    unmeasured = write_run(tmp_path / 'unmeasured', 'scratch', seed=3, records=records)
    lines = (unmeasured / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (unmeasured / 'metrics.jsonl').write_text(''.join(lines[:3] + lines[4:]))
    write_run(tmp_path / 'diverged', 'scratch', seed=4, records=text_records((3.0, math.nan), (100, 200)))
    study = study_of(tmp_path)
    assert list(study.text['scratch']) == [0]
    assert {run.folder.name: reason for run, reason in study.left_out} == {
        'killed': 'not finished (last record: step 200)',
        'young': 'not finished (nothing recorded yet)',
        'unmeasured': 'no perplexity evaluation at its last step 200',
        'diverged': 'its final loss is nan',
    }


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'vocab_size': 2048}, 'vocab_size 1,024 and 2,048'),
        ({'steps': (100, 201)}, 'final tokens 819,200 and 823,296'),
        ({'bytes_per_token': 3.2}, r'bytes per evaluated token 3\.1 and 3\.2'),
        ({'scored': 999}, 'scored tokens 51,200 and 999'),
    ],
)
def test_runs_that_measured_other_things_are_refused(tmp_path, change, message):
    write_run(tmp_path / 'a', 'scratch', records=text_records((3.0, 2.5), (100, 200)))
    records = text_records((3.0, 2.5), change.get('steps', (100, 200)), change.get('bytes_per_token', BYTES_PER_TOKEN))
    records[-1]['scored_tokens'] = change.get('scored', records[-1]['scored_tokens'])
    write_run(tmp_path / 'b', 'nca', records=records, vocab_size=change.get('vocab_size', 1024))
    with pytest.raises(errors.UserError, match=f"can't compare scratch seed 0 .*a.* with nca seed 0 .*b.*: {message}"):
        study_of(tmp_path)


def test_runs_on_different_text_are_refused(tmp_path):
    for name, text in (('a', 'one'), ('b', 'two')):
        records = text_records((3.0, 2.5), (100, 200))
        write_run(tmp_path / name, name, records=records, data={'text': text, 'tokenizer': 'cd'})
    with pytest.raises(errors.UserError, match=r"can't compare a seed 0 .* with b seed 0 .*: data\.text one and two"):
        study_of(tmp_path)


def test_two_runs_of_one_arm_and_seed_are_refused(tmp_path):
    for name in 'ab':
        write_run(tmp_path / name, 'nca', seed=5, records=text_records((3.0,), (100,)))
    with pytest.raises(errors.UserError, match=r'two runs are nca seed 5: .*a and .*b'):
        study_of(tmp_path)


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda run: (run / 'run.json').write_text('{"name": '), 'run.json: not JSON'),
        (lambda run: (run / 'run.json').write_text('[]'), 'run.json: must be a JSON object, not list'),
        (lambda run: (run / 'run.json').write_text('{"name": "x"}'), 'run.json: lacks arm, stage, evaluator'),
        (lambda run: (run / 'run.json').unlink(), 'holds no run'),
        (lambda run: (run / 'metrics.jsonl').write_text('oops\n'), 'metrics.jsonl:1: not JSON'),
        (
            lambda run: (run / 'metrics.jsonl').write_text('{"kind": "train", "step": "1", "tokens": 5}\n'),
            'metrics.jsonl:1: lacks step, or it has another type',
        ),
        (lambda run: (run / 'automata.npz').write_bytes(b'oops'), 'automata.npz: not the automata of a run'),
        (lambda run: (run / 'automata.npz').write_bytes(b''), 'automata.npz: not the automata of a run'),
        (
            lambda run: (run / 'automata.npz').write_bytes((run / 'automata.npz').read_bytes()[:-99]),
            'automata.npz: not the automata of a run',
        ),
        (lambda run: (run / 'complexity.json').write_text('oops'), 'complexity.json: not JSON'),
        (lambda run: (run / 'complexity.json').write_text('{}'), 'complexity.json: lacks edges, counts, band'),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2_and_writes_nothing(tmp_path, capsys, damage, message):
    run = write_run(tmp_path / 'runs' / 'nca', 'nca', 'nca', records=nca_records())
    write_automata(run)
    damage(run)
    assert cli.main(['report', str(tmp_path / 'runs'), '--out', str(tmp_path / 'out')]) == 2
    said = capsys.readouterr()
    assert said.out == ''
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / 'out').exists()


def test_missing_folder_and_unknown_baseline(tmp_path, root, capsys):
    assert cli.main(['report', str(tmp_path / 'nowhere')]) == 2
    assert 'nowhere: no such folder' in capsys.readouterr().err
    assert cli.main(['report', str(root), '--out', str(tmp_path / 'out'), '--baseline', 'scrach']) == 2
    assert '--baseline scrach: no finished run of it; arms: nca, only_attn, scratch' in capsys.readouterr().err


# Words


def test_a_supported_gain_is_said_with_its_interval(tmp_path):
    study = pair(tmp_path, (2.500, 2.516, 2.472))
    (sentence,) = losses.findings(study, losses.compare(study))
    # gain 0.0827 +- 0.0512 nats: 1 - exp(-x) = 7.9 (3.1 to 12.5) %
    claim = (
        '**nca** reaches 7.9 % lower perplexity than scratch (95 % interval 3.1 to 12.5 %; +0.083 nats, 3 paired seeds'
    )
    assert sentence.startswith(claim)
    assert ': **supported**.' in sentence
    assert 'not significant' not in sentence


def test_an_unsupported_difference_is_not_significant_and_says_what_could_be_seen(tmp_path):
    study = pair(tmp_path, (2.560, 2.600, 2.540))  # gains .007 -.009 .038
    found = losses.compare(study)['nca']
    (sentence,) = losses.findings(study, {'nca': found})
    assert '**not significant**' in sentence
    assert 'includes zero' in sentence
    assert f'with 3 seeds is {5.65349 * np.std([0.007, -0.009, 0.038], ddof=1) / 3**0.5:.3f} nats' in sentence
    assert 'supported' not in sentence
    assert losses.result_rows(study, {'nca': found})[1]['verdict'] == 'not significant'


def test_a_supported_loss_is_said_to_be_one(tmp_path):
    study = pair(tmp_path, (2.667, 2.692, 2.677))  # gains -.100 -.101 -.099
    found = losses.compare(study)
    (sentence,) = losses.findings(study, found)
    low, high = (100 * math.expm1(0.1 + x * 4.30265 * 0.001 / 3**0.5) for x in (-1, 1))
    assert f'ends at 10.5 % higher perplexity than scratch (95 % interval {low:.1f} to {high:.1f} %' in sentence
    row = losses.result_rows(study, found)[1]
    assert row['verdict'] == 'worse'
    assert row['gain over scratch, nats'] == '-0.100 (-0.102 to -0.098)'
    assert losses.comparison_rows(study, found)[0]['speed-up'] == 'not reached'


def test_one_seed_supports_nothing(tmp_path):
    study = pair(tmp_path, (2.0,), (2.5,))
    found = losses.compare(study)
    (sentence,) = losses.findings(study, found)
    assert 'nothing is supported' in sentence
    assert losses.result_rows(study, found)[1]['verdict'] == 'one seed: no interval'
    assert losses.result_rows(study, found)[1]['final loss, nats'] == '2.000'
    assert losses.comparison_rows(study, found)[0]['detectable'] == '-'


def test_many_comparisons_temper_the_words(tmp_path):
    found = losses.compare(study := pair(tmp_path, (2.500, 2.516, 2.472)))['nca']
    tempered = dataclasses.replace(found, holm=0.061)
    assert stats.verdict(tempered, 'nca', 'scratch') == 'better, not after Holm'
    (sentence,) = losses.findings(study, {'nca': tempered})
    assert "not after Holm's correction" in sentence
    assert 'Holm p = 0.061' in sentence


def test_arms_without_common_seeds_or_baseline_are_not_compared(tmp_path):
    write_run(tmp_path / 'a', 'nca', seed=1, records=text_records((3.0, 2.5), (100, 200)))
    study = study_of(tmp_path)
    assert losses.findings(study, losses.compare(study)) == [
        'There is no finished run of the baseline scratch, so no arm is compared.'
    ]
    write_run(tmp_path / 'b', 'scratch', seed=2, records=text_records((3.0, 2.5), (100, 200)))
    study = study_of(tmp_path)
    found = losses.compare(study)
    assert losses.findings(study, found) == ['**nca** shares no seed with scratch, so it is not compared.']
    assert losses.result_rows(study, found)[1]['verdict'] == 'not compared'
    blocks_of(study)


def test_an_automata_stage_that_learned_nothing_is_warned_about(tmp_path):
    write_run(tmp_path / 'a', 'nca', 'nca', records=nca_records((5.54, 5.53, 5.53, 5.52, 5.52)), vocab_size=258)
    (sentence,) = first_stages.findings(study_of(tmp_path))
    assert 'conclude nothing about transfer' in sentence


def test_what_intervals_leave_out_is_said(root, tmp_path):
    study = study_of(root)
    assert stats.caveat(study.text).startswith('All seeds of `nca` and of `only_attn` start from one parent run')
    assert stats.caveat(pair(tmp_path, (2.5, 2.5)).text) == ''


# The whole report


def test_the_table_holds_the_numbers(root):
    study = study_of(root)
    scratch, nca, only_attn = losses.result_rows(study, losses.compare(study))
    finals = np.add(CURVES['nca'][-1], OFFSETS['nca'])
    half = 4.30265 * np.std(finals, ddof=1) / 3**0.5
    assert scratch['verdict'] == 'baseline'
    assert nca['seeds'] == '0 1 2'
    assert nca['final loss, nats'] == f'{finals.mean():.3f} ± {half:.3f}'
    assert nca['perplexity'] == f'{math.exp(finals.mean()):.2f}'
    assert nca['bits per byte'] == f'{finals.mean() / math.log(2) / BYTES_PER_TOKEN:.3f}'
    assert nca['gain over scratch, nats'] == '+0.083 (+0.031 to +0.134)'
    assert only_attn['verdict'] == 'not significant'


def test_no_mean_speedup_where_some_seeds_never_reach_the_baseline():
    assert losses.speedup_cell((1.2, None, 1.4)) == 'reached by 2 of 3'
    assert losses.speedup_cell((None, None)) == 'not reached'
    assert losses.speedup_cell((1.2, 1.4)) == f'1.30 ({1.3 - 12.7062 * 0.1:.2f} to {1.3 + 12.7062 * 0.1:.2f})'
    assert losses.speedup_cell((1.25,)) == '1.25'
    assert losses.speedup_cell(None) == 'unknown'


def test_speedups_are_of_each_seed_against_its_own_scratch(tmp_path):
    finals = {'scratch': (2.0, 3.0), 'nca': (1.5, 2.0)}
    write_run(tmp_path / 'automata', 'automata', 'nca', records=nca_records(), identity='aa')
    for arm, values in finals.items():
        for seed, final in enumerate(values):
            handed = {'identity': 'aa', 'step': 100, 'plan': [['.*', 'carry']]} if arm == 'nca' else None
            curve = text_records((4.0, final), (100, 200))
            write_run(tmp_path / f'{arm}-{seed}', arm, seed=seed, records=curve, parent=handed)
    study = study_of(tmp_path)
    alone, counted = losses.speedups(study, losses.compare(study)['nca'])
    for theirs, ours, value, with_earlier in zip(finals['scratch'], finals['nca'], alone, counted, strict=True):
        high, end = math.exp(4.0), math.exp(ours)
        reached = 100 + 100 * (high - math.exp(theirs)) / (high - end)
        assert value == pytest.approx(200 / reached)
        assert with_earlier == pytest.approx(200 / (reached + 100))


def test_speedups_in_all_tokens_are_unknown_without_the_parent(tmp_path):
    pair(tmp_path, (2.5,), (2.6,))
    edit(tmp_path / 'nca-0', parent={'identity': 'elsewhere', 'step': 1, 'plan': []})
    study = study_of(tmp_path)
    assert losses.speedups(study, losses.compare(study)['nca'])[1] is None


def test_tokens_of_all_earlier_stages_are_counted(tmp_path):
    def handed(step, identity):
        return {'identity': identity, 'step': step, 'plan': [['.*', 'carry']]}

    write_run(tmp_path / 'a', 'nca', 'nca', records=nca_records(), identity='aa', tokens_per_step=10)
    write_run(tmp_path / 'b', 'math', seed=1, records=text_records((3.0, 2.5), (100, 200)), identity='bb',
              tokens_per_step=7, parent=handed(30, 'aa'))  # fmt: skip
    write_run(tmp_path / 'c', 'tuned', seed=1, records=text_records((3.0, 2.5), (100, 200)), parent=handed(11, 'bb'))
    study = study_of(tmp_path)
    by_arm = {run.arm: run for run in study.runs}
    assert study.earlier_tokens(by_arm['nca']) == 0
    assert study.earlier_tokens(by_arm['math']) == 30 * 10
    assert study.earlier_tokens(by_arm['tuned']) == 30 * 10 + 11 * 7
    assert write.lineage(study, by_arm['tuned']) == 'a @30 -> b @11 -> c'
    alone = study_of(tmp_path / 'c')
    assert alone.earlier_tokens(alone.runs[0]) is None
    assert write.lineage(alone, alone.runs[0]) == 'bb (not in these folders) @11 -> c'


def test_settings_that_differ_are_shown_and_no_others(root):
    rows = write.setting_rows(study_of(root).text)
    assert [row['setting'] for row in rows] == ['`seed`', '`transfer`']
    assert rows[1]['only_attn'] == '`only_attn`'


def test_markdown_tables_are_rectangular():
    text = tables.table([{'arm': 'a|b', 'x': '1'}, {'arm': 'c', 'x': '22222'}])
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].startswith('| arm ')
    assert re.fullmatch(r'\| -+ \| -+: \|', lines[1])
    assert r'a\|b' in lines[2]
    assert tables.table([]) == ''


def test_the_page_needs_nothing_but_itself(report):
    text = (report / 'report.html').read_text('utf-8')
    assert not re.search(r'https?:|//|<script|<link|@import|url\(', re.sub(r'data:image/png;base64,[^"]*', '', text))
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', text)
    assert len(sources) == 4
    assert all(source.startswith('data:image/png;base64,iVBORw0KGgo') for source in sources)


def test_markdown_shows_every_figure_and_what_was_left_out(report):
    text = (report / 'report.md').read_text('utf-8')
    names = re.findall(r'!\[[^]]*\]\(([^)]*)\)', text)
    assert names == ['learning_curves.png', 'nca_stage.png', 'automata.png', 'complexity.png']
    assert sorted(path.name for path in report.glob('*.png')) == sorted(names)
    assert all((report / name).read_bytes().startswith(b'\x89PNG') for name in names)
    assert 'Left out: nca seed 3' in text
    assert 'nca_pretrain @1,000 -> only_attn-2' in text
    assert 'mean nothing' not in text


def test_terminal_shows_the_same_table_and_the_paths(root, report):
    said = (report.parent / 'terminal').read_text('utf-8')
    study = study_of(root)
    table = tables.table(losses.result_rows(study, losses.compare(study)))
    assert table in said
    assert table in (report / 'report.md').read_text('utf-8')
    assert said.splitlines()[-2:] == [str(report / 'report.md'), str(report / 'report.html')]
    assert '**' not in said


def test_another_baseline(root):
    study = study_of(root, baseline='nca')
    assert next(iter(study.text)) == 'nca'
    assert list(losses.compare(study)) == ['only_attn', 'scratch']
    assert losses.compare(dataclasses.replace(study, baseline='c4')) == {}


def test_smoke_runs_mean_nothing_everywhere(tmp_path, capsys):
    records = text_records((3.0, 2.5), (100, 200))
    write_run(tmp_path / 'runs' / 'a', 'scratch', records=records, config={'smoke': True})
    assert cli.main(['report', str(tmp_path / 'runs')]) == 0
    assert capsys.readouterr().out.startswith('Smoke test')
    out = tmp_path / 'runs' / 'report'
    assert f'> **{write.SMOKE}**' in (out / 'report.md').read_text('utf-8')
    assert f'<blockquote>\n<p><strong>{write.SMOKE}</strong></p>' in (out / 'report.html').read_text('utf-8')


def test_names_cannot_break_the_page():
    table = tables.table([{'arm': '<script>alert(1)</script>', 'x': '1 & 2'}])
    text = page.as_html('a < b', [table, '- **bold** <i>'])
    assert '<script' not in text
    assert '&lt;script&gt;' in text
    assert '<strong>bold</strong> &lt;i&gt;' in text


def test_no_jax_is_imported():
    imports = 'from nca_jax.report import first_stages, losses, solved, write'
    code = f'import sys; {imports}; sys.exit(any(m.split(".")[0] in ("jax", "flax") for m in sys.modules))'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


# Figures


def test_curves_show_means_and_paired_gains(root):
    study = study_of(root)
    left, right = losses.learning_curves(study).axes
    colours = figures.arm_colours(study.arms, 'scratch')
    ours = next(line for line in left.lines if line.get_color() == colours['nca'])
    finals = np.add(CURVES['nca'][-1], OFFSETS['nca'])
    assert ours.get_ydata()[-1] == pytest.approx(finals.mean())
    gain = [line for line in right.lines if line.get_color() == colours['nca']][-1]
    assert gain.get_ydata()[-1] == pytest.approx(0.0826667, abs=1e-6)
    low, high = right.get_ylim()
    assert low < 0 < gain.get_ydata()[-1] < high
    assert [text.get_text() for text in right.get_legend().texts] == ['nca', 'scratch', 'only_attn']


def test_a_film_strip_shows_every_cell_in_its_colour():
    frames = np.random.default_rng(1).integers(0, 5, (1, 3, 8, 8)).astype(np.uint8)
    palette = figures.cell_colours(5)
    (axes,) = figures.film_strips({'rules': (frames, [0.5])}, 5, 'gzip ratio').axes
    for number, image in enumerate(axes.images):
        np.testing.assert_array_equal(image.get_array(), palette[frames[0, number]])
    extents = [image.get_extent() for image in axes.images]
    assert [right - left for left, right, _, _ in extents] == pytest.approx([0.74] * 3)
    assert np.diff([left for left, *_ in extents]) == pytest.approx([0.79] * 2)  # a gap between frames
    assert len({tuple(colour) for colour in figures.cell_colours(15)}) == 15


def test_the_accepted_band_is_shaded():
    found = {'edges': [0, 0.25, 0.5, 0.75, 1.0], 'counts': [1, 2, 3, 4], 'band': [0.5, 0.75], 'score': 'gzip'}
    (axes,) = figures.complexity(found | {'accepted': 3, 'candidates': 10}).axes
    band, *bars = axes.patches
    assert band.get_x() == 0.5
    assert band.get_width() == pytest.approx(0.25)
    assert [bar.get_height() for bar in bars] == pytest.approx([10, 20, 30, 40])
    assert any('3 of 10' in text.get_text() for text in axes.texts)


def test_accuracy_is_drawn_by_grids_seen(root):
    study = study_of(root)
    _, axes = figures.nca_stage(study).axes
    cells = axes.lines[0]
    assert cells.get_xdata()[0] == 0
    assert cells.get_ydata() == pytest.approx(100 * np.array(study.nca[0].final['cell_accuracy_by_grid']))


def test_several_automata_runs_have_their_own_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(
        figures, 'render', lambda draw, *args: draw(*args) and b''
    )  # drawn all the same, only not rendered
    for arm in ('nca', 'shuffled'):
        write_automata(write_run(tmp_path / arm, arm, 'nca', records=nca_records(), vocab_size=258), colours=4, size=8)
    names = [block.name for block in blocks_of(study_of(tmp_path)) if isinstance(block, page.Picture)]
    assert names == ['nca_stage', 'automata_nca', 'complexity_nca', 'automata_shuffled', 'complexity_shuffled']


def test_one_pair_of_runs_without_automata_still_makes_a_page(tmp_path):
    study = pair(tmp_path, (2.0,), (2.5,))
    text = page.as_markdown(blocks_of(study))
    assert 'learning_curves.png' in text
    assert math.isnan(losses.compare(study)['nca'].detectable)
    assert isinstance(losses.compare(study)['nca'], stats.Comparison)


def test_other_first_stages_are_reported_like_automata(tmp_path):
    """A text run whose parent is a Dyck run: its arm, its lineage, its earlier tokens, and the parent's own numbers."""
    names = {'dyck': (3.0, 2.9), 'noise': (4.85, 4.852)}
    parents = {}
    for stage, values in names.items():
        lines = [
            {'kind': 'eval', 'evaluator': 'held_out', 'step': step, 'tokens': step * TOKENS_PER_STEP, 'loss': loss}
            | {'accuracy': 0.31, 'time': 0}
            | ({'close_accuracy': 0.97} if stage == 'dyck' else {})
            for step, loss in zip((100, 200), values, strict=True)
        ]
        folder = write_run(tmp_path / stage, stage, stage, records=lines, vocab_size=128, data={})
        parents[stage] = json.loads((folder / 'run.json').read_text())['identity']
    for seed in range(3):
        write_run(tmp_path / f'scratch-{seed}', 'scratch', seed=seed, records=text_records(CURVES['scratch']))
        handed = {'identity': parents['dyck'], 'step': 200, 'plan': [['.*', 'carry']]}
        records = text_records(np.subtract(CURVES['scratch'], 0.1 + 0.001 * seed))
        write_run(tmp_path / f'dyck-{seed}', 'dyck all x1', seed=seed, records=records, parent=handed)
    study = study_of(tmp_path)
    assert set(study.text) == {'scratch', 'dyck all x1'}
    assert ([run.stage for run in study.controls], study.nca) == (['dyck', 'noise'], ())
    assert study.earlier_tokens(study.text['dyck all x1'][0]) == 200 * TOKENS_PER_STEP
    found = losses.compare(study)['dyck all x1']
    assert found.gain.mean == pytest.approx(0.101)
    alone, counted = losses.speedups(study, found)
    assert counted[0] < alone[0]
    dyck, noise = first_stages.stage_rows(study.controls)
    assert (dyck['stage'], dyck['tokens right, %'], dyck['closing brackets right, %']) == ('dyck', '31.0', '97.0')
    assert noise['closing brackets right, %'] == tables.number(None)
    of_dyck, of_noise = first_stages.findings(study)
    assert of_dyck.startswith('The dyck stage `dyck` brought its held-out loss to 2.900')
    assert of_noise.endswith('There is nothing to learn in it.')
    assert 'cells right, %' not in dyck
    assert '## Before the text' in blocks_of(study)
