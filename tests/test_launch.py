"""The launchers: what they print, ask for and refuse, and what becomes of exit code 75.

Neither SLURM nor a cloud is here. Programs of theirs stand in for them, which write down how they were called.
"""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = 'experiments/nca_pretrain.py:smoke,band=50+'
RUN = {'CONFIG': CONFIG, 'WORKDIR': 'runs/launch-test'}
SLICE = {'NAME': 'launch-test', 'TYPE': 'v5litepod-16', 'PROJECT': 'mine', 'ZONE': 'here-a'}

# What each script can't do without, and the cost that it says with it.
NEEDED = {
    'local': RUN,
    'slurm': RUN | {'NODES': '2', 'HOURS': '24', 'CHIP': 'H100'},
    'tpu_vm': RUN | SLICE | {'NFS': '10.0.0.2:/share'},
    'gke': RUN | SLICE | {'CLUSTER': 'ours', 'STORAGE': 'share', 'MOUNT': '/share'},
    'skypilot': RUN | {'NAME': 'launch-test', 'ACCELERATORS': 'H100:8', 'BUCKET': 'ours'},
}
COSTS = {
    'local': 'not estimated on a CPU',
    'slurm': '2 chips x 24 hours = 48 chip-hours',
    'tpu_vm': 'hours on 16 x v5e',
    'gke': 'hours on 16 x v5e',
    'skypilot': 'hours on 8 x H100',
}
# What runs where, beside the training itself.
PROGRAMS = {
    'local': (),
    'slurm': ('sbatch --nodes=2 --ntasks-per-node=1 --time=1440', 'srun'),
    'tpu_vm': (
        'git bundle create',
        'gcloud compute tpus tpu-vm create',
        'gcloud compute tpus tpu-vm ssh',
        'gcloud compute tpus tpu-vm delete',
    ),
    'gke': ('git clone', 'xpk workload create', '--restart-on-exit-codes=75'),
    'skypilot': ('sky jobs launch', 'recover_on_exit_codes: [75]'),
}


def environment(tmp_path: pathlib.Path, variables: dict[str, str]) -> dict[str, str]:
    """The variables alone, with the programs of `tmp_path` before all others."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(('JAX_', 'XLA_')) or name == 'HOME'}
    return kept | {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'PYTHON': sys.executable} | variables


def launch(script: str, variables: dict[str, str], tmp_path: pathlib.Path, *arguments: str):
    return subprocess.run(
        ['bash', f'launch/{script}.sh', *arguments],
        cwd=ROOT,
        env=environment(tmp_path, variables),
        capture_output=True,
        text=True,
        check=False,
    )


def stand_in(path: pathlib.Path, body: str) -> str:
    """A program that writes its arguments into `calls` beside it, then does `body`."""
    calls = shlex.quote(str(path.parent / 'calls'))
    path.write_text(f'#!/usr/bin/env bash\necho "{path.name} $*" >> {calls}\n{body}\n')
    path.chmod(0o755)
    return str(path)


def trainer(tmp_path: pathlib.Path, *codes: int) -> str:
    """A Python whose trainings end with these exit codes, one after another, and then with 99."""
    (tmp_path / 'codes').write_text(''.join(f'{code}\n' for code in (*codes, 99)))
    body = f"""[ "$3" = train ] || exit 0
code=$(head -n 1 {tmp_path}/codes)
sed -i 1d {tmp_path}/codes
exit "$code\""""
    return stand_in(tmp_path / 'python', body)


def called(tmp_path: pathlib.Path, start: str) -> list[str]:
    return [line for line in (tmp_path / 'calls').read_text().splitlines() if line.startswith(start)]


def test_shellcheck():
    scripts = [str(path) for path in sorted((ROOT / 'launch').glob('*.sh')) if path.name != 'env.sh']  # env.sh by -a
    checker = pathlib.Path(sys.executable).with_name('shellcheck')
    assert subprocess.run([checker, '-a', *scripts], capture_output=True, text=True, check=False).stdout == ''


@pytest.mark.parametrize('script', NEEDED)
def test_help_names_what_is_needed(script, tmp_path):
    done = launch(script, {}, tmp_path, '--help')
    assert (done.returncode, done.stderr) == (0, '')
    words = done.stdout.split()
    assert {*NEEDED[script], 'PYTHON', f'launch/{script}.sh', '[--dry-run]'} <= set(words)
    assert '#' not in done.stdout


@pytest.mark.parametrize('script', NEEDED)
def test_what_is_missing_is_one_line(script, tmp_path):
    for missing in NEEDED[script]:
        given = {name: value for name, value in NEEDED[script].items() if name != missing}
        done = launch(script, given, tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)
        assert done.stderr.startswith(f'error: {missing} is not set: ')
        assert len(done.stderr) > len(f'error: {missing} is not set: \n')  # and what it is


