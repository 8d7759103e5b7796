"""A run over several processes is the run of one: numbers, checkpoints, SIGTERM, and processes that don't come."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from nca_jax import distributed, trees
from nca_jax.checkpoint.store import read_manifest, restore_params, saved_params
from nca_jax.errors import UserError
from tests.test_nca_processes import environment, free_address

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 24
AUTOMATA = [
    '--config=experiments/nca_pretrain.py:smoke',
    f'--config.train.stop={STEPS} steps',
    '--config.train.eval_every=12 steps',
    '--config.train.save_every=12 steps',
    '--config.mesh.fsdp=2',
]


def start(workdir: pathlib.Path, arguments: list[str], processes: int, devices: int) -> list[subprocess.Popen]:
    """The command in so many processes, with so many virtual devices each."""
    address = free_address()
    command = [sys.executable, '-m', 'nca_jax', 'train', f'--workdir={workdir}', *arguments]
    children = []
    for process in range(processes):
        who = {'JAX_NUM_PROCESSES': str(processes), 'JAX_PROCESS_ID': str(process)}
        who |= {'JAX_COORDINATOR_ADDRESS': address} if processes > 1 else {}
        log = (workdir.parent / f'{workdir.name}-{process}.log').open('a')
        children.append(subprocess.Popen(command, cwd=ROOT, env=environment(devices) | who, stdout=log, stderr=log))
    return children


def codes(children: list[subprocess.Popen]) -> list[int]:
    try:
        return [child.wait(240) for child in children]
    finally:
        for child in children:
            child.kill()


def wait_for_step(workdir: pathlib.Path, step: int) -> None:
    for _ in range(2400):  # four processes compile for a minute on two cores
        if (workdir / 'metrics.jsonl').exists() and any(each['step'] >= step for each in records(workdir)):
            return
        time.sleep(0.1)
    raise AssertionError(f'{workdir} never came to step {step}')


def records(workdir: pathlib.Path) -> list[dict]:
    lines = (workdir / 'metrics.jsonl').read_text().split('\n')
    return [json.loads(line) for line in lines[:-1]]


def assert_same_run(found: pathlib.Path, expected: pathlib.Path) -> None:
    """Losses, evaluations, and every weight at the end."""
    ours, theirs = ([each for each in records(run) if each['kind'] != 'done'] for run in (found, expected))
    assert [(each['kind'], each['step']) for each in ours] == [(each['kind'], each['step']) for each in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for name in ('loss', 'grad_norm', 'cell_accuracy', 'perplexity'):
            assert (name in one) == (name in other)
            if name in one:
                np.testing.assert_allclose(one[name], other[name], rtol=1e-5)
    ours, theirs = (weights(run / 'checkpoints') for run in (found, expected))
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[path], rtol=1e-5, atol=1e-5 * np.abs(theirs[path]).max(), err_msg=path)


def weights(checkpoints: pathlib.Path) -> dict[str, np.ndarray]:
    """The parameters at the end, on one device."""
    saved = saved_params(read_manifest(checkpoints))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree, manifest = restore_params(checkpoints, None, dict.fromkeys(saved, here))
    assert manifest['step'] == STEPS
    return trees.flatten(jax.device_get(tree))


def interrupted_run(workdir: pathlib.Path, arguments: list[str], processes: int, devices: int) -> None:
    """Trains over the processes, with a SIGTERM to the last of them on the way, and again to the end."""
    children = start(workdir, arguments, processes, devices)
    wait_for_step(workdir, 3)
    children[-1].send_signal(signal.SIGTERM)
    assert codes(children) == [75] * processes
    stopped = read_manifest(workdir / 'checkpoints')['step']
    assert 3 < stopped < STEPS
    assert records(workdir)[-1]['step'] <= stopped
    assert codes(start(workdir, arguments, processes, devices)) == [0] * processes


@pytest.mark.full
def test_two_processes_train_stop_and_go_on_as_one(tmp_path):
    alone = start(tmp_path / 'one', AUTOMATA, processes=1, devices=4)
    assert codes(alone) == [0]
    interrupted_run(tmp_path / 'two', AUTOMATA, processes=2, devices=2)
    assert_same_run(tmp_path / 'two', tmp_path / 'one')
    assert 'resumed from step' in (tmp_path / 'two-0.log').read_text()
    assert 'step 24' not in (tmp_path / 'two-1.log').read_text()  # process 0 alone speaks


@pytest.mark.full
def test_four_processes_train_all_stages_as_one(tmp_path):
    corpus = tmp_path / 'corpus'
    corpus.mkdir()
    for number in range(40):
        (corpus / f'{number}.txt').write_text(f'The rule of {number} is {number * number}, and no other.\n' * 400)
    for name, processes, devices in (('one', 1, 4), ('four', 4, 1)):
        automata, text = tmp_path / f'automata-{name}', tmp_path / f'text-{name}'
        language = f'--config=experiments/language.py:corpus=text_files,path={corpus},parent={automata},smoke'
        text_arguments = [language, *AUTOMATA[1:], f'--config.data.cache={tmp_path}/cache-{name}']
        # The last stage begins with the same weights, so that it gives the same answers.
        tuning = [f'--config=experiments/gsm8k.py:parent={tmp_path}/text-one,smoke', *AUTOMATA[1:]]
        stages = (automata, AUTOMATA), (text, text_arguments), (tmp_path / f'tuned-{name}', tuning)
        for workdir, arguments in stages:
            if processes == 1:
                assert codes(start(workdir, arguments, processes, devices)) == [0]
            else:
                interrupted_run(workdir, arguments, processes, devices)
    for stage in ('automata', 'text', 'tuned'):
        assert_same_run(tmp_path / f'{stage}-four', tmp_path / f'{stage}-one')
    mistaken = start(tmp_path / 'automata-four', [*AUTOMATA, '--config.seed=1'], processes=2, devices=2)
    assert codes(mistaken) == [2, 2]
    for process in (0, 1):
        assert 'holds the run of another config' in (tmp_path / f'automata-four-{process}.log').read_text()
    (alone,) = (tmp_path / 'tuned-one' / 'answers').glob('step-0-*.jsonl')
    together = tmp_path / 'tuned-four' / 'answers' / alone.name
    assert len(alone.read_text().splitlines()) == 2
    assert sorted(together.read_text().splitlines()) == sorted(alone.read_text().splitlines())


def roll(calls: list[tuple[int, int]], seconds: float = 20) -> list[str]:
    """What each of (process, count) is told in one roll call; '' where all is well."""
    host, port = free_address().split(':')
    told = [''] * len(calls)

    def call(place: int, process: int, count: int) -> None:
        try:
            distributed._call_roll(host, int(port), count, process, seconds)
        except UserError as error:
            told[place] = str(error)

    threads = [threading.Thread(target=call, args=(place, *who)) for place, who in enumerate(calls)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)  # in this order
    for thread in threads:
        thread.join()
    return told


def test_a_roll_call_with_all_there():
    assert roll([(1, 3), (0, 3), (2, 3)]) == ['', '', '']


def test_a_process_that_never_arrives_is_named_to_all():
    said = 'process 2 of 3 did not arrive in 1 s'
    for present in ([(0, 3), (1, 3)], [(1, 3), (0, 3)]):
        assert roll(present, seconds=1) == [said, said]


def test_a_process_that_comes_when_the_others_have_begun_is_told():
    with socket.create_server(('localhost', 0)) as listener:

        def answer_like_grpc() -> None:
            with contextlib.suppress(OSError):  # the listener is closed
                while True:
                    with listener.accept()[0] as line:
                        line.recv(100)
                        line.sendall(b'\0\0\x24\x04\xfe\x03\0\xff')

        threading.Thread(target=answer_like_grpc, daemon=True).start()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=r'no process 0 at localhost:\d+ in 1 s: what is there waits for no'):
            distributed._call_roll('localhost', port, 3, 2, 1)


def test_processes_that_are_too_many_are_told():
    told = roll([(0, 2), (2, 3), (1, 2)])
    assert told == ['', 'process 0 waits for 2 processes, and this one is process 2 of 3', '']
    told = roll([(0, 3), (1, 3), (1, 3), (2, 3)])
    assert told == ['', '', 'there are two processes 1 of 3; this is the second', '']


def test_nobody_to_call():
    assert roll([(1, 2)], seconds=1)[0].startswith('process 1 of 2 found no process 0 at localhost:')


def test_the_command_ends_where_a_process_never_arrives(tmp_path):
    variables = {'JAX_COORDINATOR_ADDRESS': free_address(), 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}
    command = [sys.executable, '-m', 'nca_jax', 'train', f'--workdir={tmp_path}/run', *AUTOMATA]
    env = os.environ | variables | {'NCA_TIMEOUT': '1'}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, 'error: process 1 of 2 did not arrive in 1 s\n')
    assert not (tmp_path / 'run').exists()


def test_sigterm_while_it_waits_for_the_others_is_a_preemption(tmp_path):
    address = free_address()
    variables = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}
    command = [sys.executable, '-m', 'nca_jax', 'train', f'--workdir={tmp_path}/run', *AUTOMATA]
    host, port = address.split(':')
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | variables) as child:
        for _ in range(1200):
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port))):
                break
            time.sleep(0.1)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 75


@pytest.mark.parametrize(
    ('variables', 'said'),
    [
        ({'JAX_COORDINATOR_ADDRESS': 'here'}, "JAX_COORDINATOR_ADDRESS = 'here': must be host:port"),
        ({'JAX_NUM_PROCESSES': 'two'}, "JAX_NUM_PROCESSES = 'two': must be a whole number"),
        ({'JAX_PROCESS_ID': '2'}, 'JAX_PROCESS_ID = 2: must be below JAX_NUM_PROCESSES = 2'),
        ({'NCA_TIMEOUT': 'long'}, "NCA_TIMEOUT = 'long'"),
        ({'NCA_CLUSTER': 'yes'}, "NCA_CLUSTER = 'yes': must be 'auto'"),
    ],
)
def test_variables_that_make_no_sense(monkeypatch, variables, said):
    valid = {'JAX_COORDINATOR_ADDRESS': 'localhost:1', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}
    for name, value in (valid | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        distributed.initialise()


@pytest.mark.parametrize(
    ('nodes', 'host'),
    [('one', 'one'), ('one,two', 'one'), ('n[007-012,015],two', 'n007'), ('n[3,5]', 'n3'), ('10.0.0.1', '10.0.0.1')],
)
def test_process_0_under_slurm_is_on_the_first_node(monkeypatch, nodes, host):
    called = []
    monkeypatch.setattr(distributed, '_call_roll', lambda *asked: called.append(asked))
    monkeypatch.setattr(distributed, '_join', lambda **asked: called.append(asked['coordinator_address']))
    variables = {'SLURM_NTASKS': '4', 'SLURM_PROCID': '3', 'SLURM_JOB_ID': '4097', 'SLURM_STEP_NODELIST': nodes}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    distributed.initialise()
    assert called == [(host, 61_441, 4, 3, 300), f'{host}:61441']
