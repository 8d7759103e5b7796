"""Solved problems in the report: hand-computed levels and gains, chance, tasks, what is refused, and the whole page."""

import math

import numpy as np
import pytest

from nca_jax import cli, errors
from nca_jax.problems import benchmark
from nca_jax.report import figures, losses, page, solved, stats, tables, write
from tests.test_report_page import TOKENS_PER_STEP, blocks_of, edit, study_of, text_records, write_run

TEXT = text_records((4.0, 2.5), (100, 200))


def asked(task='gsm_symbolic', samples=4, **fields):
    """config.benchmark as run.json has it."""
    problems = {'task': task, 'path': '', 'train_rows': 0}
    problems |= {'valid_rows': 64, 'size': [64, 200]}
    sampling = {'temperature': 0.6, 'top_p': 1.0, 'top_k': 0}
    batch = {'rows': 256, 'share': 8, 'chunk': 32}
    default = {'problems': problems, 'limit': 0, 'shots': 3, 'samples': samples, 'max_tokens': 250, 'stops': []}
    return default | {'sampling': sampling, 'batch': batch, 'run_code': False} | fields


def counted(found, step, evaluator='benchmark'):
    """A line of an evaluation that counts solved problems."""
    return {
        'kind': 'eval',
        'evaluator': evaluator,
        'step': step,
        'tokens': step * TOKENS_PER_STEP,
        'left_out': 0,
        'time': 0,
    } | found


def scored(problems=200, samples=4, **fields):
    """pass@1 and others by name ('pass_1', in percent), with intervals over problems of +-1 point."""
    found = {'problems': problems, 'samples': samples}
    for name, value in fields.items():
        k = int(name.removeprefix('pass_'))
        found |= {f'pass@{k}': value / 100, f'pass@{k}_low': (value - 1) / 100, f'pass@{k}_high': (value + 1) / 100}
    return found


def write_solved(folder, arm, seed, after, before=None, step=140, loss=1.5, config=None, stage='instruct', **about):
    """A run of the last stage that was asked problems before (unless None) and after `step` updates."""
    lines = []
    for at, found in ((0, before), (step, after)):
        if found is not None:
            held_out = {'kind': 'eval', 'evaluator': 'held_out', 'step': at, 'tokens': at * TOKENS_PER_STEP, 'time': 0}
            lines += [] if loss is None else [held_out | {'loss': loss + (not at), 'accuracy': 0.5}]
            lines.append(counted(found, at))
    config = {'seed': seed, 'smoke': False, 'transfer': arm, 'benchmark': config or asked()}
    default = {'data': {'problems': 'pq', 'tokenizer': 'cd'}, 'config': config}
    return write_run(folder, arm, stage, seed, lines, **default | about)


def write_pairs(root, finals, **fields):
    """{arm: ((pass@1, pass@4) of each seed)} as runs; returns their study."""
    for arm, by_seed in finals.items():
        for seed, (first, fourth) in enumerate(by_seed):
            after = scored(pass_1=first, pass_2=(first + fourth) / 2, pass_4=fourth)
            write_solved(root / f'{arm}-{seed}', arm, seed, after, scored(pass_1=1.0, pass_2=2.0, pass_4=4.0), **fields)
    return study_of(root)


FINALS = {'nca': ((12.0, 30.0), (14.5, 32.0), (13.0, 31.0)), 'scratch': ((10.0, 27.0), (11.5, 31.0), (12.0, 28.0))}


def all_gains(study):
    return {name: solved.compare(group, study.baseline) for name, group in study.solved.items()}


def gains_of(study):
    ((name, group),) = study.solved.items()
    return group, solved.compare(group, study.baseline), name


def simulated(seed, skill, tasks, samples=8, problems=60):
    """A record as the benchmark makes it: counts drawn for problems of unequal difficulty. tasks: {name: choices}."""
    rng = np.random.default_rng(seed)
    rows = []
    for task, choices in tasks.items():
        for _ in range(problems):
            correct = int(rng.binomial(samples, min(1, max(0, rng.beta(0.5, 3) + skill))))
            graded = [number < correct for number in range(samples)]
            rows.append({'task': task, 'choices': choices, 'answers': ['x'], 'correct': graded})
    return benchmark.metrics(rows, seed)


# Levels and gains by hand


