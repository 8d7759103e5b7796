"""Durations, schedules and what decays."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nca_jax.errors import FieldError
from nca_jax.train.duration import to_steps
from nca_jax.train.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer, make_schedule

CONFIG = OptimizerConfig(
    'adamw', 1e-4, 0.9, 0.999, 1e-8, 0.1, ('.*kernel',), None, 'mean', ScheduleConfig('5000 steps', '50000 steps', 0.0)
)


@pytest.mark.parametrize(
    ('text', 'steps'),
    [
        ('5000 steps', 5000),
        ('0 steps', 0),
        ('164M tokens', 5005),
        ('163.84M tokens', 5000),
        ('9.03B tokens', 275574),
        ('32K tokens', 1),
    ],
)
def test_durations(text, steps):
    assert to_steps(text, 32 * 1024, 'stop') == steps


def test_shares_need_a_whole():
    assert to_steps('10%', 1, 'warmup', whole=600) == 60
    assert to_steps('2.5 %', 1, 'warmup', whole=600) == 15
    for text in ('.%', '1.2.3%', '%'):
        with pytest.raises(FieldError, match='warmup = '):
            to_steps(text, 1, 'warmup', whole=600)
    with pytest.raises(FieldError, match=r"stop = '10%'.*164M tokens"):
        to_steps('10%', 1, 'stop')


@pytest.mark.parametrize('text', ['5000', 'soon', '-3 steps', '1T tokens', '5000 updates'])
def test_bad_durations_are_named(text):
    with pytest.raises(FieldError, match='stop = '):
        to_steps(text, 1, 'stop')


def test_the_papers_automata_stage_ends_at_the_peak():
    """5,000 updates of a 50,000-update schedule: linear warm-up from 0 that is just complete."""
    schedule = make_schedule(CONFIG, 32 * 1024)
    steps = np.array([0, 2500, 5000, 27500, 50000, 60000])
    assert [float(schedule(step)) for step in steps] == pytest.approx([0, 5e-5, 1e-4, 5e-5, 0, 0], abs=1e-10)


def test_warmup_must_end_before_the_horizon():
    late = dataclasses.replace(CONFIG, schedule=ScheduleConfig('60000 steps', '50000 steps', 0.0))
    with pytest.raises(FieldError, match=r"schedule.warmup = '60000 steps'.*50000 steps"):
        make_schedule(late, 1)


def updates(config: OptimizerConfig, gradient: float) -> dict:
    optimizer = make_optimizer(config, 1)
    params = {'a': {'kernel': jnp.full(4, 10.0)}, 'norm': {'scale': jnp.full(4, 10.0)}}
    grads = {'a': {'kernel': jnp.full(4, gradient)}, 'norm': {'scale': jnp.zeros(4)}}
    return optimizer.update(grads, optimizer.init(params), params)[0]


def test_only_the_named_leaves_decay():
    constant = dataclasses.replace(CONFIG, schedule=ScheduleConfig('0 steps', '50000 steps', 1.0))
    found = updates(constant, 0.0)
    np.testing.assert_allclose(found['a']['kernel'], -1e-4 * 0.1 * 10, rtol=1e-5)
    np.testing.assert_array_equal(found['norm']['scale'], 0)


def test_adam_has_no_decay():
    with pytest.raises(FieldError, match="'adam' has none"):
        dataclasses.replace(CONFIG, name='adam')
    plain = dataclasses.replace(
        CONFIG, name='adam', weight_decay=0.0, schedule=ScheduleConfig('0 steps', '9 steps', 1.0)
    )
    np.testing.assert_allclose(updates(plain, 3.0)['a']['kernel'], -1e-4, rtol=1e-4)


def test_clip_bounds_the_norm():
    """With eps far above the gradient, Adam is linear in it, so that the clip shows."""
    base = dataclasses.replace(
        CONFIG, name='adam', weight_decay=0.0, eps=1e6, schedule=ScheduleConfig('0 steps', '9 steps', 1.0)
    )
    free, clipped = (updates(dataclasses.replace(base, clip=clip), 3.0)['a']['kernel'] for clip in (None, 1.0))
    np.testing.assert_allclose(free / clipped, 6.0, rtol=1e-4)  # the norm of four threes is 6
