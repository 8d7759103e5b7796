"""The report's statistics against scipy, hand-made numbers, numerical integration and the published curves."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate
from scipy import stats as scipy_stats

from nca_jax.report import losses, stats

GAINS = (0.067, 0.075, 0.106)
PUBLISHED = Path(__file__).parent / 'golden' / 'published_openwebtext.json'


def test_interval_by_hand():
    interval = stats.t_interval(GAINS)
    # mean 0.248 / 3; squared deviations .000245 + .000059 + .000544; t(0.975, 2) = 4.30265 from a printed table
    assert interval.mean == pytest.approx(0.0826667, abs=1e-6)
    assert interval.sd == pytest.approx(0.0205994, abs=1e-6)
    assert interval.half == pytest.approx(4.30265 * 0.0205994 / math.sqrt(3), abs=1e-6)
    assert (interval.low + interval.high) / 2 == pytest.approx(interval.mean)


def test_interval_and_p_are_scipys():
    rng = np.random.default_rng(0)
    for n in (2, 3, 8):
        a, b = rng.normal(2.5, 0.03, (2, n))
        theirs = scipy_stats.ttest_rel(a, b)
        ours = stats.t_interval(a - b)
        assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
        assert ours.p == pytest.approx(theirs.pvalue)


def test_one_value_has_no_interval():
    interval = stats.t_interval([2.5])
    assert interval.mean == 2.5
    assert math.isnan(interval.low)
    assert math.isnan(interval.p)
    assert math.isnan(stats.detectable(interval.sd, 1))


@pytest.mark.parametrize('n', [2, 3, 5, 12])
def test_detectable_difference_has_the_stated_power(n):
    """Power by integrating over the chi distribution of the sd, without any noncentral t."""
    sd = 0.02
    shift = stats.detectable(sd, n) / (sd / math.sqrt(n))
    critical, df = scipy_stats.t.ppf(0.975, n - 1), n - 1

    def rejected(spread):  # given the estimated sd as a multiple of the true one
        bound = critical * spread
        return scipy_stats.norm.sf(bound - shift) + scipy_stats.norm.cdf(-bound - shift)

    def integrand(x):
        return rejected(x / math.sqrt(df)) * scipy_stats.chi.pdf(x, df)

    assert integrate.quad(integrand, 0, 12, limit=400)[0] == pytest.approx(0.80, abs=1e-4)


def test_detectable_difference_of_many_pairs_is_the_normal_one():
    assert stats.detectable(1.0, 4000) == pytest.approx((1.959964 + 0.841621) / math.sqrt(4000), rel=1e-3)


def test_holm_by_hand():
    def holm(*ps):
        gains = [dataclasses.replace(stats.t_interval(GAINS), p=p) for p in ps]
        made = stats.with_holm({i: stats.Comparison('arm', (0, 1, 2), gain, 0.1) for i, gain in enumerate(gains)})
        return [c.holm for c in made.values()]

    assert holm(0.01, 0.04, 0.03) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(0.5, 0.9) == pytest.approx([1.0, 1.0])
    adjusted = holm(math.nan, 0.02, 0.01)
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.02, 0.02])


def test_crossing_is_linear_in_perplexity():
    # perplexity falls from 20 to 10 between 100 and 200 tokens; 14 lies at 60 % of the way (in loss it would not)
    assert stats.crossing([100, 200], np.log([20, 10]), math.log(14)) == pytest.approx(160)


def test_crossing_is_the_last_one():
    tokens, perplexities = [100, 200, 300, 400, 500], [20, 8, 16, 12, 6]
    assert stats.crossing(tokens, np.log(perplexities), math.log(10)) == pytest.approx(400 + 100 * 2 / 6)


def test_crossing_never_and_at_the_edges():
    assert stats.crossing([1, 2, 3], [3.0, 2.0, 2.5], 2.4) is None
    assert stats.crossing([1, 2, 3], [3.0, 2.6, 2.4], 2.4) == pytest.approx(3)
    assert stats.crossing([1, 2, 3], [2.0, 1.9, 1.8], 2.4) == 1
    assert stats.speedup(([1, 2, 3], [3.0, 2.0, 2.5]), ([1, 2, 3], [3.0, 2.5, 2.4])) is None


def test_speedup_on_the_published_curves():
    published = json.loads(PUBLISHED.read_text())
    each = published['tokens_per_iteration']
    curves = {arm: (each * np.array(c['iter']), np.array(c['loss'])) for arm, c in published['curves'].items()}
    for arm, value in published['speedup'].items():
        assert round(stats.speedup(curves[arm], curves['scratch']), 2) == value
    assert stats.speedup(curves['c4'], curves['scratch']) is None
    # 164M tokens before, against a crossing at 6.05B: 1.49 becomes 1.45
    assert round(stats.speedup(curves['nca'], curves['scratch'], earlier_tokens=163_840_000), 2) == 1.45


def test_pairs_are_made_by_seed_whatever_the_order():
    scratch = {2: -2.578, 0: -2.567, 1: -2.591}
    found = stats.compare('nca', {1: -2.516, 2: -2.472, 0: -2.500}, scratch)
    assert found.seeds == (0, 1, 2)
    expected = scipy_stats.ttest_rel([2.567, 2.591, 2.578], [2.500, 2.516, 2.472])
    assert found.gain.p == pytest.approx(expected.pvalue)
    assert (found.gain.low, found.gain.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.gain.mean == pytest.approx(np.mean(GAINS))
    assert losses.reduction(found.gain) == pytest.approx(
        [100 * (1 - math.exp(-x)) for x in (0.0826667, found.gain.low, found.gain.high)]
    )


def test_seeds_without_a_partner_are_left_out():
    scratch, nca = {0: -2.5, 1: -2.6, 7: -9.0}, {1: -2.55, 0: -2.4, 3: -0.1}
    found = stats.compare('nca', nca, scratch)
    assert found.seeds == (0, 1)
    assert found.gain.mean == pytest.approx(0.075)
    assert stats.compare('nca', {5: -2.0}, scratch) is None


def test_holm_is_over_all_comparisons_of_a_table():
    scratch = {0: -2.567, 1: -2.591, 2: -2.578}
    nca = stats.compare('nca', {0: -2.500, 1: -2.516, 2: -2.472}, scratch)
    dyck = stats.compare('dyck', {0: -2.470, 1: -2.700, 2: -2.500}, scratch)
    found = stats.with_holm({'nca': nca, 'alone': None, 'dyck': dyck})
    assert list(found) == ['nca', 'dyck']
    assert found['nca'].holm == pytest.approx(2 * nca.gain.p)
    assert found['dyck'].holm == pytest.approx(dyck.gain.p)


def test_identical_arms_have_no_spread_to_judge_by():
    same = {0: -2.5, 1: -2.6}
    found = stats.compare('twin', same, same)
    assert not found.supported
    assert (found.gain.mean, found.gain.sd) == (0, 0)
    assert math.isnan(found.gain.p)
    assert math.isnan(found.detectable)


def test_curves_meet_where_both_were_evaluated():
    one, other = ([1, 2, 4], [3.0, 2.5, 2.0]), ([2, 3, 4], [2.7, 2.4, 2.2])
    tokens, intervals = stats.mean_curve([one, other])
    assert tokens.tolist() == [2, 4]
    assert [i.mean for i in intervals] == pytest.approx([2.6, 2.1])
    tokens, gain = stats.difference_curve(one, other)
    assert tokens.tolist() == [2, 4]
    assert gain.tolist() == pytest.approx([-0.2, -0.2])
