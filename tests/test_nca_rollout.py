"""Rules and rollouts against the released code's data, a slow oracle and exact distributions."""

import dataclasses
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import stats

from nca_jax import keys
from nca_jax.errors import FieldError
from nca_jax.nca import automaton, patches, score
from nca_jax.nca.config import ComplexityConfig

GOLDEN = Path(__file__).parent / 'golden'
SPEC = automaton.RuleSpec(
    family='random',
    height=5,
    width=4,
    colours=3,
    hidden=3,
    features=5,
    padding='spatial',
    identity_bias=0.0,
    temperature=0.0,
    start='uniform',
    sampler='inverse_cdf',
    perceive='table',
)


def oracle_logits(spec, weights, grid_YxX):
    """The definition, cell by cell in float64: (Y, X, C)."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    wrap = spec.padding == 'channel_wrap'
    logits = np.zeros((spec.height, spec.width, spec.colours))
    for y in range(spec.height):
        for x in range(spec.width):
            hidden = w['b1'].copy()
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    colour = int(grid_YxX[(y + dy) % spec.height, (x + dx) % spec.width])
                    for channel in range(spec.colours + 2 * wrap):
                        if (channel - wrap) % spec.colours == colour:
                            hidden += w['w1'][dy + 1, dx + 1, channel]
            features = np.maximum(hidden @ w['w2'] + w['b2'], 0)
            logits[y, x] = features @ w['w3'] + w['b3']
            logits[y, x, grid_YxX[y, x]] += spec.identity_bias
    return logits


def random_weights(spec, seed):
    """A rule with biases, which random rules don't have."""
    weights = automaton.init_rule(spec, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return {k: v if k[0] == 'w' else jnp.asarray(rng.normal(size=v.shape), jnp.float32) for k, v in weights.items()}


@pytest.mark.parametrize('perceive', ['table', 'one_hot'])
@pytest.mark.parametrize(
    'changes',
    [
        {'padding': 'spatial'},
        {'padding': 'channel_wrap', 'identity_bias': 0.5},
        {'padding': 'channel_wrap', 'colours': 17, 'height': 3, 'width': 7},  # too many colours for tables of rows
        {'colours': 2, 'identity_bias': -0.3},
        {'hidden': 30, 'features': 40},  # too wide for written-out products
    ],
)
def test_rollout_equals_the_slow_oracle(changes, perceive):
    spec = dataclasses.replace(SPEC, perceive=perceive, **changes)
    weights = random_weights(spec, 1)
    trajectory = automaton.RolloutSpec(spec, burn_in=2, stride=3, frames=3)
    start = np.random.default_rng(0).integers(0, spec.colours, (spec.height, spec.width))
    hidden_SxH = automaton.make_perceive(spec, weights)(jnp.asarray(start)).reshape(-1, spec.hidden)
    logits_CxS = automaton.colour_logits(spec, weights, hidden_SxH, jnp.asarray(start.ravel()))
    logits_YxXxC = np.stack(logits_CxS, -1).reshape(spec.height, spec.width, -1)
    np.testing.assert_allclose(logits_YxXxC, oracle_logits(spec, weights, start), rtol=1e-4, atol=1e-5)
    grid, expected = start, []
    for step in range(9):
        if step in (2, 5, 8):
            expected.append(grid)
        grid = oracle_logits(spec, weights, grid).argmax(-1)
    run = jax.jit(lambda start: automaton.rollout(trajectory, weights, jax.random.key(0), start))
    found = run(jnp.asarray(start, jnp.uint8))
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, expected)


@functools.cache
def golden(colours):
    with np.load(GOLDEN / f'golden_n{colours}.npz') as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize('perceive', ['table', 'one_hot'])
@pytest.mark.parametrize('colours', [2, 10, 15])
def test_reproduces_the_released_codes_frames_tokens_and_gzip_ratios(colours, perceive):
    truth = golden(colours)
    spec = automaton.RuleSpec(
        'random', 12, 12, colours, 4, 16, 'channel_wrap', 0.0, 0.0, 'softmax', 'inverse_cdf', perceive
    )
    trajectory, vocab = automaton.RolloutSpec(spec, burn_in=10, stride=1, frames=27), patches.PatchVocab(colours, 2)
    rules = {k: jnp.asarray(truth[k][:, 0, 0] if k in ('w2', 'w3') else truth[k]) for k in rule_names()}

    def run(weights, start):
        frames = automaton.rollout(trajectory, weights, jax.random.key(0), start)
        return frames, patches.encode(vocab, frames)

    frames, tokens = jax.jit(jax.vmap(run))(rules, jnp.asarray(truth['start'], jnp.uint8))
    np.testing.assert_array_equal(frames, truth['frames'])
    np.testing.assert_array_equal(np.asarray(tokens).reshape(24, 27, 38), truth['tokens'])
    config = ComplexityConfig(measure='gzip', frames=10, bytes_per_token=4, level=9)
    ratios = [score.ratio(config, row[:10, 1:-1].ravel()) for row in np.asarray(tokens).reshape(24, 27, 38)]
    np.testing.assert_allclose(ratios, truth['gzip'], rtol=1e-6)


def rule_names():
    return ('w1', 'b1', 'w2', 'b2', 'w3', 'b3')


