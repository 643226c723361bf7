"""docs/faults.md says what this folder tries, as it is."""

import json

from tests.faults.tally import BEGIN, DOCS, END, table


def test_the_page_has_all_areas_with_their_counts(collected):
    rows = json.loads((DOCS / "faults.json").read_text(encoding="utf-8"))
    assert {row["area"]: row["tried"] + row["skipped"] for row in rows} == collected
    assert not any(row["wrong"] for row in rows)
    page = (DOCS / "faults.md").read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == table(rows).strip()
