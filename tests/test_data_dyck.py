"""Dyck words against a stack machine, and their chances against the config's."""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

from nca_jax import keys
from nca_jax.data import controls, streams
from nca_jax.data.controls import DyckConfig
from nca_jax.errors import UserError

PAPER = DyckConfig(kinds=64, depth=16, p_open=0.5, shuffle=False)
# Both widths of random numbers (a byte, a word a position), and stacks of one word and of several.
CONFIGS = [
    PAPER,
    DyckConfig(kinds=64, depth=16, p_open=0.5, shuffle=True),
    DyckConfig(kinds=3, depth=4, p_open=0.625, shuffle=False),
    DyckConfig(kinds=3, depth=9, p_open=180 / 256, shuffle=True),
    DyckConfig(kinds=5, depth=3, p_open=76 / 256, shuffle=False),
    DyckConfig(kinds=100, depth=5, p_open=115 / 256, shuffle=True),
    DyckConfig(kinds=16, depth=40, p_open=0.75, shuffle=False),
    DyckConfig(kinds=128, depth=2, p_open=0.5, shuffle=False),
    DyckConfig(kinds=1, depth=1, p_open=0.5, shuffle=False),
    DyckConfig(kinds=2, depth=70, p_open=0.75, shuffle=True),
]
ROWS, LENGTH = 128, 257
ids = [f'{c.kinds}-{c.depth}-{c.p_open}{"-shuffle" * c.shuffle}' for c in CONFIGS]


@functools.cache
def rows_of(config: DyckConfig) -> np.ndarray:
    make = jax.jit(lambda: controls.dyck_sequences(config, LENGTH, jax.random.split(jax.random.key(1), ROWS)))
    tokens_RxL, first_loss_at_R = make()
    assert tokens_RxL.shape == (ROWS, LENGTH)
    assert not first_loss_at_R.any()
    return np.asarray(tokens_RxL).astype(int)


def walk(config: DyckConfig, row: np.ndarray):
    """The brackets open before each token, innermost last; fails where a token closes what it may not."""
    stack: list[int] = []
    for token in row.tolist():
        yield tuple(stack), token
        assert 0 <= token < 2 * config.kinds
        if token < config.kinds:
            stack.append(token)
            assert len(stack) <= config.depth
        elif config.shuffle:
            stack.reverse()
            stack.remove(token - config.kinds)  # any of that kind
            stack.reverse()
        else:
            assert stack.pop() == token - config.kinds


@pytest.mark.parametrize('config', CONFIGS, ids=ids)
def test_words_balance_and_reach_every_depth(config):
    depths = {len(stack) for row in rows_of(config) for stack, _ in walk(config, row)}
    assert depths == set(range(config.depth + 1))


@pytest.mark.parametrize('config', CONFIGS, ids=ids)
def test_chances_are_those_of_the_config(config):
    opened, kinds = {depth: [0, 0] for depth in range(config.depth + 1)}, np.zeros(config.kinds, int)
    for row in rows_of(config):
        for stack, token in walk(config, row):
            opened[len(stack)][token < config.kinds] += 1
            if token < config.kinds:
                kinds[token] += 1
    assert opened[0][0] == opened[config.depth][1] == 0
    inner = np.array([opened[depth] for depth in range(1, config.depth)]).reshape(-1, 2)
    if config.depth > 1:
        closes, opens = inner.sum(0)
        assert stats.binomtest(opens, opens + closes, config.p_open).pvalue > 1e-3
        seen = inner[inner.sum(1) > 50]
        p_by_depth = [stats.binomtest(opens, opens + closes, config.p_open).pvalue for closes, opens in seen]
        assert min(p_by_depth) * len(seen) > 1e-3
    if config.kinds > 1:
        assert stats.chisquare(kinds).pvalue > 1e-3


@pytest.mark.parametrize(
    'config',
    [DyckConfig(128, 4, 0.5, True), DyckConfig(100, 3, 102 / 256, True), DyckConfig(120, 16, 0.5, True)],
    ids=str,
)
def test_shuffle_closes_every_open_bracket_as_often(config):
    """Seen where all open kinds differ, which says nothing about the one that closes."""
    closed = {depth: np.zeros(depth, int) for depth in range(1, config.depth + 1)}
    for row in rows_of(config):
        for stack, token in walk(config, row):
            if token >= config.kinds and len(set(stack)) == len(stack):
                closed[len(stack)][stack.index(token - config.kinds)] += 1
    for depth, counts in closed.items():
        if depth > 1 and counts.sum() >= 20 * depth:
            assert stats.chisquare(counts).pvalue > 1e-3 / config.depth, depth
    assert closed[3].sum() > 1000


def test_random_words_are_jaxs_own():
    keys_R = jax.random.split(jax.random.key(5), 7)
    expected = [jax.random.bits(key, (33,)) for key in keys_R]
    np.testing.assert_array_equal(controls._random(keys_R, 33), np.stack(expected, axis=1))


