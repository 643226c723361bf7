"""What of the campaign `make test-slow` tries: a sample. The other cases are marked `campaign`, which it leaves out.

`python -m tests.faults` tries all of them.
"""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def campaign(*values: Any) -> list[Any]:
    """Returns values for `parametrize` that are not in the sample."""
    return [pytest.param(value, marks=pytest.mark.campaign) for value in values]


def each_choice(*axes: Iterable[Any]) -> list[Any]:
    """Returns every combination for `parametrize`. The n-th of the sample has the n-th value of each axis, or starts again
    with the first where an axis has no more, so that every value is in it.
    """
    values = [list(axis) for axis in axes]
    sample = [tuple(each[n % len(each)] for each in values) for n in range(max(map(len, values)))]
    return [case if case in sample else pytest.param(*case, marks=pytest.mark.campaign) for case in product(*values)]
