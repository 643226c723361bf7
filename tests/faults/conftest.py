"""Every test of this folder says what it is a try of: `@pytest.mark.area("damaged checkpoints")`, `tries=` if of several."""

import pytest


def area_of(item: pytest.Item) -> tuple[str, int]:
    """What the test belongs to, and how often it tries."""
    mark = item.get_closest_marker("area")
    if mark is None:
        raise pytest.UsageError(f"{item.nodeid} has no area: @pytest.mark.area(…), see {__file__}.")
    return mark.args[0], mark.kwargs.get("tries", 1)
