"""What the loop says while it trains: which metrics it reads when, and the rate that it reports."""

import time
import types

import jax.numpy as jnp
import pytest

from nca_jax.train import loop

PLAN = loop.Plan(stop=100, log_every=2, eval_every=10, save_every=10, keep=frozenset(), tokens_per_step=64)


@pytest.fixture
def records() -> list[dict]:
    return []


@pytest.fixture
def logger(records) -> loop._Logger:
    writer = types.SimpleNamespace(write=records.append, advance=lambda step: None)
    return loop._Logger(PLAN, lambda step: 0.1 * step, writer)


def metrics(loss: float) -> dict:
    return {'loss': jnp.float32(loss)}


def test_a_step_is_read_once_the_next_is_queued(logger, records):
    logger.queue(1, metrics(1.0))
    logger.queue(2, metrics(2.0))
    assert not records
    logger.queue(3, metrics(3.0))
    assert [(record['step'], record['loss'], record['tokens']) for record in records] == [(2, 2.0, 128)]
    assert records[0]['lr'] == pytest.approx(0.1)  # of the update that made the step
    logger.queue(4, metrics(4.0))
    logger.flush()
    assert [record['step'] for record in records] == [2, 4]


def test_what_is_pending_is_checked_before_anything_is_saved(logger, records):
    logger.queue(1, metrics(float('nan')))
    with pytest.raises(loop.NotFiniteError, match=r'step 1: .*nan.* stream\(0\)'):
        logger.flush()
    assert not records


def test_the_rate_counts_the_steps_between_two_reads(logger, records):
    """A step takes 20 ms here, whether its record is the first after a pause, one of many, or the last before one."""
    for step in range(1, 9):
        time.sleep(0.02)
        logger.queue(step, metrics(1.0))
    logger.flush()
    rates = [record['tokens_per_s'] for record in records]
    assert len(rates) == 4
    assert all(rate < 1.05 * 64 / 0.02 for rate in rates)