def test_successive_draws_are_independent():
    """Of kinds at neighbouring openings of the paper's words, and of coins at neighbouring inner positions."""
    pairs, coins = np.zeros((8, 8), int), np.zeros((2, 2), int)
    for row in rows_of(PAPER):
        opens = row[row < 64] // 8
        np.add.at(pairs, (opens[:-1], opens[1:]), 1)
        seen = list(walk(PAPER, row))
        for (before, token), (after, following) in itertools.pairwise(seen):
            if 1 < len(before) < 15 and 0 < len(after) < 16:
                coins[int(token < 64), int(following < 64)] += 1
    assert stats.chi2_contingency(pairs).pvalue > 1e-3
    assert stats.chi2_contingency(coins).pvalue > 1e-3


def test_rows_are_independent():
    """Columns across rows, whose keys differ by one number: kinds at the first token, which always opens."""
    stream = make(batch=8, length=4)
    firsts = np.concatenate([np.asarray(stream(step).inputs_BxL[:, 0]) for step in range(64)])
    assert stats.chisquare(np.bincount(firsts, minlength=64)).pvalue > 1e-3


@functools.cache
def sharding(devices: int) -> NamedSharding:
    axes = {'axis_types': (AxisType.Auto,), 'devices': jax.devices()[:devices]}
    return NamedSharding(jax.make_mesh((devices,), ('data',), **axes), PartitionSpec('data'))


def make(config=PAPER, seed=0, split='train', batch=8, length=30, devices=1, name='dyck'):
    sequences = functools.partial(controls.dyck_sequences, config, length + 1)
    return streams.make_computed_stream(sequences, name, seed, split, batch, length, sharding(devices))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(streams, 'BLOCK_TOKENS', 1000)


@pytest.mark.parametrize('config', [PAPER, CONFIGS[3]], ids=['plain', 'shuffle'])
def test_tokens_do_not_depend_on_devices_or_batch_size(small_blocks, config):
    batches = [make(config, devices=devices)(9) for devices in (1, 2, 8)]
    for batch in batches[1:]:
        for found, expected in zip(batch, batches[0], strict=True):
            np.testing.assert_array_equal(found, expected)
    assert len(batches[2].inputs_BxL.sharding.device_set) == 8
    assert batches[2].inputs_BxL.addressable_shards[0].data.shape == (1, 30)
    for batch in (4, 24, 40):  # blocks of 8 steps, of one, and of a batch that is larger than a block
        other, eight = make(config, batch=batch), make(config)
        rows = np.concatenate([np.asarray(other(step).inputs_BxL) for step in range(240 // batch)])
        expected = np.concatenate([np.asarray(eight(step).inputs_BxL) for step in range(30)])
        np.testing.assert_array_equal(rows, expected)


def test_a_batch_is_a_function_of_its_step(small_blocks):
    stream, again = make(), make()
    for step in (40, 0, 17, 40):
        np.testing.assert_array_equal(stream(step).inputs_BxL, again(step).inputs_BxL)
    batch = stream(3)
    np.testing.assert_array_equal(batch.inputs_BxL[:, 1:], batch.targets_BxL[:, :-1])
    assert (np.asarray(batch.weights_BxL) == 1).all()
    assert batch.inputs_BxL.dtype == batch.targets_BxL.dtype == np.int32


def test_seeds_splits_and_steps_share_no_row():
    streams = [make(), make(seed=1), make(split='valid'), make(name='other')]
    rows = np.concatenate([np.asarray(stream(step).inputs_BxL) for stream in streams for step in range(4)])
    assert len(np.unique(rows, axis=0)) == len(rows) == 128


def test_the_loops_mesh_and_transfer_guard_change_nothing():
    with jax.set_mesh(sharding(8).mesh):
        looped = make(devices=8)
        with jax.transfer_guard('disallow'):
            batch = looped(1)
    np.testing.assert_array_equal(batch.inputs_BxL, make()(1).inputs_BxL)


def test_a_row_has_the_key_of_its_number():
    """What makes a row independent of all others: it is made alone from (seed, name, split, number)."""
    key = keys.key(0, 'dyck', 'train', 8 * 3 + 5)
    tokens_1xL1, _ = controls.dyck_sequences(PAPER, 31, key[None])
    batch = make()(3)
    np.testing.assert_array_equal(tokens_1xL1[0, :-1], batch.inputs_BxL[5])


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'kinds': 0}, r'kinds = 0: must be in 1\.\.128'),
        ({'kinds': 129}, 'kinds = 129: '),
        ({'depth': 0}, r'depth = 0: Dyck words must be allowed a depth in 1\.\.255'),
        ({'depth': 256}, 'depth = 256: '),
        ({'p_open': 0.0}, r'p_open = 0\.0: must be a multiple of 1/256 between 0 and 1'),
        ({'p_open': 1.0}, r'p_open = 1\.0: must be a multiple of 1/256'),
        ({'p_open': float('nan')}, r'p_open = nan: must be a multiple of 1/256'),
        ({'p_open': 0.3}, r'p_open = 0\.3: must be a multiple of 1/256'),
    ],
)
def test_bad_fields_are_named(change, said):
    with pytest.raises(UserError, match=said):
        DyckConfig(**{'kinds': 64, 'depth': 16, 'p_open': 0.5, 'shuffle': False, **change})
