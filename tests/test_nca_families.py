"""Elementary and Life-like automata as networks, against their textbook definitions."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nca_jax.errors import FieldError
from nca_jax.nca import automaton
from tests.test_nca_rollout import SPEC

KNOWN = dataclasses.replace(SPEC, family='life', height=6, width=9, colours=2, features=18)


def frames_of(spec, weights, start_YxX):
    trajectory = automaton.RolloutSpec(spec, burn_in=0, stride=1, frames=6)
    return np.asarray(automaton.rollout(trajectory, weights, jax.random.key(0), jnp.asarray(start_YxX))).astype(int)


def start(seed, density=0.5):
    return (np.random.default_rng(seed).random((6, 9)) < density).astype(np.uint8)


def neighbours(grid_YxX):
    return sum(np.roll(grid_YxX, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)) - grid_YxX


@pytest.mark.parametrize('temperature', [0.0, 1e-3])
@pytest.mark.parametrize(
    ('name', 'born', 'survives'),
    [('life:B3/S23', {3}, {2, 3}), ('life:B36/S23', {3, 6}, {2, 3}), ('life:B01234567/S8', set(range(8)), {8})],
)
def test_life_like_rules(name, born, survives, temperature):
    spec = dataclasses.replace(KNOWN, family=name, temperature=temperature)
    frames = frames_of(spec, automaton.init_rule(spec, jax.random.key(0)), start(0))
    for now, after in itertools.pairwise(frames):
        lives = np.where(now, np.isin(neighbours(now), list(survives)), np.isin(neighbours(now), list(born)))
        np.testing.assert_array_equal(after, lives)


@pytest.mark.parametrize('number', [0, 30, 110, 184, 255])
def test_elementary_rules_run_in_every_row(number):
    spec = dataclasses.replace(KNOWN, family=f'elementary:{number}', features=8)
    frames = frames_of(spec, automaton.init_rule(spec, jax.random.key(0)), start(1))
    for now, after in itertools.pairwise(frames):
        index = 4 * np.roll(now, 1, 1) + 2 * now + np.roll(now, -1, 1)
        np.testing.assert_array_equal(after, number >> index & 1)


@pytest.mark.parametrize(('family', 'outcomes'), [('life', 18), ('elementary', 8)])
def test_unnamed_rules_are_drawn_from_all(family, outcomes):
    spec = dataclasses.replace(KNOWN, family=family)
    logits = jax.vmap(lambda key: curve(automaton.init_rule(spec, key), outcomes))(
        jax.random.split(jax.random.key(1), 400)
    )
    alive = np.asarray(logits) > 0
    np.testing.assert_array_equal(np.abs(logits), 1)
    assert np.abs(alive.mean(0) - 0.5).max() < 4 * 0.5 / 400**0.5
    assert len(np.unique(alive, axis=0)) > (395 if family == 'life' else 180)  # of 256, 400 draws meet about 202


def curve(weights, outcomes):
    """The second colour's logit at every number."""
    number_Z = jnp.arange(outcomes, dtype=jnp.float32)
    features = jax.nn.relu(jnp.outer(number_Z, weights['w2'][0]) + weights['b2'][None])
    return features @ weights['w3'][:, 1]


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'family': 'elementary:256'}, "family = 'elementary:256': random, elementary, life"),
        ({'family': 'life:B9/S2'}, "family = 'life:B9/S2'"),
        ({'family': 'wolfram'}, "family = 'wolfram'"),
        ({'features': 17}, "features = 17: at least 18 for the family 'life'"),
        ({'colours': 3}, "colours = 3: 2 for the family 'life'"),
        ({'padding': 'channel_wrap'}, "padding = 'channel_wrap': 'spatial' for"),
        ({'temperature': -1e-3}, 'temperature = -0.001: not negative'),
        ({'temperature': 1e-40}, r'temperature = 1e-40: .* at least 1e-30'),
        ({'temperature': float('inf')}, 'temperature = inf'),
    ],
)
def test_impossible_families_are_named(changes, said):
    with pytest.raises(FieldError, match=said):
        dataclasses.replace(KNOWN, **changes)
