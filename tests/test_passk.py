"""pass@k against every subset of samples, scores by hand, intervals that hold what they promise."""

import itertools

import numpy as np
import pytest

from nca_jax.problems import benchmark


def row(samples, correct, choices, right, task):
    """A record as the benchmark writes it, without its texts."""
    graded = [number < correct for number in range(samples)]
    return {'task': task, 'choices': choices, 'answers': [str(n) for n in range(right)], 'correct': graded}


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    for samples in range(1, 8):
        for correct in range(samples + 1):
            right = [True] * correct + [False] * (samples - correct)
            for k in range(1, samples + 1):
                subsets = list(itertools.combinations(right, k))
                expected = sum(map(any, subsets)) / len(subsets)
                assert benchmark.pass_at_k(samples, correct, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_is_exact_where_factorials_overflow():
    assert benchmark.pass_at_k(10_000, 1, 32) == 32 / 10_000
    assert benchmark.pass_at_k(10_000, 0, 32) == 0.0
    assert benchmark.pass_at_k(10_000, 9_969, 32) == 1.0


def test_chance_is_that_of_independent_guesses():
    for choices, right, k in ((2, 1, 1), (3, 1, 2), (5, 1, 3), (4, 2, 3), (3, 3, 1)):
        guesses = list(itertools.product(range(choices), repeat=k))
        share = sum(any(guess < right for guess in each) for each in guesses) / len(guesses)
        assert benchmark.chance_pass_at_k(choices, right, k) == pytest.approx(share)
    assert benchmark.chance_pass_at_k(0, 0, 32) == 0


def test_scores_of_two_tasks_by_hand():
    """Task a: rows of 2 and of 4 options, 3 of which are right. Task b: an open row and one of 5. Two samples each."""
    rows = [row(2, 2, 2, 1, 'a'), row(2, 1, 4, 3, 'a'), row(2, 0, 0, 0, 'b'), row(2, 1, 5, 1, 'b')]
    found = benchmark.metrics(rows, 0)
    a1, b1 = (1 + 1 / 2) / 2, (0 + 1 / 2) / 2
    a2, b2 = (1 + 1) / 2, (0 + 1) / 2
    single_a, single_b = (1 / 2 + 1 / 4) / 2, (0 + 1 / 5) / 2
    chance_a, chance_b = (1 / 2 + 3 / 4) / 2, single_b
    chance_a2, chance_b2 = (3 / 4 + 15 / 16) / 2, (0 + 9 / 25) / 2
    expected = {
        'problems': 4,
        'samples': 2,
        'pass@1': (a1 + b1) / 2,
        'a/pass@1': a1,
        'b/pass@1': b1,
        'chance_pass@1': (chance_a + chance_b) / 2,
        'normalised@1': ((a1 - single_a) / (1 - single_a) + (b1 - single_b) / (1 - single_b)) / 2,
        'normalised_by_chance@1': ((a1 - chance_a) / (1 - chance_a) + (b1 - chance_b) / (1 - chance_b)) / 2,
        'pass@2': (a2 + b2) / 2,
        'a/pass@2': a2,
        'b/pass@2': b2,
        'chance_pass@2': (chance_a2 + chance_b2) / 2,
        'normalised@2': (1 + (b2 - single_b) / (1 - single_b)) / 2,
        'normalised_by_chance@2': (1 + (b2 - chance_b2) / (1 - chance_b2)) / 2,
    }
    bounds = {f'pass@{k}_{end}' for k in (1, 2) for end in ('low', 'high')}
    assert found.keys() == expected.keys() | bounds
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


def test_below_chance_is_nothing():
    assert benchmark.normalised(0.1, 0.25) == 0
    assert benchmark.normalised(0.25, 0.25) == 0
    assert benchmark.normalised(1.0, 1.0) == 0  # every guess is right
    assert benchmark.normalised(1.0, 0.25) == 1


def test_only_what_every_problem_has_samples_for_is_reported():
    found = benchmark.metrics([row(64, 1, 0, 0, 'a'), row(5, 1, 0, 0, 'a')], 0)
    assert {name for name in found if name.startswith('pass@') and '_' not in name} == {'pass@1', 'pass@2', 'pass@4'}
    assert not [name for name in found if 'chance' in name or 'normalised' in name or '/' in name]


def test_equal_scores_have_no_width_and_a_seed_fixes_the_interval():
    for correct in (0, 3):
        found = benchmark.metrics([row(3, correct, 0, 0, 'a')] * 7, 0)
        assert found['pass@1_low'] == found['pass@1_high'] == found['pass@1'] == correct / 3
    scores = [np.linspace(0, 1, 30)]
    assert benchmark.interval(scores, 1) == benchmark.interval(scores, 1) != benchmark.interval(scores, 2)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Two tasks of 40 and 60 problems whose true scores are uniform: the truth is 0.5."""
    generator = np.random.default_rng(0)
    held, widths = 0, []
    for number in range(300):
        low, high = benchmark.interval([generator.random(40), generator.random(60)], number)
        held += low <= 0.5 <= high
        widths.append(high - low)
    assert 0.91 <= held / 300 <= 0.98
    error = np.sqrt((1 / 12) * (1 / 40 + 1 / 60) / 4)  # of the mean of two means
    assert np.mean(widths) == pytest.approx(2 * 1.96 * error, rel=0.05)
