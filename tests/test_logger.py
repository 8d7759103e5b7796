"""What the logger reads when, and what its records say; the clock is the test's."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nca_jax.errors import NotFiniteError
from nca_jax.scale import chips
from nca_jax.train import metrics
from nca_jax.train.step import init_state

TOKENS, FLOPS = 64, 4e6
WAIT, UPDATE = 3.0, 4.0  # seconds that an update waits for its batch, and takes in all


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, 'time', clock)
    return clock


@pytest.fixture
def records() -> list[dict]:
    return []


def make_logger(records: list[dict], every: int = 2) -> metrics.Logger:
    writer = types.SimpleNamespace(write=records.append)
    timetable = types.SimpleNamespace(log_every=every, tokens_per_step=TOKENS)
    logger = metrics.Logger(timetable, FLOPS, lambda state: {'param_norm': state}, writer)
    logger.start(0)
    return logger


def queue(logger: metrics.Logger, step: int, clock: Clock | None = None, loss: float = 1.0) -> None:
    if clock is not None:
        clock.now += UPDATE
    logger.queue(step, jnp.float32(step), {'loss': jnp.float32(loss)}, WAIT)


def test_a_step_is_read_once_the_next_is_queued(records):
    logger = make_logger(records)
    for step in (1, 2):
        queue(logger, step, loss=step)
    assert not records
    queue(logger, 3)
    assert [(record['step'], record['loss'], record['tokens']) for record in records] == [(2, 2.0, 128)]
    assert records[0]['param_norm'] == 2.0  # of the state after that update, not of the one that was queued since
    queue(logger, 4)
    logger.flush()
    assert [record['step'] for record in records] == [2, 4]


def test_the_state_is_looked_at_for_records_alone(records):
    looked = []
    logger = make_logger(records)
    logger._observe = lambda state: looked.append(float(state)) or {}
    for step in range(1, 7):
        queue(logger, step)
    assert looked == [2.0, 4.0, 6.0]


def test_what_is_pending_is_checked_before_anything_is_saved(records):
    logger = make_logger(records)
    queue(logger, 1, loss=float('nan'))
    with pytest.raises(NotFiniteError, match=r'step 1: .*nan.* stream\(0\)'):
        logger.flush()
    assert not records


def test_rates_and_waits_are_those_of_the_updates_between(records, clock):
    """Alike whether a record is the first after a pause, one of many, or the last before one."""
    logger = make_logger(records)
    for step in range(1, 9):
        queue(logger, step, clock)
    logger.flush()
    clock.now += 1000  # an evaluation
    logger.start(8)
    queue(logger, 9, clock)
    queue(logger, 10, clock)
    logger.flush()
    assert [record['step'] for record in records] == [2, 4, 6, 8, 10]
    for record in records:
        assert record['tokens_per_s'] == pytest.approx(TOKENS / UPDATE)
        assert record['data_wait'] == pytest.approx(WAIT / UPDATE)


def test_every_record_has_a_rate_even_of_a_single_update(records, clock):
    logger = make_logger(records, every=1)
    for step in range(1, 4):
        queue(logger, step, clock)
        logger.flush()
        logger.start(step)
    assert [record['tokens_per_s'] for record in records] == pytest.approx([TOKENS / UPDATE] * 3)


def test_mfu_is_of_all_devices_and_of_known_ones_alone(records, clock, monkeypatch):
    kind = jax.devices()[0].device_kind
    assert kind not in chips.PEAKS
    peak = 1e6
    for known in ({}, {kind: peak}):
        monkeypatch.setattr(chips, 'PEAKS', known)
        logger = make_logger(records)
        for step in (1, 2, 3):
            queue(logger, step, clock)
    without, having = records
    assert 'mfu' not in without
    assert having['mfu'] == pytest.approx(FLOPS / UPDATE / (peak * jax.device_count()))


def test_observe_measures_the_parameters_and_the_rate_of_the_update_just_done():
    params = {'a': jnp.full((300,), 3.0, jnp.bfloat16), 'b': {'c': jnp.full((5, 20), -4.0)}}
    state = init_state(params, optax.sgd(1.0)).replace(step=jnp.int32(7))
    seen = metrics.make_observe(lambda step: 0.5 * step)(state)
    assert float(seen['lr']) == 3.0
    np.testing.assert_allclose(seen['param_norm'], np.sqrt(300 * 9 + 100 * 16), rtol=1e-6)  # bfloat16 would say 65.5


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    assert metrics.memory() == {}  # a CPU doesn't count

    def device(peak: int):
        return types.SimpleNamespace(memory_stats=lambda: {'peak_bytes_in_use': peak})

    monkeypatch.setattr(jax, 'local_devices', lambda: [device(9), device(7)])
    assert metrics.memory() == {'hbm_peak_bytes': 9.0}
