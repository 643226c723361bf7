"""Every test of this folder says what it is a try of: `@pytest.mark.area("damaged checkpoints")`, `tries=` if of several.

A parameter called `tries` says so too.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.children import without_rights

COLLECTED = pytest.StashKey[Counter[str]]()


@pytest.fixture
def strangers_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a user who is not root, whom folders and files may be closed to; the test runs as such a user."""
    with without_rights():
        yield tmp_path


@pytest.fixture
def collected(pytestconfig: pytest.Config) -> Counter[str]:
    """How often each area is tried in the whole campaign; skips the test if not all of the folder was asked for."""
    if COLLECTED not in pytestconfig.stash:
        pytest.skip("not all of the folder was asked for")
    return pytestconfig.stash[COLLECTED]


@pytest.hookimpl(tryfirst=True)  # before tests are left out by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Notes in each report what the test is a try of, and how often it tries; and counts the tries of the whole campaign."""
    here, tries = Path(__file__).parent, Counter[str]()
    mine = [item for item in items if item.path.parent == here]
    for item in mine:
        if item.path.name != "test_page.py":
            mark = item.get_closest_marker("area")
            if mark is None:
                raise pytest.UsageError(f"{item.nodeid} has no area: @pytest.mark.area(…), see {__file__}.")
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            count = parameters.get("tries", mark.kwargs.get("tries", 1))
            item.user_properties.append(("area", (mark.args[0], count)))
            tries[mark.args[0]] += count
    if {item.path.name for item in mine} == {path.name for path in here.glob("test_*.py")}:
        config.stash[COLLECTED] = tries
