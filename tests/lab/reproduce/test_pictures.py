"""The figures of the recipes carry their numbers."""

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from comrope.lab.reproduce.pictures import curves, densities, scatter
from comrope.lab.statistics import summary

SHORT = [(2.0, summary([70.0, 72.0])), (4.0, summary([74.0, 76.0]))]
LONG = [*SHORT, (8.0, summary([71.0]))]


@pytest.mark.parametrize(("other", "heading"), [(LONG, "at 8"), (SHORT, "where it ends")])
def test_curves_run_through_means_and_say_where_their_numbers_stand(other, heading):
    (axes,) = curves("title", {"comrope-ld": LONG, "comrope-ap": other}, x="b", y="%", scale="log").axes
    first, second = axes.lines
    np.testing.assert_allclose(first.get_xydata(), [(2, 71), (4, 75), (8, 71)])
    np.testing.assert_allclose(second.get_xydata(), [(x, s.mean) for x, s in other])
    shown = [text.get_text() for text in axes.texts]
    assert heading in shown and "71.0" in shown and ("75.0" in shown) == (other is SHORT)


def test_bands_are_one_standard_deviation_to_each_side():
    (axes,) = curves("title", {"comrope-ld": SHORT}, x="b", y="%").axes
    (band,) = (c for c in axes.collections if isinstance(c, PolyCollection))
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(71 - np.sqrt(2)) and heights.max() == pytest.approx(75 + np.sqrt(2))


def test_densities_put_seeds_together_and_integrate_to_one():
    seeds = [{"bound": 2.0, "counts": [0, 500, 500, 0]}, {"bound": 4.0, "counts": [250, 250, 250, 250]}]
    figure = densities("title", {"b = 2": {"comrope-ld": seeds}})
    linear = figure.axes[0].lines[0]
    middles, heights = linear.get_xdata(), linear.get_ydata()
    width = middles[1] - middles[0]
    assert heights.sum() * width == pytest.approx(1)
    assert middles[0] - width / 2 == pytest.approx(-4) and middles[-1] + width / 2 == pytest.approx(4)
    assert heights[np.abs(middles) < 0.9].mean() == pytest.approx((1000 / 2000) / 2 + (500 / 2000) / 4, rel=0.05)


def test_scatter_has_a_point_a_condition_with_bars_both_ways():
    points = {
        "rope": [(summary([1.0]), summary([70.0, 72.0]))],
        "comrope-ld": [(summary([2.0, 4.0]), summary([75.0]))] * 2,
    }
    (axes,) = scatter("title", points, x="x", y="y").axes
    for (marks, _, (across, up)), each in zip(axes.containers, points.values(), strict=True):
        np.testing.assert_allclose(marks.get_xydata(), [(x.mean, y.mean) for x, y in each])
        for bars, side in ((across, 0), (up, 1)):
            lengths = [np.ptp(ends[:, side]) for ends in bars.get_segments()]
            np.testing.assert_allclose(lengths, [2 * (point[side].deviation or 0) for point in each])
