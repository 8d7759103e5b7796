"""The same tokens whatever computes them: devices, processes, rules from disk or found anew."""

import dataclasses
import functools
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from nca_jax import keys
from nca_jax.data import streams
from nca_jax.nca import stream
from tests import process_of_two
from tests.test_nca_bank import CONFIG, paper_config
from tests.test_nca_stream import make_stream, sharding

ROOT = pathlib.Path(__file__).parents[1]


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return f'localhost:{probe.getsockname()[1]}'


def environment(devices: int) -> dict[str, str]:
    """Of a process that compiles as this one does, with so many virtual devices: of two such flags the last holds."""
    return os.environ | {'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'}


def test_two_processes_make_the_tokens_and_rules_of_one(tmp_path):
    address = free_address()
    command = [sys.executable, '-m', 'tests.process_of_two', address]
    children = [
        subprocess.Popen([*command, str(process), tmp_path], cwd=ROOT, env=environment(2)) for process in (0, 1)
    ]
    try:
        assert [child.wait(120) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    results = [np.load(tmp_path / f'process-{process}.npz') for process in (0, 1)]
    alone = stream.Banks(CONFIG, 0, 'train', None, process_of_two.EPOCHS)
    hashes = [alone(epoch).hash for epoch in range(process_of_two.EPOCHS)]
    expected = stream.make_stream(CONFIG, 0, 'train', process_of_two.BATCH, process_of_two.LENGTH, sharding(1), alone)
    size = (process_of_two.BATCH, process_of_two.LENGTH)
    words = streams.make_computed_stream(process_of_two.BRACKETS, 'dyck', 0, 'train', *size, sharding(1))(1).inputs_BxL
    for process, found in enumerate(results):
        np.testing.assert_array_equal(found[f'dyck-{4 * process}'], words[4 * process : 4 * process + 2])
        assert found['hashes'].tolist() == hashes
        assert bool(found['blocks'].size) == (process == 0)  # which saves for both
        refusal, first, *on_all = found['refusals']
        assert refusal == 'rules: process 1 differs from process 0; do both run the same code?'
        assert first == ('OSError: no disk', 'UserError: no disk')[process]
        there = 'MachineError: process 1 failed to read its part', 'ValueError: process 1 failed to read its part'
        assert tuple(on_all) == (there, ('MemoryError: of process 1', "KeyError: 'of process 1'"))[process]
        for step in process_of_two.STEPS:
            whole = np.asarray(expected(step).inputs_BxL)
            for first in (4 * process, 4 * process + 2):
                np.testing.assert_array_equal(found[f'{step}-{first}'], whole[first : first + 2])
    assert len(list((tmp_path / 'rules').iterdir())) == 2  # nothing is left but the two sets


def test_tokens_are_the_same_with_rules_from_disk(tmp_path):
    searched, read = (make_stream(tmp_path)(1).inputs_BxL for _ in range(2))
    elsewhere = make_stream(None)(1).inputs_BxL
    np.testing.assert_array_equal(searched, read)
    np.testing.assert_array_equal(searched, elsewhere)


@pytest.mark.full
@pytest.mark.parametrize('temperature', [1e-4, 1e-3])
def test_twenty_thousand_trajectories_do_not_depend_on_the_number_of_devices(temperature):
    config = paper_config('paper')
    config = dataclasses.replace(config, rule=dataclasses.replace(config.rule, temperature=temperature))
    number_B = np.arange(20_000, dtype=np.uint32)
    names_Bx3 = np.stack([0 * number_B, number_B, number_B], 1)

    @functools.cache
    def tokens(devices):
        sequences = stream.make_sequences(config, 1025, 'train', sharding(devices))
        return np.asarray(sequences(keys.key(0), jax.device_put(names_Bx3, sharding(devices))))

    assert tokens(1).shape == (20_000, 1025)
    for devices in (2, 8):
        np.testing.assert_array_equal(tokens(devices), tokens(1))
