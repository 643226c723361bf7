"""Every test of this folder says what it is a try of: `@pytest.mark.area("damaged checkpoints")`, `tries=` if of several."""

from collections import Counter

import pytest


def area_of(item: pytest.Item) -> tuple[str, int]:
    """What the test belongs to, and how often it tries."""
    mark = item.get_closest_marker("area")
    if mark is None:
        raise pytest.UsageError(f"{item.nodeid} has no area: @pytest.mark.area(…), see {__file__}.")
    return mark.args[0], mark.kwargs.get("tries", 1)


def tried(items: list[pytest.Item]) -> Counter[str]:
    """How often each area is tried in all."""
    found: Counter[str] = Counter()
    for area, tries in map(area_of, items):
        found[area] += tries
    return found
