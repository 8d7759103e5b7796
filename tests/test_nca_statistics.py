"""Statistics of token sequences against distributions whose values are known."""

import numpy as np
import pytest
from scipy import stats

from nca_jax.look import sequences


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize('exponent', [0.6, 1.0, 1.7])
def test_a_zipf_law_is_recovered(rng, exponent):
    law = np.arange(1, 501, dtype=float) ** -exponent
    tokens = rng.choice(rng.permutation(9999)[:500], 400_000, p=law / law.sum())
    counts = sequences.rank_counts(tokens)
    assert sequences.zipf_exponent(counts, 10) == pytest.approx(exponent, abs=0.02)
    assert sequences.zipf_exponent(law, law[299]) == pytest.approx(exponent, abs=1e-6)


def test_a_uniform_law_has_exponent_zero_and_one_rank_has_none():
    assert sequences.zipf_exponent(np.full(100, 7), 7) == pytest.approx(0, abs=1e-9)
    assert np.isnan(sequences.zipf_exponent(np.array([7, 1]), 5))
    assert np.isnan(sequences.zipf_exponent(np.array([7, 6, 5, 1]), 5, ranks=4))


def test_counts_by_rank():
    tokens = np.array([[5, 5, 5, 2], [2, 9, 9, 2]])
    assert sequences.rank_counts(tokens).tolist() == [3, 3, 2]


def test_entropy_of_known_distributions(rng):
    counts = np.array([[1, 1, 1, 1], [2, 1, 1, 0], [4, 0, 0, 0]])
    bias = np.array([3, 2, 0]) / (2 * np.log(2) * 4)
    assert sequences.entropy(counts) == pytest.approx(np.array([2, 1.5, 0]) + bias)
    draws = rng.integers(0, 64, (400, 200))
    counts = np.stack([np.bincount(row, minlength=64) for row in draws])
    plugin, corrected = stats.entropy(counts, base=2, axis=1).mean(), sequences.entropy(counts).mean()
    assert 6 - plugin > 0.15  # 63 / (2 * 200 ln 2) = 0.23 in the first order
    assert abs(6 - corrected) < 0.03


def test_information_of_independent_copied_and_half_copied_samples(rng):
    x, y = rng.integers(0, 4, (2, 3, 40_000))
    assert sequences.mutual_information(x, y, 4) == pytest.approx(np.zeros(3), abs=5e-4)
    assert sequences.mutual_information(x, 3 - x, 4) == pytest.approx(np.full(3, 2.0), abs=1e-3)
    half = np.where(rng.random(x.shape) < 0.5, x, y)
    joint = np.full((4, 4), 0.5 / 16) + np.eye(4) * 0.5 / 4
    assert sequences.mutual_information(x, half, 4) == pytest.approx(4 + (joint * np.log2(joint)).sum(), abs=0.02)


def test_shuffling_keeps_each_sequences_values_and_parts_them(rng):
    cells = rng.integers(0, 3, (4, 50, 2, 5))
    shuffled = sequences.permute_places(cells.reshape(4, 1, -1), 0).reshape(cells.shape)  # as one frame
    assert shuffled.shape == cells.shape
    np.testing.assert_array_equal(np.sort(shuffled.reshape(4, -1)), np.sort(cells.reshape(4, -1)))
    assert abs((shuffled == cells).mean() - 1 / 3) < 0.05


def test_displaced_cells_keep_their_values_over_time(rng):
    cells = rng.integers(0, 250, (4, 50, 2, 6))
    displaced = sequences.permute_places(cells, 0)
    for before, after in zip(cells.reshape(4, 50, 12), displaced.reshape(4, 50, 12), strict=True):
        assert sorted(map(tuple, before.T)) == sorted(map(tuple, after.T))
        assert (before != after).any()


def test_grids_that_stand_still_tell_nothing_of_other_places(rng):
    """All that a cell and another share is chance, of which 36 frames without change are as full as one."""
    frames = np.tile(rng.integers(0, 10, (100, 1, 12, 12)), (1, 36, 1, 1)).astype(np.uint8)
    displaced = sequences.permute_places(frames, 0)
    for dt, dx in ((0, 1), (0, 3), (1, 1), (5, 2)):
        found, chance = (sequences.information_by_offset(frames, y, 10, dt, dx) for y in (frames, displaced))
        assert found > 0.4
        assert abs(found - chance) < 0.02
    found, chance = (sequences.information_by_offset(frames, y, 10, 3, 0) for y in (frames, displaced))
    assert found - chance > 2.5
    cells = frames.reshape(100, 36, 36, 4)
    displaced = sequences.permute_places(cells, 0)
    for distance in (1, 5, 37, 50):
        found, chance = (sequences.information_by_distance(cells, y, 10, distance) for y in (cells, displaced))
        assert found > 0.4
        assert abs(found - chance) < 0.03


def test_information_along_tokens_is_at_the_copys_distance_only(rng):
    frames, patches, grid = 60, 9, 11
    first = rng.integers(0, 4, (8, 2, patches, 4))
    cells = np.tile(first, (1, frames // 2, 1, 1)).astype(np.uint8)  # every frame is that before the last
    cells += 4 * rng.integers(0, 2, cells.shape).astype(np.uint8)  # and half of what it shows is new
    distances = [1, 10, grid, 2 * grid - 1, 2 * grid, 2 * grid + 3]
    displaced = sequences.permute_places(cells, 0)
    found, chance = (
        np.array([sequences.information_by_distance(cells, later, 8, distance) for distance in distances])
        for later in (cells, displaced)
    )
    entropy = stats.entropy(np.stack([np.bincount(row.ravel(), minlength=4) for row in first]), base=2, axis=1).mean()
    assert found[4] == pytest.approx(entropy, abs=0.05)
    assert (np.delete(chance, 4) > 0.05).all()  # 72 cells, over and over, are alike by chance
    assert (abs(np.delete(found - chance, 4)) < 0.12).all()


def test_information_between_places_follows_what_moves(rng):
    frames = np.empty((6, 30, 8, 12), np.uint8)
    frames[:, 0] = rng.integers(0, 4, (6, 8, 12))
    for t in range(1, 30):  # what is seen moves two cells to the right, and one cell in four is drawn anew
        moved, fresh = np.roll(frames[:, t - 1], 2, axis=2), rng.integers(0, 4, (6, 8, 12))
        frames[:, t] = np.where(rng.random(moved.shape) < 0.25, fresh, moved)
    displaced = sequences.permute_places(frames, 0)
    found, chance = (
        np.array([[sequences.information_by_offset(frames, y, 4, dt, dx) for dx in range(6)] for dt in range(3)])
        for y in (frames, displaced)
    )
    copied = lambda kept: kept * np.eye(4) / 4 + (1 - kept) / 16  # noqa: E731
    known = [4 + (joint * np.log2(joint)).sum() for joint in (copied(0.75), copied(0.5625))]
    assert [found[1, 2], found[2, 4]] == pytest.approx(known, abs=0.05)
    assert found[0, 0] == pytest.approx(2, abs=0.01)
    rest = np.delete(found.ravel(), [0, 6 + 2, 12 + 4])
    assert (rest < 0.02).all()
    assert (chance[:, 1:] < 0.02).all()
