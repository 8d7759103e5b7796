"""Batches of automata, and what a run leaves for its report."""

import dataclasses
import functools
import itertools
import json

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nca_jax import keys
from nca_jax.nca import bank, examples, patches, stream
from tests.test_nca_bank import CONFIG
from tests.test_nca_rollout import oracle_logits

LENGTH = 40  # 11 tokens a grid: four frames, the last one cut
STILL = dataclasses.replace(CONFIG, rule=dataclasses.replace(CONFIG.rule, temperature=0.0), stream_block=4)


@functools.cache
def sharding(devices):
    axes = {'axis_types': (AxisType.Auto,), 'devices': jax.devices()[:devices]}
    return NamedSharding(jax.make_mesh((devices,), ('data',), **axes), PartitionSpec('data'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('rules')


@pytest.fixture(scope='module')
def make(folder):
    return functools.cache(
        lambda config=CONFIG, devices=1, batch=8, split='train': stream.make_stream(
            config, 0, split, batch, LENGTH, sharding(devices), folder
        )
    )


def test_tokens_do_not_depend_on_the_number_of_devices(make):
    batches = [make(CONFIG, devices)(3) for devices in (1, 2, 8)]
    for batch in batches[1:]:
        for found, expected in zip(batch, batches[0], strict=True):
            np.testing.assert_array_equal(found, expected)
    assert len(batches[2].inputs_BxL.sharding.device_set) == 8
    assert batches[2].inputs_BxL.addressable_shards[0].data.shape == (1, LENGTH)


def test_a_batch_is_a_function_of_its_step(make, tmp_path):
    again = stream.make_stream(CONFIG, 0, 'train', 8, LENGTH, sharding(1), tmp_path)
    for step in (4, 0, 4):
        np.testing.assert_array_equal(make()(step).inputs_BxL, again(step).inputs_BxL)
    halves = [make(batch=4)(step).inputs_BxL for step in (8, 9)]
    np.testing.assert_array_equal(make()(4).inputs_BxL, np.concatenate(halves))
    rows = np.concatenate([make()(step).inputs_BxL for step in range(5)] + [make(split='valid')(0).inputs_BxL])
    alive = rows[[len(set(row)) > 4 for row in rows]]  # automata that froze at one colour may look alike
    assert len(np.unique(alive, axis=0)) == len(alive) > 30


def test_a_rule_that_comes_again_runs_anew(make):
    again = make(dataclasses.replace(CONFIG, fresh_rules=False))
    first, later = again(0).inputs_BxL, again(5).inputs_BxL  # sequences 0-7 and 40-47: the same eight of ten rules
    alive = [len(set(row)) > 4 for row in np.asarray(first)]
    assert sum(alive) > 4
    assert (np.asarray(first) != np.asarray(later)).any(1)[alive].all()


def test_the_loops_mesh_and_transfer_guard_change_nothing(make, tmp_path):
    with jax.set_mesh(sharding(8).mesh):
        looped = stream.make_stream(CONFIG, 0, 'train', 8, LENGTH, sharding(8), tmp_path)
        with jax.transfer_guard('disallow'):
            batch = looped(1)  # an epoch's rules are searched inside the loop too
    np.testing.assert_array_equal(batch.inputs_BxL, make()(1).inputs_BxL)


@pytest.mark.parametrize(('fresh', 'trajectories'), [(True, 1), (False, 2)])
def test_sequences_are_trajectories_of_the_epochs_rules(make, folder, fresh, trajectories):
    config = dataclasses.replace(STILL, fresh_rules=fresh, trajectories_per_rule=trajectories)
    batch = make(config)(2)  # sequences 16 to 23
    tokens_BxL1 = np.concatenate([batch.inputs_BxL, batch.targets_BxL[:, -1:]], 1)
    np.testing.assert_array_equal(tokens_BxL1[:, 1:], batch.targets_BxL)
    for number, tokens_L in zip(range(16, 24), tokens_BxL1, strict=True):
        epoch = number // 10 if fresh else 0
        index = bank.bank(config, 0, 'train', epoch, folder).index_R[number % 10]
        weights = bank.candidate(config, keys.key(0), 'train', np.uint32(epoch), np.uint32(index))
        grid_TxYxX = patches.decode(config.vocab, tokens_L[:33], 6, 6)
        for now, following in itertools.pairwise(grid_TxYxX):
            np.testing.assert_array_equal(oracle_logits(config.rule, weights, now).argmax(-1), following)


@pytest.mark.parametrize(('grids', 'masked'), [(0, 0), (1, 10), (2, 21)])
def test_the_first_grids_targets_carry_no_loss(make, grids, masked):
    weights_BxL = np.asarray(make(dataclasses.replace(CONFIG, mask_grids=grids))(0).weights_BxL)
    np.testing.assert_array_equal(weights_BxL, np.broadcast_to(np.arange(LENGTH) >= masked, (8, LENGTH)))


def test_examples_for_the_report(folder):
    examples.write_examples(CONFIG, 0, folder)
    with np.load(folder / 'automata.npz') as shown:
        assert shown['frames'].shape == (9, 4, 6, 6)
        assert shown['level'].tolist() == ['low'] * 3 + ['medium'] * 3 + ['high'] * 3
        assert (np.diff(shown['ratios']) >= 0).all()
        assert shown['ratios'][2] < shown['ratios'][3] < shown['ratios'][6]
        assert {name: shown[name].shape for name in ('w1', 'b3')} == {'w1': (9, 3, 3, 3, 2), 'b3': (9, 3)}
        assert int(shown['colours']) == 3
        weights = {name: shown[name] for name in ('w1', 'b1', 'w2', 'b2', 'w3', 'b3')}
        agree = [
            oracle_logits(CONFIG.rule, {name: w[rule] for name, w in weights.items()}, now).argmax(-1) == after
            for rule, frames in enumerate(shown['frames'])
            for now, after in itertools.pairwise(frames)
        ]
    assert np.mean(agree) > 0.9  # temperature 1e-3: the largest logit nearly always wins
    record = json.loads((folder / 'complexity.json').read_text())
    assert record['accepted'] == 10
    assert sum(record['counts']) == record['candidates']
    assert len(record['edges']) == len(record['counts']) + 1
    assert record['band'] == [0.8, 1.3]