@pytest.mark.parametrize('script', NEEDED)
def test_dry_run_prints_cost_and_commands_and_does_nothing(script, tmp_path):
    before = sorted(ROOT.glob('runs/launch-test*'))
    for program in ('sbatch', 'srun', 'gcloud', 'xpk', 'sky', 'git'):
        stand_in(tmp_path / program, 'exit 1')
    done = launch(script, NEEDED[script], tmp_path, '--dry-run', '--config.train.stop=7 steps', '--config.seed=3')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith('cost: 3,584 tokens in 7 updates of 8 x 64')
    assert COSTS[script] in done.stdout
    for program in PROGRAMS[script]:
        assert program in done.stdout
    assert not (tmp_path / 'calls').exists()
    assert sorted(ROOT.glob('runs/launch-test*')) == before
    text = done.stdout.replace("'\\''", "'")  # as the shell that gets a --command sees it
    if script == 'tpu_vm':
        entry = f'env NCA_CLUSTER=auto CONFIG={CONFIG} WORKDIR=runs/launch-test SLICE=v5litepod-16'
        entry += ' HOURS= MFU=0.4 RESTARTS=100 bash launch/local.sh'
    else:
        entry = f' -m nca_jax train --config={CONFIG} --workdir=runs/launch-test'
    assert f"{entry} '--config.train.stop=7 steps' --config.seed=3" in text


@pytest.mark.parametrize(
    ('script', 'variables', 'said'),
    [
        ('local', {'PROCESSES': 'two'}, 'PROCESSES = two: must be a whole number'),
        ('local', {'HOURS': 'long'}, 'HOURS = long: must be a number of hours'),
        ('local', {'PYTHON': 'nowhere'}, "PYTHON = nowhere: not there; 'bash launch/env.sh' makes"),
        ('local', {'CHIP': 'H1'}, "--chip = 'H1': must be one of v4, v5e"),
        ('slurm', {'TASKS': '3', 'GPUS': '8'}, 'TASKS = 3: must be 1, or 8 as GPUS'),
        ('slurm', {'HOURS': '0.1'}, 'HOURS = 0.1: must be at least 10 minutes'),
        ('tpu_vm', {'WORKDIR': '/elsewhere'}, 'WORKDIR = /elsewhere: must lie in runs/'),
        ('tpu_vm', {'CAPACITY': 'free'}, 'CAPACITY = free: must be on-demand, spot or reserved'),
        ('tpu_vm', {'TYPE': 'v9-8'}, "--slice = 'v9-8': must be one of v4"),
        ('gke', {'CAPACITY': 'free'}, 'CAPACITY = free: must be spot, on-demand or flex'),
        ('skypilot', {'ACCELERATORS': 'H100'}, 'ACCELERATORS = H100: must be like H100:8'),
        ('skypilot', {'NODES': '2'}, 'VOLUME is not set: 2 hosts need one that they all see'),
        ('skypilot', {'ACCELERATORS': 'tpu-v6e-16'}, 'VOLUME is not set: several hosts need one'),
    ],
)
def test_what_is_wrong_is_one_line(script, variables, said, tmp_path):
    done = launch(script, NEEDED[script] | variables, tmp_path, '--dry-run')
    assert (done.returncode, done.stderr.count('\n')) == (2, 1)
    assert f'error: {said}' in done.stderr
    assert not [line for line in done.stdout.splitlines() if not line.startswith('cost: ')]


def test_arguments_are_changes(tmp_path):
    done = launch('local', RUN, tmp_path, '--workdir=runs/other')
    assert done.returncode == 2
    assert "error: unexpected argument '--workdir=runs/other'" in done.stderr


def test_here_75_is_gone_on_from_and_nothing_else(tmp_path):
    for codes, ends, starts in (((75, 75, 0), 0, 3), ((75, 1), 1, 2), ((2,), 2, 1), ((0,), 0, 1)):
        (tmp_path / 'calls').unlink(missing_ok=True)
        done = launch('local', RUN | {'PYTHON': trainer(tmp_path, *codes)}, tmp_path, '--config.seed=3')
        assert done.returncode == ends
        line = f'python -m nca_jax train --config={CONFIG} --workdir=runs/launch-test --config.seed=3'
        assert called(tmp_path, 'python -m nca_jax train') == [line] * starts
    done = launch('local', RUN | {'PYTHON': trainer(tmp_path, 75, 75, 75), 'RESTARTS': '2'}, tmp_path)
    assert done.returncode == 75
    assert 'restart 2 of at most 2' in done.stdout


def test_here_a_stop_is_handed_on_and_final(tmp_path):
    """SIGTERM to the script: each of its processes saves, and none is started again."""
    body = f"""[ "$3" = train ] || exit 0
trap 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES" >> {tmp_path}/saved; exit 75' TERM
touch {tmp_path}/ready.$JAX_PROCESS_ID
while :; do sleep 0.05; done"""
    variables = RUN | {'PYTHON': stand_in(tmp_path / 'python', body), 'PROCESSES': '2', 'HOURS': '1'}
    with subprocess.Popen(['bash', 'launch/local.sh'], cwd=ROOT, env=environment(tmp_path, variables)) as process:
        while len(list(tmp_path.glob('ready.*'))) < 2:
            time.sleep(0.02)
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75
    assert sorted((tmp_path / 'saved').read_text().split('\n')) == ['', '0 of 2', '1 of 2']