def test_levels_over_seeds_by_hand(tmp_path):
    group, found, _ = gains_of(write_pairs(tmp_path, FINALS))
    scratch, nca = solved.result_rows(group, found, 'scratch')
    # 12, 14.5, 13: mean 13.1667, sd sqrt(3.16667 / 2) = 1.25831; t(0.975, 2) = 4.30265: half-width 3.12582
    assert (nca['pass@1, %'], nca['seeds'], nca['interval over']) == ('13.17 (10.04 to 16.29)', '0 1 2', 'seeds')
    # 30, 32, 31: sd 1, half-width 2.48414
    assert nca['pass@4, %'] == '31.00 (28.52 to 33.48)'
    assert (nca['before: pass@1, %'], nca['before: pass@4, %']) == ('1.00 (1.00 to 1.00)', '4.00 (4.00 to 4.00)')
    assert nca['held-out loss, nats'] == '1.500'
    assert (scratch['verdict'], scratch['pass@1 over scratch, points']) == ('baseline', tables.NONE)
    assert not any('pass@2' in column for column in nca)


def test_intervals_of_levels_end_at_0_and_100():
    low = solved.level([{'pass@1': 0.001}, {'pass@1': 0.02}], 'pass@1')
    high = solved.level([{'pass@1': 0.999}, {'pass@1': 0.98}], 'pass@1')
    assert (low.low, high.high) == (0.0, 100.0)
    # the sd of two values is their distance / sqrt(2), so that the half-width is t(0.975, 1) / 2 of the distance
    assert low.high == pytest.approx(1.05 + 12.7062 * 1.9 / 2, abs=1e-4)


def test_paired_gains_by_hand(tmp_path):
    _, found, _ = gains_of(write_pairs(tmp_path, FINALS))
    one, four = found['nca', 1], found['nca', 4]
    # gains 2, 3, 1: sd 1, t = 2 sqrt(3); with two degrees of freedom p = 1 - t / sqrt(t^2 + 2)
    assert (one.gain.mean, one.gain.sd, one.gain.half) == pytest.approx((2.0, 1.0, 2.48414), abs=1e-5)
    assert one.gain.p == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-6)
    assert one.detectable == pytest.approx(5.65349 / math.sqrt(3), abs=1e-4)
    # gains 3, 1, 3: mean 7/3, sd sqrt(4/3), t = 3.5
    assert four.gain.p == pytest.approx(1 - 3.5 / math.sqrt(14.25), abs=1e-6)
    assert (one.holm, four.holm) == pytest.approx((2 * four.gain.p, 2 * four.gain.p))
    assert not one.supported
    first, second = solved.gain_rows(found, 'scratch')
    assert (first['score'], first['gain, points'], first['detectable']) == ('pass@1', '+2.00 (-0.48 to +4.48)', '3.26')
    assert (second['score'], second['SD'], second['verdict']) == ('pass@4', '1.15', 'not significant')


def test_one_seed_has_the_interval_over_problems_and_says_so(tmp_path):
    study = write_pairs(tmp_path, {arm: finals[:1] for arm, finals in FINALS.items()})
    group, found, name = gains_of(study)
    _, nca = solved.result_rows(group, found, 'scratch')
    assert (nca['interval over'], nca['pass@1, %']) == ('problems', '12.00 (11.00 to 13.00)')
    assert (nca['pass@1 over scratch, points'], nca['verdict']) == ('+2.00', 'one seed: no interval')
    (sentence,) = solved.findings(study, {name: found})
    assert sentence == (
        '**nca** has 2.00 points higher pass@1 on gsm_symbolic than scratch on 1 paired seed: one pair gives no '
        'interval, so nothing is supported.'
    )
    assert any('one seed: over problems' in text.get_text() for text in picture_of(study).axes[0].texts)


# Words


def picture_of(study):
    return solved.pass_at_k(study, next(iter(study.solved)))


def findings_of(study):
    return solved.findings(study, all_gains(study))


def against(root, *gained, first=10.0):
    """A study of nca and scratch in which nca's pass@1 and pass@4 are higher by `gained`, seed by seed."""
    finals = [(first + seed, 30.0 + seed) for seed in range(len(gained))]
    nca = [(one + gain, four + gain) for (one, four), gain in zip(finals, gained, strict=True)]
    return write_pairs(root, {'nca': nca, 'scratch': finals})


def test_an_unsupported_gain_says_what_could_be_seen(tmp_path):
    (sentence,) = findings_of(write_pairs(tmp_path, FINALS))
    assert sentence == (
        '**nca** has 2.00 points higher pass@1 on gsm_symbolic than scratch (95 % interval -0.48 to +4.48, 3 paired '
        'seeds, p = 0.074): **not significant**, since the interval includes zero. The smallest detectable difference '
        'at this seed spread with 3 seeds is 3.26 points. In pass@4 the gain is +2.33 (-0.54 to +5.20) points: not '
        'significant.'
    )


