"""Copying and noise: what repeats, what is scored, and how often everything occurs."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

from nca_jax.data import controls, streams
from nca_jax.data.controls import CopyConfig, NoiseConfig
from nca_jax.errors import UserError

COPY, NOISE = CopyConfig(size=50, period=(3, 12)), NoiseConfig(size=10)
SEQUENCES = {COPY: controls.copy_sequences, NOISE: controls.noise_sequences}


def make(config, batch=8, length=40, devices=1, split='train'):
    axes = {'axis_types': (AxisType.Auto,), 'devices': jax.devices()[:devices]}
    sharding = NamedSharding(jax.make_mesh((devices,), ('data',), **axes), PartitionSpec('data'))
    sequences = functools.partial(SEQUENCES[config], config, length + 1)
    return streams.make_computed_stream(sequences, 'control', 0, split, batch, length, sharding)


@functools.cache
def many(config):
    """Tokens (512, 41) and weights (512, 40)."""
    batch = jax.device_get(make(config, batch=512)(0))
    return np.concatenate([batch.inputs_BxL, batch.targets_BxL[:, -1:]], axis=1), batch.weights_BxL


def test_a_copy_repeats_its_period_and_scores_what_repeats():
    """The oracle reads the period off the weights, and takes nothing else from the code."""
    tokens_BxL1, weights_BxL = many(COPY)
    assert set(np.unique(weights_BxL)) == {0, 1}
    periods = (weights_BxL == 0).sum(axis=1) + 1  # target 0 is token 1, the period's second
    for row, weights, period in zip(tokens_BxL1, weights_BxL, periods, strict=True):
        np.testing.assert_array_equal(weights, np.arange(1, 41) >= period)
        np.testing.assert_array_equal(row[period:], row[:-period])
    assert set(periods) == set(range(3, 13))
    assert stats.chisquare(np.bincount(periods)[3:]).pvalue > 1e-3
    shorter = [
        all(row[p:] == row[:-p]) for row, period in zip(tokens_BxL1, periods, strict=True) for p in range(1, period)
    ]
    assert np.mean(shorter) < 0.01  # the period is the least, but by chance


def test_segments_are_uniform():
    tokens_BxL1, _ = many(COPY)
    assert stats.chisquare(np.bincount(tokens_BxL1[:, :3].ravel(), minlength=50)).pvalue > 1e-3
    assert tokens_BxL1.max() == 49


def test_noise_is_uniform_and_independent():
    tokens_BxL1, weights_BxL = many(NOISE)
    assert (weights_BxL == 1).all()
    assert stats.chisquare(np.bincount(tokens_BxL1.ravel(), minlength=10)).pvalue > 1e-3
    for first, second in ((tokens_BxL1[:, :-1], tokens_BxL1[:, 1:]), (tokens_BxL1[:-1], tokens_BxL1[1:])):
        pairs = np.zeros((10, 10), int)
        np.add.at(pairs, (first.ravel(), second.ravel()), 1)
        assert stats.chi2_contingency(pairs).pvalue > 1e-3


@pytest.mark.parametrize('config', [COPY, NOISE], ids=['copy', 'noise'])
def test_tokens_do_not_depend_on_devices_or_batch_size(config):
    expected = make(config)(3)
    for devices, batch, step in ((8, 8, 3), (1, 24, 1)):
        found = make(config, batch, devices=devices)(step)
        for ours, theirs in zip(found, expected, strict=True):
            shared = min(len(ours), len(theirs))
            np.testing.assert_array_equal(np.asarray(ours)[:shared], np.asarray(theirs)[:shared])
    assert not np.array_equal(make(config, split='valid')(3).inputs_BxL, expected.inputs_BxL)


@pytest.mark.parametrize(
    ('make_config', 'said'),
    [
        (lambda: CopyConfig(1, (2, 3)), 'size = 1: must be at least 2'),
        (lambda: CopyConfig(5, (0, 3)), r'period = \(0, 3\): must be \(low, high\)'),
        (lambda: CopyConfig(5, (4, 3)), r'period = \(4, 3\): must be \(low, high\)'),
    ],
)
def test_bad_fields_are_named(make_config, said):
    with pytest.raises(UserError, match=said):
        make_config()
