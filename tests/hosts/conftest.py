"""Skips models of libraries that cannot be imported together with the others, with the reason."""

import pytest

from tests.hosts.helpers import UNAVAILABLE
from tests.hosts.zoo import ZOO


@pytest.fixture(autouse=True)
def _library_is_there(request):
    case = getattr(request.node, "callspec", None)
    entry = ZOO.get(case.params.get("name")) if case else None
    if entry is not None and entry.library in UNAVAILABLE:
        pytest.skip(UNAVAILABLE[entry.library])