def test_a_supported_gain_and_a_supported_loss(tmp_path):
    (sentence,) = findings_of(against(tmp_path / 'more', 3.0, 3.2, 3.1))
    claim = '**nca** has 3.10 points higher pass@1 on gsm_symbolic than scratch (95 % interval +2.85 to +3.35, 3 paired'
    assert sentence.startswith(claim)
    assert ': **supported**. In pass@4 the gain is +3.10 (+2.85 to +3.35) points: better.' in sentence
    (sentence,) = findings_of(against(tmp_path / 'less', -3.0, -3.2, -3.1))
    assert sentence.startswith('**nca** has 3.10 points lower pass@1 on gsm_symbolic than scratch (95 % interval -3.35')
    assert ': worse.' in sentence


def test_holm_counts_what_is_tested_and_may_take_a_gain_back(tmp_path):
    # gains 3, 1.5, 2 in both scores: mean 13/6, sd sqrt(7/12), t = 4.914
    (sentence,) = findings_of(against(tmp_path, 3.0, 1.5, 2.0))
    assert "**supported on its own, but not after Holm's correction** (Holm p = 0.078)" in sentence
    assert sentence.endswith('points: better, not after Holm.')
    write_solved(tmp_path / 'other-0', 'other', 0, scored(pass_1=11.0, pass_2=12.0, pass_4=33.0))
    write_solved(tmp_path / 'other-1', 'other', 1, scored(pass_1=12.0, pass_2=12.0, pass_4=31.5))
    found = all_gains(study_of(tmp_path))['gsm_symbolic']
    # gains 3 and 0.5: t = 1.4, with one degree of freedom. In pass@1 it is 1 point higher twice: no spread, no test
    assert found['other', 4].gain.p == pytest.approx(1 - 2 * math.atan(1.4) / math.pi)
    assert math.isnan(found['other', 1].holm)
    assert found['nca', 1].holm == pytest.approx(3 * found['nca', 1].gain.p)


def test_pairs_that_all_differ_by_the_same_support_nothing(tmp_path):
    study = against(tmp_path, 0.1, 0.1, first=0.2)  # whose differences are not the same in binary
    group, found, _ = gains_of(study)
    assert found['nca', 1].gain.sd == 0
    (sentence,) = findings_of(study)
    assert 'the same in each of 2 paired seeds: without spread there is no interval, so nothing is supp' in sentence
    assert solved.result_rows(group, found, 'scratch')[1]['verdict'] == 'no spread: no interval'
    assert picture_of(study).axes[1].get_ylim()[1] > 0.1


def test_arms_without_a_partner_are_not_compared(tmp_path):
    after = scored(pass_1=5.0)
    write_solved(tmp_path / 'a', 'nca', 1, after)
    (sentence,) = findings_of(study_of(tmp_path))
    assert sentence == 'There is no finished run of the baseline scratch on gsm_symbolic, so no arm is compared.'
    write_solved(tmp_path / 'b', 'scratch', 2, after)
    study = study_of(tmp_path)
    assert findings_of(study) == ['**nca** shares no seed with scratch on gsm_symbolic, so it is not compared.']
    group, found, _ = gains_of(study)
    assert [row['verdict'] for row in solved.result_rows(group, found, 'scratch')] == ['baseline', 'not compared']
    blocks_of(study)
    assert findings_of(study_of(tmp_path / 'b')) == [
        'Only the baseline scratch has finished on gsm_symbolic, so no arm is compared.'
    ]


def test_what_the_intervals_leave_out(tmp_path):
    parent = {'identity': 'pp', 'step': 200, 'plan': [['.*', 'carry']]}
    for arm, seeds in (('scratch', (0, 1)), ('nca', (0, 1, 2))):
        for seed in seeds:
            handed = parent if arm == 'nca' else parent | {'identity': f'p{seed}'}
            write_solved(tmp_path / f'{arm}-{seed}', arm, seed, scored(pass_1=5.0 + seed), parent=handed)
    study = study_of(tmp_path)
    group, *_ = gains_of(study)
    assert stats.caveat(group).startswith('All seeds of `nca` start from one parent run')
    assert [row['arm'] for row in write.plan_rows(study)] == ['scratch, instruct', 'nca, instruct']


