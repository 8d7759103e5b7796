"""Batches of automata, and what a run leaves for its report."""

import dataclasses
import functools
import itertools
import json
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nca_jax import keys
from nca_jax.nca import bank, patches, score, stream
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
        lambda config=CONFIG, devices=1, batch=8, split='train': make_stream(folder, config, devices, batch, split)
    )


def make_stream(folder, config=CONFIG, devices=1, batch=8, split='train'):
    rules = stream.Banks(config, 0, split, folder, epochs=1)
    return stream.make_stream(config, 0, split, batch, LENGTH, sharding(devices), rules)


def test_tokens_do_not_depend_on_the_number_of_devices(make):
    batches = [make(CONFIG, devices)(3) for devices in (1, 2, 8)]
    for batch in batches[1:]:
        for found, expected in zip(batch, batches[0], strict=True):
            np.testing.assert_array_equal(found, expected)
    assert len(batches[2].inputs_BxL.sharding.device_set) == 8
    assert batches[2].inputs_BxL.addressable_shards[0].data.shape == (1, LENGTH)


def test_a_batch_is_a_function_of_its_step(make, tmp_path):
    again = make_stream(tmp_path)
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
        looped = make_stream(tmp_path, devices=8)
        with jax.transfer_guard('disallow'):
            batch = looped(1)  # an epoch's rules are searched inside the loop too
    np.testing.assert_array_equal(batch.inputs_BxL, make()(1).inputs_BxL)


@pytest.mark.parametrize(('fresh', 'trajectories'), [(True, 1), (False, 2)])
def test_sequences_are_trajectories_of_the_epochs_rules(make, folder, fresh, trajectories):
    config = dataclasses.replace(STILL, fresh_rules=fresh, trajectories_per_rule=trajectories)
    batch = make(config)(2)  # sequences 16 to 23
    tokens_BxL1 = whole_sequences(batch)
    np.testing.assert_array_equal(tokens_BxL1[:, 1:], batch.targets_BxL)
    for number, tokens_L in zip(range(16, 24), tokens_BxL1, strict=True):
        epoch = number // 10 if fresh else 0
        index = bank.bank(score.Candidates(config, 0, 'train', epoch), folder).index_R[number % 10]
        weights = score.candidate(config.rule, keys.key(0), 'train', np.uint32(epoch), np.uint32(index))
        grid_TxYxX = patches.decode(config.vocab, tokens_L[:33], 6, 6)
        for now, following in itertools.pairwise(grid_TxYxX):
            np.testing.assert_array_equal(oracle_logits(config.rule, weights, now).argmax(-1), following)


@pytest.mark.parametrize(('grids', 'masked'), [(0, 0), (1, 10), (2, 21)])
def test_the_first_grids_targets_carry_no_loss(make, grids, masked):
    weights_BxL = np.asarray(make(dataclasses.replace(CONFIG, mask_grids=grids))(0).weights_BxL)
    np.testing.assert_array_equal(weights_BxL, np.broadcast_to(np.arange(LENGTH) >= masked, (8, LENGTH)))


@pytest.mark.parametrize('shuffle', ['tokens', 'frames'])
def test_controls_have_the_same_tokens_in_another_order(make, shuffle):
    plain, mixed = (whole_sequences(make(dataclasses.replace(CONFIG, shuffle=how))(1)) for how in ('none', shuffle))
    np.testing.assert_array_equal(np.sort(plain, 1), np.sort(mixed, 1))
    ends = np.isin(np.arange(LENGTH + 1) % 11, (0, 10))
    np.testing.assert_array_equal(plain[:, ends], mixed[:, ends])
    alive = [len(set(row)) > 4 for row in plain]
    assert sum(alive) > 4
    changed = (plain != mixed).any(1)[alive]
    assert changed.any() if shuffle == 'frames' else changed.all()  # three grids may keep their order
    grids = [[sorted(map(tuple, row[:33].reshape(-1, 11))) for row in rows] for rows in (plain, mixed)]
    assert (grids[0] == grids[1]) == (shuffle == 'frames')  # whether grids stay whole


