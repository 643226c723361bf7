"""The curve through all conditions, on made-up accuracies whose curve, families and noise are known."""

import math

import numpy as np
import pytest

from comrope.lab.reproduce.curve import Condition, curve_tables, fit, left_out

SPEEDS = (0.5, 1.0, 2.0, 4.0, 6.0, 9.0, 12.0, 20.0)


def _conditions(noise: float = 0.5, offsets: dict[str, float] | None = None, seeds: int = 4) -> list[Condition]:
    """Conditions of three families on one curve, 75 − 5·exp(−ω/3), with effects of the seed that all have in common."""
    rng = np.random.default_rng(0)
    common = rng.normal(0, 2, seeds)
    return [
        Condition(
            family,
            [speed] * seeds,
            (
                75 + (offsets or {}).get(family, 0.0) - 5 * math.exp(-speed / 3) + common + rng.normal(0, noise, seeds)
            ).tolist(),
        )
        for family in ("one", "two", "three")
        for speed in SPEEDS
    ]


def test_a_curve_without_noise_is_found():
    exact = [Condition(c.family, c.speeds, [75 - 5 * math.exp(-c.speeds[0] / 3)] * 2) for c in _conditions()]
    found = fit(exact)
    assert (found.a, found.b, found.c) == pytest.approx((75, 5, 3), rel=1e-3)
    assert found.r_squared > 0.9999 and found.residual < 1e-3


def test_residuals_are_compared_with_the_noise_that_seeds_do_not_share():
    found = fit(_conditions())
    assert found.c == pytest.approx(3, rel=0.5)
    assert found.noise == pytest.approx(0.5 / 2, rel=0.3)  # of a mean of four seeds, without the 2 they have in common
    assert found.residual == pytest.approx(0.5 / 2, rel=0.4)
    assert found.lack_of_fit > 0.01 and found.families > 0.01


@pytest.mark.slow
def test_a_family_beside_the_curve_is_found():
    shifted = _conditions(offsets={"two": 1.5})
    assert fit(shifted).families < 1e-6 and fit(shifted).lack_of_fit < 1e-6
    found = left_out(shifted, "two")
    assert found.mean == pytest.approx(1.5, abs=0.4)
    assert not (left_out(_conditions(), "two").mean > 0.4)


@pytest.mark.slow
def test_two_tables_and_none_of_too_little():
    rows = [table.rows for table in curve_tables("starts", {24: _conditions(), 56: _conditions(noise=0.4)})]
    assert [len(each) for each in rows] == [2, 3]
    assert curve_tables("starts", {24: _conditions(seeds=1)}) == []
    assert curve_tables("starts", {24: _conditions()[:6]}) == []
    assert curve_tables("starts", {24: [Condition(c.family, c.speeds, [10.0] * 4) for c in _conditions()]}) == []
