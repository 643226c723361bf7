"""Statistics of results: means over seeds, paired differences, and confidence intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats

from comrope.errors import ConfigurationError


class Summary(NamedTuple):
    """Mean and standard deviation over seeds."""

    mean: float
    deviation: float | None
    """Sample standard deviation (n − 1); None for one seed."""
    count: int


class Difference(NamedTuple):
    """Mean over seeds of a difference within each seed, with its confidence interval."""

    mean: float
    low: float | None
    """Lower end of the interval; None if there is no interval, see `paired`."""
    high: float | None
    count: int


def summary(values: Sequence[float]) -> Summary:
    """Returns mean and sample standard deviation; raises ConfigurationError if there are no values.

    >>> summary([1.0, 2.0, 3.0])
    Summary(mean=2.0, deviation=1.0, count=3)
    """
    mean = _mean(values)
    if len(values) == 1:
        return Summary(mean, None, 1)
    return Summary(mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)), len(values))


def paired(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> Difference:
    """Returns the mean of first − second, seed by seed, with its Student t interval.

    Values with the same index have the same seed: the same images, batches and initial weights. Intervals are not
    corrected for multiple comparisons: if there is no difference, one in twenty does not contain 0. There is no
    interval for one seed, nor if the difference is exactly the same in all seeds, as often with counts of few samples,
    since its width would be 0.

    >>> paired([2.0, 3.0], [1.0, 1.0])  # doctest: +ELLIPSIS
    Difference(mean=1.5, low=-4.85..., high=7.85..., count=2)
    >>> paired([2.0, 3.0], [1.0, 2.0])
    Difference(mean=1.0, low=None, high=None, count=2)
    """
    if len(first) != len(second):
        raise ConfigurationError(
            f"got {len(first)} values to pair with {len(second)}: expected one of each for a seed."
        )
    mean, deviation, count = summary([a - b for a, b in zip(first, second, strict=True)])
    if not deviation:
        return Difference(mean, None, None, count)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * deviation / math.sqrt(count)
    return Difference(mean, mean - half, mean + half, count)


def half_width(correct: int, total: int) -> float:
    """Returns half the width, in percentage points, of Wilson's 95 % interval of an accuracy of `correct` in `total` samples.

    >>> round(half_width(225, 450), 1), round(half_width(441, 450), 1)
    (4.6, 1.4)
    """
    interval = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return 50 * float(interval.high - interval.low)


def _mean(values: Sequence[float]) -> float:
    if not len(values):
        raise ConfigurationError("got no values: expected one a seed.")
    return math.fsum(values) / len(values)
