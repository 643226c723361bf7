"""docs/faults.md says what this folder tries, as it is."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.tally import BEGIN, DOCS, END, table


def test_the_page_has_all_areas_with_their_counts(request):
    here = Path(__file__).parent
    items = [item for item in request.session.items if item.path.parent == here]
    if {item.path.name for item in items} != {path.name for path in here.glob("test_*.py")}:
        pytest.skip("not all of the folder was asked for")
    tries: Counter[str] = Counter()
    for item in items:
        area, count = dict(item.user_properties).get("area", ("", 0))
        tries[area] += count
    rows = json.loads((DOCS / "faults.json").read_text(encoding="utf-8"))
    assert {row["area"]: row["tried"] + row["skipped"] for row in rows} == dict(+tries)
    assert not any(row["wrong"] for row in rows)
    page = (DOCS / "faults.md").read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == table(rows).strip()
