"""Models of libraries that cannot be imported beside the others are skipped, with the reason."""

import pytest

from tests.hosts.helpers import ABSENT
from tests.hosts.zoo import ZOO


@pytest.fixture(autouse=True)
def _library_is_there(request):
    case = getattr(request.node, "callspec", None)
    entry = ZOO.get(case.params.get("name")) if case else None
    if entry is not None and entry.library in ABSENT:
        pytest.skip(ABSENT[entry.library])