# Several tasks, and guessing


TASKS = {'colour': 4, 'parity': 2, 'sums': 0}


def write_choices(root, skills):
    for arm, skill in skills.items():
        for seed in range(2):
            after = simulated(seed, skill + 0.02 * seed, TASKS)
            write_solved(root / f'{arm}-{seed}', arm, seed, after, config=asked('choices', 8))
    return study_of(root)


def test_tasks_and_chance_stand_beside_the_scores(tmp_path):
    study = write_choices(tmp_path, {'scratch': 0.3, 'nca': 0.4})
    group, _, _ = gains_of(study)
    rows = solved.task_rows(group)
    assert [row['task: pass@1, %'] for row in rows] == list(TASKS)
    parity = [100 * run.solved['parity/pass@1'] for run in group['nca'].values()]
    half = 12.7062 * abs(parity[0] - parity[1]) / 2
    mean = sum(parity) / 2
    assert rows[1]['nca'] == f'{mean:.2f} ({mean - half:.2f} to {min(100, mean + half):.2f})'
    first, eighth, *_ = solved.chance_rows(group)
    assert (first['arm'], first['k'], eighth['k']) == ('scratch', '1', '8')
    assert first['by guessing, %'] == '25.00'  # a quarter, a half, and nothing for open answers
    assert eighth['by guessing, %'] == f'{100 * ((1 - 0.75**8) + (1 - 0.5**8)) / 3:.2f}'
    normalised = [100 * run.solved['normalised@8'] for run in group['scratch'].values()]
    assert eighth["normalised, the paper's, %"].startswith(f'{sum(normalised) / 2:.2f} (')
    assert float(eighth['normalised by k guesses, %'].split()[0]) < sum(normalised) / 2
    assert not any('guessing' in sentence for sentence in findings_of(study))
    left = picture_of(study).axes[0]
    guessing = next(line for line in left.lines if line.get_linestyle() == '--')
    assert guessing.get_ydata()[0] == pytest.approx(25.0)
    assert {'guessing', 'nca', 'scratch'} == {text.get_text() for text in left.get_legend().texts}


def test_scores_at_the_bottom_are_warned_about(tmp_path):
    study = write_choices(tmp_path / 'choices', {'scratch': -0.02, 'nca': -0.03})
    assert findings_of(study)[-1] == (
        '**On choices no arm is above guessing (25.0 % pass@1) by its interval: conclude little from it.**'
    )
    study = write_pairs(tmp_path / 'nothing', {'nca': ((0.0, 0.0),) * 2, 'scratch': ((0.0, 0.0),) * 2})
    assert findings_of(study)[-1] == '**No problem of gsm_symbolic was solved in any run: conclude nothing from it.**'
    assert picture_of(study).axes


# Which runs belong


def test_programs_not_judged_yet_are_left_out_with_the_reason(tmp_path):
    unjudged = {'problems': 164, 'samples': 64}
    config = asked('humaneval', 64)
    write_solved(tmp_path / 'tuned', 'nca', 0, unjudged, step=0, loss=None, config=config)
    write_run(tmp_path / 'text', 'nca', records=[*TEXT, counted(unjudged, 200)], config={'benchmark': config})
    study = study_of(tmp_path)
    assert study.solved == {}
    assert list(study.text['nca']) == [0]
    assert {run.name: reason for run, reason in study.left_out} == {
        'tuned': 'its programs are not judged yet',
        'text': 'its programs are not judged yet (missing from the problems solved only)',
    }
    assert 'Problems solved' not in page.as_markdown(blocks_of(study))


def test_evaluation_alone_has_a_table_of_its_own(tmp_path):
    config = asked('humaneval', 8, shots=0)
    for arm, skill in (('scratch', 0.0), ('nca', 0.1)):
        after = simulated(1, skill, {'humaneval': 0})
        write_solved(tmp_path / arm, arm, 0, after, step=0, loss=None, config=config)
    write_solved(tmp_path / 'tuned', 'nca', 0, scored(pass_1=3.0), config=asked('humaneval'))
    study = study_of(tmp_path)
    assert list(study.solved) == ['humaneval', 'humaneval as carried']
    assert study.left_out == ()
    group = study.solved['humaneval as carried']
    assert list(group) == ['scratch', 'nca']
    (row, _) = solved.result_rows(group, solved.compare(group, 'scratch'), 'scratch')
    assert [name for name in row if 'before' in name or 'loss' in name] == []
    blocks = blocks_of(study)
    described = blocks[blocks.index('### humaneval as carried') + 1]
    assert described.startswith('60 problems, 8 samples each of at most 250 tokens, worked examples before')
    assert solved.task_rows(group) == solved.chance_rows(group) == []
    assert [line for line in page.as_text(blocks).split('\n') if line in study.solved] == list(study.solved)


