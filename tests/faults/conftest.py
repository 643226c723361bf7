"""Every test of this folder says what it is a try of: `@pytest.mark.area("damaged checkpoints")`, `tries=` if of several."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.children import without_rights


@pytest.fixture
def strangers_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a user who is not root, whom folders and files may be closed to; the test runs as such a user."""
    with without_rights():
        yield tmp_path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notes in each report what the test is a try of, and how often it tries."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name != "test_page.py":
            mark = item.get_closest_marker("area")
            if mark is None:
                raise pytest.UsageError(f"{item.nodeid} has no area: @pytest.mark.area(…), see {__file__}.")
            item.user_properties.append(("area", (mark.args[0], mark.kwargs.get("tries", 1))))
