"""Every test of this folder says what it is a try of: `@pytest.mark.area("damaged checkpoints")`, `tries=` if of several."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def strangers_folder() -> Iterator[Path]:
    """A folder of a user who is not root, whom a folder may be closed to; the test runs as that user."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid():
        yield folder
    else:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
        yield folder
        os.seteuid(0)
    shutil.rmtree(folder)


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