def test_text_runs_are_among_both_and_instruct_runs_only_here(tmp_path):
    for seed in range(2):
        benchmark = [counted(scored(pass_1=4.0 + seed), 200), counted(scored(pass_1=99.0), 200, 'benchmark_ema')]
        config = {'benchmark': asked()}
        write_run(tmp_path / f'text-{seed}', 'scratch', seed=seed, records=[*TEXT, *benchmark], config=config)
    alone = [counted(scored(pass_1=3.0), 0), {**TEXT[1], 'step': 0, 'tokens': 0}]
    write_run(tmp_path / 'alone', 'scratch', records=alone, config={'benchmark': asked()})
    write_solved(tmp_path / 'tuned', 'scratch', 0, scored(pass_1=6.0))
    held_out = {'kind': 'eval', 'evaluator': 'held_out', 'step': 140, 'tokens': 140 * TOKENS_PER_STEP, 'loss': 1.5}
    write_run(tmp_path / 'unasked', 'scratch', 'instruct', 1, [held_out], data={'problems': 'pq'})
    study = study_of(tmp_path)
    assert list(study.solved) == ['gsm_symbolic', 'gsm_symbolic in the text stage', 'gsm_symbolic without training']
    assert list(study.text['scratch']) == [0, 1]
    assert sorted(run.name for run in study.runs) == ['alone', 'text-0', 'text-1', 'tuned']
    assert {run.name: reason for run, reason in study.left_out} == {
        'unasked': 'no benchmark evaluation at its last step 140'
    }
    text = study.solved['gsm_symbolic in the text stage']['scratch']
    assert [run.solved['pass@1'] for run in text.values()] == [0.04, 0.05]
    assert study.solved['gsm_symbolic without training']['scratch'][0].solved_before is None
    assert [row['run'] for row in write.run_rows(study)].count('text-0') == 1
    blocks = blocks_of(study)
    assert not any(isinstance(block, page.Picture) and 'pass' in block.name for block in blocks)  # one k is no curve


def test_unfinished_runs_have_no_place(tmp_path):
    folder = write_solved(tmp_path / 'a', 'nca', 0, scored(pass_1=3.0), scored(pass_1=1.0))
    lines = (folder / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (folder / 'metrics.jsonl').write_text(''.join(lines[:2]))
    (folder / 'metrics.jsonl').open('a').write(lines[-1])
    write_solved(tmp_path / 'b', 'nca', 1, scored(pass_1=3.0), done=False)
    study = study_of(tmp_path)
    assert [reason for _, reason in study.left_out] == [
        'no benchmark evaluation at its last step 140',
        'not finished (last record: step 140)',
    ]
    assert study.solved == {}


# Refusals


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'data': {'problems': 'other', 'tokenizer': 'cd'}}, 'data.problems pq and other'),
        ({'after': scored(problems=199, pass_1=5.0)}, 'problems 200 and 199'),
        ({'after': scored(samples=8, pass_1=5.0)}, 'samples 4 and 8'),
        ({'after': scored(pass_1=5.0, pass_2=6.0)}, 'recorded pass@2 absent and present'),
        ({'step': 70}, 'final tokens 573,440 and 286,720'),
        ({'config': asked(shots=0)}, 'benchmark.shots 3 and 0'),
        ({'config': asked(sampling={'temperature': 1.0, 'top_p': 1.0})}, 'benchmark.sampling.temperature 0.6 and 1'),
    ],
)
def test_runs_that_were_asked_otherwise_are_refused(tmp_path, change, message):
    write_solved(tmp_path / 'a', 'scratch', 0, scored(pass_1=5.0))
    write_solved(tmp_path / 'b', 'nca', 0, **{'after': scored(pass_1=5.0)} | change)
    pair = r"^can't compare scratch seed 0 .*a\) with nca seed 0 .*b\)"
    with pytest.raises(errors.UserError, match=f'{pair}: {message}$'):
        study_of(tmp_path)