def draws(logits_C, temperature, sampler, cells=100_001):
    """Counts of each colour among many cells with the same logits."""
    spec = dataclasses.replace(SPEC, colours=len(logits_C), temperature=temperature, sampler=sampler)
    logits = [jnp.full(cells, logit, jnp.float32) for logit in logits_C]
    cells = jax.jit(functools.partial(automaton.sample, spec))(logits, jax.random.key(3), jnp.int32(5))
    return np.bincount(np.asarray(cells).ravel(), minlength=len(logits_C))


@pytest.mark.parametrize('sampler', ['inverse_cdf', 'gumbel'])
@pytest.mark.parametrize(
    ('logits', 'temperature'),
    [([0.3, -1.0, 0.0, 1.2, 0.9], 0.7), ([5.0, 5.0002, 4.9999, 4.0, 5.0001], 1e-4), ([0.0, 0.0, 0.001, 0.002], 1e-3)],
)
def test_samplers_draw_from_the_softmax(logits, temperature, sampler):
    counts = draws(logits, temperature, sampler)
    scaled = np.asarray(logits, np.float32).astype(np.float64) / temperature
    expected = np.exp(scaled - scaled.max())
    expected *= counts.sum() / expected.sum()
    seen = expected > 1e-6
    assert counts[~seen].sum() == 0
    assert stats.chisquare(counts[seen], expected[seen]).pvalue > 1e-3


def test_random_bits_are_threefrys():
    key = jax.random.key(7)
    counters = jnp.arange(10, dtype=jnp.uint32)
    expected = threefry_2x32(jax.random.key_data(key), jnp.concatenate([counters, counters[::-1]]))
    np.testing.assert_array_equal(
        jnp.concatenate(keys.threefry(tuple(jax.random.key_data(key)), counters, counters[::-1])), expected
    )


def test_uniform_numbers_are_uniform_and_differ_by_key_number_and_place():
    draw = jax.jit(keys.uniform, static_argnums=2)
    rows = [draw(jax.random.key(k), jnp.uint32(n), 10_001) for k in range(3) for n in range(3)]
    assert stats.kstest(np.concatenate(rows), 'uniform').pvalue > 1e-3
    assert len(np.unique(rows)) > 9 * 10_001 * 0.99  # a grid of 2^23 values: hardly any repeat
    assert stats.pearsonr(rows[0], rows[1]).pvalue > 1e-3
    assert stats.pearsonr(rows[0][:5000], rows[0][5000:10_000]).pvalue > 1e-3


def test_impossible_colours_are_never_drawn():
    for hot in range(4):
        counts = draws(np.eye(4)[hot], 1e-4, 'inverse_cdf')
        assert counts[hot] == counts.sum()


@pytest.mark.parametrize('sampler', ['inverse_cdf', 'gumbel'])
def test_every_update_has_random_numbers_of_its_own(sampler):
    hot = dataclasses.replace(SPEC, height=60, width=50, temperature=1e6, sampler=sampler)  # every colour alike
    trajectory = automaton.RolloutSpec(hot, burn_in=1, stride=1, frames=4)
    frames_TxYxX = automaton.rollout(trajectory, random_weights(hot, 0), jax.random.key(0))
    for one, other in itertools.combinations(np.asarray(frames_TxYxX), 2):
        assert stats.binomtest(int((one == other).sum()), one.size, 1 / 3).pvalue > 1e-4


def test_starts_are_uniform_or_from_one_softmax_per_trajectory():
    big = dataclasses.replace(SPEC, height=200, width=300)
    uniform = np.bincount(np.ravel(automaton.start_grid(big, jax.random.key(0))), minlength=3)
    assert stats.chisquare(uniform).pvalue > 1e-3
    skewed = [
        np.bincount(np.ravel(automaton.start_grid(dataclasses.replace(big, start='softmax'), key)), minlength=3)
        for key in jax.random.split(jax.random.key(1), 200)
    ]
    log_odds = np.log(np.array(skewed)[:, 0] / np.array(skewed)[:, 1])  # the difference of two N(0, 1) logits
    assert stats.kstest(log_odds / np.sqrt(2), 'norm').pvalue > 1e-3


@pytest.mark.parametrize(('padding', 'fan_in'), [('spatial', 90), ('channel_wrap', 108)])
def test_random_kernels_are_lecun_normal_and_biases_zero(padding, fan_in):
    spec = dataclasses.replace(SPEC, colours=10, padding=padding)
    rules = jax.vmap(functools.partial(automaton.init_rule, spec))(jax.random.split(jax.random.key(0), 2000))
    for name, fan in (('w1', fan_in), ('w2', spec.hidden), ('w3', spec.features)):
        untruncated = np.sqrt(1 / fan) / 0.87962566  # the standard deviation of a unit normal cut at two
        values = np.ravel(rules[name])
        assert np.abs(values).max() <= 2 * untruncated * (1 + 1e-6)
        assert values.std() == pytest.approx(np.sqrt(1 / fan), rel=0.02)
    assert not any(np.any(rules[name]) for name in ('b1', 'b2', 'b3'))
    assert rules['w1'].shape == (2000, 3, 3, fan_in // 9, 3)


@pytest.mark.parametrize(
    ('field', 'value'),
    [('colours', 1), ('height', 0), ('temperature', -1.0), ('padding', 'zero'), ('start', 'ones'), ('sampler', 'max')],
)
def test_impossible_rules_are_named(field, value):
    with pytest.raises(FieldError, match=field):
        dataclasses.replace(SPEC, **{field: value})
