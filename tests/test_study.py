"""The quickstart itself: killed in each of its stages and called again, it ends as if nothing had happened."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from nca_jax import cli, jobs
from nca_jax.checkpoint.store import read_manifest
from nca_jax.errors import UserError
from tests.test_run import metrics

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 600.0


def start(out: pathlib.Path, log) -> subprocess.Popen:
    # One virtual device, as for users; a cache of text that both studies share is named in the experiment itself.
    environment = os.environ | {'XLA_FLAGS': ''}
    command = [sys.executable, '-m', 'nca_jax', 'study', 'experiments/quickstart.py', 'smoke-reasoning', f'--out={out}']
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def kill_when(process: subprocess.Popen, sight: pathlib.Path) -> None:
    """SIGKILL at the moment that `sight` exists."""
    deadline = time.time() + PATIENCE
    while not sight.exists():
        assert process.poll() is None, f'the study ended before {sight}'
        assert time.time() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.full
def test_a_study_killed_in_each_stage_ends_the_same(tmp_path):
    killed, whole = tmp_path / 'killed', tmp_path / 'whole'
    sights = ['automata-0/run.json', 'automata-0/checkpoints/3', 'scratch-0/metrics.jsonl', 'nca-0/checkpoints/3']
    sights += ['only_attn-0/metrics.jsonl', 'scratch-0-tuned/answers', 'nca-1-tuned/checkpoints/3', 'report/report.md']
    with (tmp_path / 'log').open('w') as log:
        for sight in sights:
            kill_when(start(killed, log), killed / sight)
        assert start(killed, log).wait() == 0, (tmp_path / 'log').read_text()
        assert start(whole, log).wait() == 0
        stamps = {path: path.stat().st_mtime_ns for path in whole.glob('*/checkpoints/*')}
        assert start(whole, log).wait() == 0  # a second call reuses everything
        assert '14 of them finished before' in (tmp_path / 'log').read_text()
        assert {path: path.stat().st_mtime_ns for path in whole.glob('*/checkpoints/*')} == stamps
    runs = sorted(path.parent.name for path in whole.glob('*/run.json'))
    assert len(runs) == 14
    for name in runs:
        assert metrics(killed / name) == metrics(whole / name), name
        ours, theirs = (read_manifest(out / name / 'checkpoints') for out in (killed, whole))
        for field in ('identity', 'parent', 'data', 'step', 'leaves'):  # leaves: checksums of all weights and moments
            assert ours[field] == theirs[field], (name, field)
    for file in ('report.md', 'report.html', 'learning_curves.png', 'automata.png', 'complexity.png'):
        assert (killed / 'report' / file).stat().st_size > 0
    assert 'mean nothing' in (killed / 'report' / 'report.md').read_text()


def make_jobs(file: pathlib.Path, study: str, out: pathlib.Path) -> list[jobs.Job]:
    return jobs.make_jobs(file, study, out)[0]


def test_parents_come_first_and_words_name_their_folders(tmp_path):
    file = ROOT / 'experiments' / 'quickstart.py'
    made = make_jobs(file, 'smoke', tmp_path)
    names = [job.name for job in made]
    for job in made:
        if job.parent:
            assert names.index(job.parent) < names.index(job.name)
            assert f'parent={tmp_path / job.parent}' in job.source
    assert all(job.tokens == 6 * 8 * 64 for job in made)


def test_a_study_that_continues_another_joins_it():
    file = ROOT / 'experiments' / 'quickstart.py'
    out = pathlib.Path('runs/quickstart')
    main, both = (make_jobs(file, name, out) for name in ('main', 'reasoning'))
    assert [job.name for job in both[: len(main)]] == [job.name for job in main]
    assert len(both) == len(main) + 15
    assert all(job.parent == job.name.removesuffix('-tuned') for job in both[len(main) :])
    assert jobs.make_jobs(file, 'reasoning', None)[1] == out
    smoke, both = (make_jobs(file, name, out) for name in ('smoke', 'smoke-reasoning'))
    assert [job.name for job in both[: len(smoke)]] == [job.name for job in smoke]


def test_a_finished_run_of_another_config_is_refused(tmp_path):
    file = ROOT / 'experiments' / 'quickstart.py'
    job = make_jobs(file, 'smoke', tmp_path)[0]
    assert not job.is_finished()
    job.folder.mkdir()
    (job.folder / 'metrics.jsonl').write_text(json.dumps({'kind': 'done', 'step': 6, 'tokens': 3072}) + '\n{"half')
    (job.folder / 'run.json').write_text(json.dumps({'identity': 'another', 'config': {}}))
    with pytest.raises(UserError, match='automata-0 holds the run of another config'):
        job.is_finished()


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['experiments/nowhere.py'], 'no such experiment file'),
        (['experiments/nca_pretrain.py'], 'has no STUDIES'),
        (['README.md'], 'README.md: no such experiment file'),
        (['experiments/quickstart.py', '--workers=0'], '--workers = 0: must be positive'),
        (['experiments/quickstart.py', '--out=a,b'], "--out = 'a,b': a comma"),
        (['experiments/quickstart.py', '--out=README.md'], '--out=README.md: File exists'),
        (['experiments/quickstart.py', 'smok'], "study = 'smok': experiments/quickstart.py has main, reasoning, smoke"),
    ],
)
def test_bad_studies_are_one_line(arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.main(['study', *arguments]) == 2
    assert said in capsys.readouterr().err
