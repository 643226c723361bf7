"""BatchMetrics, deviations and paired intervals, against values worked out by hand and by scipy."""

import numpy as np
import pytest
from scipy import stats

from comrope.errors import ConfigurationError
from comrope.lab.statistics import paired, summary


def test_deviation_is_the_sample_s():
    found = summary([60.0, 61.0, 63.0])
    assert found.mean == pytest.approx(184 / 3)
    assert found.deviation == pytest.approx(((16 + 1 + 25) / 9 / 2) ** 0.5)
    assert found.count == 3


def test_one_seed_has_no_spread_and_no_interval():
    assert summary([5.0]) == (5.0, None, 1)
    assert paired([5.0], [4.0]) == (1.0, None, None, 1)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_interval_is_that_of_scipy_s_paired_t_test(seeds, confidence):
    draws = np.random.default_rng(seeds)
    first, second = draws.normal(60, 2, seeds), draws.normal(59, 2, seeds)
    found = paired(first.tolist(), second.tolist(), confidence)
    expected = stats.ttest_rel(first, second).confidence_interval(confidence)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((first - second).mean())


def test_interval_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, and t of 2 degrees of freedom is 4.3027.
    found = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found == pytest.approx((2.0, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5, 3), abs=1e-4)


def test_what_seeds_share_falls_out_of_a_paired_difference():
    hard, easy = [50.0, 90.0, 70.0], [51.0, 91.1, 70.9]
    found = paired(easy, hard)
    assert found.mean == pytest.approx(1.0) and found.high - found.low < 1
    assert summary(easy).deviation > 10


def test_seeds_that_all_differ_by_the_same_have_no_interval():
    assert paired([51.0, 91.0, 71.0], [50.0, 90.0, 70.0]) == (1.0, None, None, 3)


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ConfigurationError, match="2 values to pair with 1"):
        paired([1.0, 2.0], [1.0])
    with pytest.raises(ConfigurationError, match="no values"):
        summary([])