def test_here_a_limit_of_time_ends_it_for_good(tmp_path):
    body = '[ "$3" = train ] || exit 0\ntrap "exit 75" TERM\nwhile :; do sleep 0.05; done'
    variables = RUN | {'PYTHON': stand_in(tmp_path / 'python', body), 'HOURS': '0.0001'}
    assert launch('local', variables, tmp_path).returncode == 124
    assert len(called(tmp_path, 'python -m nca_jax train')) == 1


@pytest.mark.parametrize(
    ('code', 'state', 'restarts', 'requeued'),
    [(75, 'RUNNING', 0, True), (75, 'COMPLETING', 0, False), (75, 'RUNNING', 100, False), (1, 'RUNNING', 0, False)],
)
def test_a_slurm_job_is_queued_again_after_75_alone(code, state, restarts, requeued, tmp_path):
    stand_in(tmp_path / 'srun', 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    stand_in(tmp_path / 'squeue', f'echo {state}')
    stand_in(tmp_path / 'scontrol', '')
    job = {'SLURM_JOB_ID': '7', 'SLURM_RESTART_COUNT': str(restarts), 'SLURM_SUBMIT_DIR': str(ROOT), 'GPUS': '8'}
    done = launch('slurm', NEEDED['slurm'] | job | {'PYTHON': trainer(tmp_path, code)}, tmp_path)
    assert done.returncode == code
    assert len(called(tmp_path, 'srun --kill-on-bad-exit=0 --wait=600 ')) == 1
    assert bool(called(tmp_path, 'scontrol requeue 7')) == requeued


def test_a_slurm_node_with_one_process_gives_it_all_gpus(tmp_path):
    done = launch('slurm', NEEDED['slurm'] | {'GPUS': '4', 'CPUS': '16'}, tmp_path, '--dry-run')
    assert 'env JAX_LOCAL_DEVICE_IDS=0,1,2,3 srun' in done.stdout
    assert '--cpus-per-task=16 --gpus-per-node=4 launch/slurm.sh' in done.stdout
    done = launch('slurm', NEEDED['slurm'] | {'GPUS': '4', 'TASKS': '4'}, tmp_path, '--dry-run')
    assert 'JAX_LOCAL_DEVICE_IDS' not in done.stdout
    assert 'sbatch --nodes=2 --ntasks-per-node=4' in done.stdout


def test_a_lost_slice_is_made_again(tmp_path):
    """75, or ssh's own 255, on a slice that stays: trained on; one that goes: deleted, made again; then deleted.

    One of the questions about its state fails, so that it seems to be missing: it is asked again.
    """
    (tmp_path / 'ends').write_text('75 READY\n255 READY\n1 PREEMPTED\n0 READY\n')
    (tmp_path / 'tries').write_text('0\n1\n1\n0\n')  # of making it
    body = f"""cd {tmp_path}
case $4 in
  describe) if [ -e blind ]; then rm blind; exit 1; fi; cat state 2>/dev/null ;;
  create) code=$(head -n 1 tries); sed -i 1d tries; [ "$code" = 0 ] && echo READY > state ;;
  delete) rm state ;;
  ssh) [[ $* == *local.sh* ]] || exit 0
    read -r code state < ends; sed -i 1d ends; echo "$state" > state
    [ "$code" != 255 ] || touch blind; exit "$code" ;;
esac"""
    stand_in(tmp_path / 'gcloud', body)
    for program in ('git', 'sleep'):
        stand_in(tmp_path / program, '')
    done = launch('tpu_vm', NEEDED['tpu_vm'] | {'PYTHON': trainer(tmp_path)}, tmp_path)
    assert done.returncode == 0
    calls = [line.split() for line in called(tmp_path, 'gcloud') + called(tmp_path, 'sleep')]
    made = [words[4] for words in calls if words[0] == 'gcloud' and words[4] in ('create', 'delete')]
    assert made == ['create', 'create', 'delete', 'create', 'create', 'delete']
    assert ['sleep', '300'] in calls
    assert not (tmp_path / 'state').exists()
    assert (tmp_path / 'ends').read_text() == ''


def test_a_run_that_fails_on_a_sound_slice_is_over(tmp_path):
    body = '[[ $* != *local.sh* ]] || exit 2; [ "$4" != describe ] || echo READY'
    stand_in(tmp_path / 'gcloud', body)
    stand_in(tmp_path / 'git', '')
    done = launch('tpu_vm', NEEDED['tpu_vm'] | {'PYTHON': trainer(tmp_path), 'KEEP': 'yes'}, tmp_path)
    assert done.returncode == 2
    assert not called(tmp_path, 'gcloud compute tpus tpu-vm delete')
    assert not called(tmp_path, 'gcloud compute tpus tpu-vm create')