def whole_sequences(batch):
    return np.concatenate([batch.inputs_BxL, batch.targets_BxL[:, -1:]], 1)


def test_one_fixed_rule_for_all_sequences(make, folder):
    config = dataclasses.replace(STILL, rules_per_epoch=1, fresh_rules=False, held_out='trajectories')
    [index] = bank.bank(score.Candidates(config, 0, 'train', 0), folder).index_R
    weights = score.candidate(config.rule, keys.key(0), 'train', np.uint32(0), np.uint32(index))
    rows = [
        np.asarray(make(config, split=split)(step).inputs_BxL)
        for split, step in (('train', 0), ('train', 9), ('valid', 0))
    ]
    for tokens_L in np.concatenate(rows):
        for now, following in itertools.pairwise(patches.decode(config.vocab, tokens_L[:33], 6, 6)):
            np.testing.assert_array_equal(oracle_logits(config.rule, weights, now).argmax(-1), following)
    assert len(np.unique(np.concatenate(rows), axis=0)) > 20  # other starts


def test_the_next_epochs_rules_are_found_beside_training(tmp_path):
    rules = stream.Banks(CONFIG, 0, 'train', tmp_path, epochs=3)
    batches = stream.make_stream(CONFIG, 0, 'train', 8, LENGTH, sharding(1), rules)
    batches(0)
    following = bank.bank_path(score.Candidates(CONFIG, 0, 'train', 1), tmp_path)
    deadline = time.monotonic() + 60
    while not following.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    inode = following.stat().st_ino
    batches(1)
    second = rules(1)
    assert following.stat().st_ino == inode  # read, not searched again
    for found, epoch in ((rules(0), 0), (second, 1), (rules(2), 2)):
        here = bank.search(score.Candidates(CONFIG, 0, 'train', epoch))
        assert (found.hash, found.index_R.tolist()) == (here.hash, here.index_R.tolist())
    assert not rules._searches  # no more than are wanted


def test_a_search_that_was_killed_is_done_again(tmp_path):
    rules = stream.Banks(CONFIG, 0, 'train', tmp_path, epochs=2)
    rules(0)
    rules._searches[1].kill()
    assert rules(1).hash == bank.search(score.Candidates(CONFIG, 0, 'train', 1)).hash


def test_a_search_ends_with_its_parent(tmp_path):
    code = (
        'import dataclasses, pathlib, time\n'
        'from nca_jax.nca import score, stream; from tests.test_nca_bank import CONFIG\n'
        'endless = dataclasses.replace(CONFIG, band=(1.9, 2.0), candidates_per_rule=10**9)\n'
        f'search = stream.start_search(score.Candidates(endless, 0, "train", 1), pathlib.Path("{tmp_path}"))\n'
        'print(search.pid, flush=True); time.sleep(60)'
    )
    root = pathlib.Path(__file__).parents[1]
    parent = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, cwd=root, text=True)
    child = pathlib.Path('/proc') / parent.stdout.readline().strip()
    time.sleep(2)
    assert running(child)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)


def running(process: pathlib.Path) -> bool:
    """Whether it is there and no zombie, which stays where nobody waits for orphans."""
    return process.exists() and 'State:\tZ' not in (process / 'status').read_text()


def test_examples_for_the_report(folder):
    bank.write_examples(CONFIG, 0, folder)
    with np.load(folder / 'automata.npz') as shown:
        assert shown['frames'].shape == (9, 4, 6, 6)
        assert shown['level'].tolist() == ['low'] * 3 + ['medium'] * 3 + ['high'] * 3
        assert (np.diff(shown['ratios']) >= 0).all()
        assert shown['ratios'][2] < shown['ratios'][3] < shown['ratios'][6]
        assert int(shown['colours']) == 3
        assert {name: shown[name].shape for name in ('w1', 'b3')} == {'w1': (9, 3, 3, 3, 2), 'b3': (9, 3)}
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
    assert record['band'] == [0.8, 1.2]  # as far as the histogram goes
