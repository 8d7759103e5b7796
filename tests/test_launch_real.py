"""The launchers with real training under them: SIGTERM, exit code 75, and the run to its end."""

import json
import os
import pathlib
import signal
import subprocess

import pytest

from tests.test_launch import ROOT, called, environment, launch, stand_in


@pytest.mark.full
def test_a_real_run_goes_on_here_after_sigterm(tmp_path):
    """SIGTERM to the training alone: it saves, the script starts it again, and it finishes."""
    changes = [f'--config.train.{name}=300 steps' for name in ('stop', 'save_every', 'eval_every')]
    variables = {'CONFIG': 'experiments/nca_pretrain.py:smoke', 'WORKDIR': str(tmp_path / 'run')}
    command = ['bash', 'launch/local.sh', *changes, '--config.train.log_every=1 steps']
    said = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path, variables), stdout=said, text=True) as process:
        for line in process.stdout:
            if '  step 20/' in line:
                break
        child = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        os.kill(int(child[0]), signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait() == 0
    assert 'interrupted, with everything saved: going on (restart 1 of at most 100)' in rest
    resumed = int(rest.partition('resumed from step ')[2].split()[0])
    assert 20 <= resumed < 300
    assert '  step 300/300  ' in rest
    assert f'  step {resumed + 1}/300  train: ' in rest


@pytest.mark.full
def test_a_slurm_job_of_two_tasks_saves_is_queued_again_and_finishes(tmp_path):
    """The job for real, under the variables that SLURM gives its tasks; one of them alone gets the signal."""
    tasks = """while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
echo $second > {}/second
code=0 other=0
wait $first || code=$?
wait $second || other=$?
exit $((code > other ? code : other))"""
    stand_in(tmp_path / 'srun', tasks.format(tmp_path))
    stand_in(tmp_path / 'squeue', 'echo RUNNING')
    stand_in(tmp_path / 'scontrol', '')
    folder = tmp_path / 'run'
    variables = {'CONFIG': 'experiments/nca_pretrain.py:smoke', 'WORKDIR': str(folder), 'TASKS': '2', 'NODES': '1'}
    variables |= {'HOURS': '1', 'CHIP': 'cpu', 'SLURM_JOB_ID': str(os.getpid()), 'SLURM_SUBMIT_DIR': str(ROOT)}
    variables |= {'XLA_FLAGS': ''}
    changes = [f'--config.train.{name}=200 steps' for name in ('stop', 'save_every', 'eval_every')]
    command = ['bash', 'launch/slurm.sh', *changes]
    said = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path, variables), stdout=said, text=True) as job:
        for line in job.stdout:
            if '  step 20/' in line:
                break
        os.kill(int((tmp_path / 'second').read_text()), signal.SIGTERM)
        rest = job.stdout.read()
        assert job.wait() == 75
    assert 'interrupted, with everything saved; the job is RUNNING' in rest
    assert called(tmp_path, 'scontrol') == [f'scontrol requeue {os.getpid()}']
    done = launch('slurm', variables | {'SLURM_RESTART_COUNT': '1'}, tmp_path, *changes)
    assert done.returncode == 0
    assert 20 <= int(done.stdout.partition('resumed from step ')[2].split()[0]) < 200
    records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    steps = [record['step'] for record in records if record['kind'] == 'train']
    assert steps == list(range(1, 201))
