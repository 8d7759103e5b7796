"""The loop around a model of three numbers: what it records, and the trace that it writes."""

import dataclasses
import functools
import gzip
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nca_jax.batch import Batch
from nca_jax.checkpoint.store import Store
from nca_jax.errors import FieldError
from nca_jax.train import loop
from nca_jax.train.loop import Program
from nca_jax.train.metrics import MetricWriter
from nca_jax.train.step import TrainState, init_state
from nca_jax.train.timetable import Timetable, to_updates

TIMETABLE = Timetable(
    stop=6, log_every=2, eval_every=4, save_every=6, keep=frozenset(), traced=range(0), tokens_per_step=64
)


@functools.cache
def train_step():
    def step(state: TrainState, batch: Batch):
        loss, grads = jax.value_and_grad(lambda w: jnp.mean((w[None] - batch.inputs_BxL) ** 2))(state.params['w'])
        params = {'w': state.params['w'] - 0.1 * grads}
        return TrainState(state.step + 1, params, state.opt_state), {'loss': loss, 'grad_norm': optax.tree.norm(grads)}

    return jax.jit(step, donate_argnums=0)


def stream(step: int) -> Batch:
    with jax.transfer_guard('allow'):
        return Batch(*[jnp.full((2, 3), float(step))] * 3)


def train(folder: pathlib.Path, profile: str = '', stream=stream) -> tuple[np.ndarray, list[dict]]:
    """The final weights, and the records."""
    folder.mkdir()
    state = init_state({'w': jnp.zeros(3)}, optax.identity())
    writer = MetricWriter(folder, 0, TIMETABLE.stop, 'toy')
    program = Program(
        data=loop.Data(None, stream, {'toy': lambda params, step: {'loss': 1.0}}, hashes={}),
        timetable=dataclasses.replace(TIMETABLE, traced=to_updates(profile)),
        abstract=None,
        init=None,
        train_step=train_step(),
        schedule=lambda step: 0.1 + 0 * step,
        flops=1e6,
    )
    with Store(folder / 'checkpoints', keep=1) as store:
        try:
            state = loop.train(
                state,
                program,
                about={'identity': 'x', 'vocab_size': 1, 'parent': None},
                store=store,
                writer=writer,
                traces=folder / 'profile',
                preemption=loop.Preemption(),
                seconds={},
            )
        finally:
            writer.close()
    records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return np.asarray(state.params['w']), records


def traced_updates(folder: pathlib.Path) -> list[int]:
    (file,) = folder.rglob('*.trace.json.gz')
    events = json.loads(gzip.decompress(file.read_bytes()))['traceEvents']
    return sorted(int(event['args']['step_num']) for event in events if event.get('name') == 'update')


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    return train(tmp_path_factory.mktemp('loop') / 'plain')


def test_records_hold_what_one_looks_for(plain):
    weights, records = plain
    rows = [record for record in records if record['kind'] == 'train']
    assert [row['step'] for row in rows] == [2, 4, 6]
    measured = {'loss', 'grad_norm', 'param_norm', 'lr', 'tokens_per_s', 'data_wait'}
    for row in rows:
        assert row.keys() == measured | {'kind', 'step', 'tokens', 'time'}
        assert 0 <= row['data_wait'] <= 1
    assert rows[-1]['param_norm'] == pytest.approx(np.linalg.norm(weights))
    assert rows[-1]['loss'] == pytest.approx(last_loss(), rel=1e-5)


def last_loss() -> float:
    weight = 0.0
    for step in range(TIMETABLE.stop):
        loss = (weight - step) ** 2
        weight -= 0.1 * 2 * (weight - step) / 3
    return loss


def test_a_trace_holds_the_updates_asked_for_and_changes_nothing(plain, tmp_path, capsys):
    weights, records = train(tmp_path / 'run', '3-4')
    np.testing.assert_array_equal(weights, plain[0])
    assert [row.get('loss') for row in records] == [row.get('loss') for row in plain[1]]
    folder = tmp_path / 'run' / 'profile'
    assert traced_updates(folder) == [3, 4]
    assert all(path.stat().st_size > 1000 for path in folder.rglob('*.xplane.pb'))  # what TensorBoard reads
    assert f'the trace that begins with update 3 is in {folder}\n' in capsys.readouterr().out


def test_a_trace_is_written_even_if_the_run_ends_within_it(tmp_path):
    class CrashError(Exception):
        pass

    def failing(step: int) -> Batch:
        if step == 4:
            raise CrashError
        return stream(step)

    with pytest.raises(CrashError):
        train(tmp_path / 'run', '4-6', stream=failing)
    assert traced_updates(tmp_path / 'run' / 'profile') == [4, 5]  # the fifth failed at its batch


def test_updates_to_trace():
    assert list(to_updates('10-12')) == [10, 11, 12]
    assert list(to_updates('7')) == [7]
    assert list(to_updates('')) == []
    for wrong in ('0-2', '5-3', '3-', '1,2', 'all', '-3'):
        with pytest.raises(FieldError, match=r"profile = .*: must be updates, first-last, such as '10-12'"):
            to_updates(wrong)