def test_where_and_how_fast_problems_were_asked_is_no_difference(tmp_path):
    problems = asked()['problems'] | {'path': 'elsewhere'}
    write_solved(tmp_path / 'a', 'scratch', 0, scored(pass_1=5.0))
    write_solved(tmp_path / 'b', 'nca', 0, scored(pass_1=5.0), config=asked(problems=problems, batch={}, run_code=True))
    assert list(study_of(tmp_path).solved['gsm_symbolic']) == ['scratch', 'nca']


def test_two_runs_of_one_arm_and_seed_are_refused(tmp_path):
    for name in 'ab':
        write_solved(tmp_path / name, 'nca', 5, scored(pass_1=5.0))
    with pytest.raises(errors.UserError, match=r'two runs are nca seed 5 on gsm_symbolic: .*a and .*b'):
        study_of(tmp_path)
    edit(tmp_path / 'b', config={'benchmark': asked('arithmetic')})  # of another benchmark it may be
    assert list(study_of(tmp_path).solved) == ['arithmetic', 'gsm_symbolic']


# The whole report


def test_the_page_and_the_terminal_show_what_was_solved(tmp_path, capsys):
    write_pairs(tmp_path / 'runs', FINALS)
    for arm in ('nca', 'scratch'):
        write_run(tmp_path / 'runs' / f'text-{arm}', arm, records=TEXT)
    assert cli.main(['report', str(tmp_path / 'runs'), '--out', str(tmp_path / 'out')]) == 0
    said, text = capsys.readouterr().out, (tmp_path / 'out' / 'report.md').read_text('utf-8')
    study = study_of(tmp_path / 'runs')
    group, found, _ = gains_of(study)
    for table in (solved.result_rows(group, found, 'scratch'), solved.gain_rows(found, 'scratch')):
        assert tables.table(table) in said
        assert tables.table(table) in text
    assert page.as_text(findings_of(study)[:1]) in said
    headings = [text.find(heading) for heading in ('## Results', '## Problems solved', '## Where this comes from')]
    assert headings == sorted(headings)
    assert min(headings) > text.find(findings_of(study)[0]) > 0
    assert (tmp_path / 'out' / 'pass_at_k.png').read_bytes().startswith(b'\x89PNG')
    assert solved.NOTE in text
    assert solved.GAIN_NOTE in text
    assert solved.CHANCE_NOTE not in text
    assert '### Settings that differ between the runs on gsm_symbolic' in text
    assert {run.name for run in study.runs} == {row['run'] for row in write.run_rows(study)}
    assert len(study.runs) == 8


def test_a_baseline_that_was_only_asked_problems(tmp_path):
    write_pairs(tmp_path, FINALS)
    study = study_of(tmp_path, baseline='nca')
    assert list(study.solved['gsm_symbolic']) == ['nca', 'scratch']
    assert all_gains(study)['gsm_symbolic']['scratch', 1].gain.mean == pytest.approx(-2.0)
    with pytest.raises(errors.UserError, match='--baseline c4: no finished run of it; arms: nca, scratch'):
        study_of(tmp_path, baseline='c4')


def test_curves_by_k_show_means_and_paired_gains(tmp_path):
    study = write_pairs(tmp_path, FINALS)
    left, right = picture_of(study).axes
    blue = figures.arm_colours(study.arms, 'scratch')['nca']
    mean = next(line for line in left.lines if line.get_color() == blue)
    assert mean.get_xdata().tolist() == [1, 2, 4]
    assert mean.get_ydata()[[0, 2]] == pytest.approx([13.1666667, 31.0])
    *pairs, gain = [line.get_ydata() for line in right.lines if line.get_color() == blue]
    assert gain[[0, 2]] == pytest.approx([2.0, 7 / 3])
    assert [pair[0] for pair in pairs] == pytest.approx([2.0, 3.0, 1.0])
    assert [label.get_text() for label in left.get_xticklabels()] == ['1', '2', '4']
    low, high = right.get_ylim()
    assert low < -0.54
    assert high > 5.20


def test_an_arm_keeps_its_colour(tmp_path):
    for arm in ('scratch', 'dyck', 'nca'):
        write_run(tmp_path / f'text-{arm}', arm, records=TEXT)
    study = write_pairs(tmp_path, FINALS)
    assert study.arms == ['scratch', 'dyck', 'nca']
    colours = figures.arm_colours(study.arms, 'scratch')
    curves = losses.learning_curves(study).axes[0].lines
    assert colours['nca'] in {line.get_color() for line in picture_of(study).axes[0].lines}
    assert colours['nca'] in {line.get_color() for line in curves}
