"""`python -m tests.faults`: tries all of the campaign and writes the table of docs/faults.md from what was found."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.conftest import area_of

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- written by python -m tests.faults -->\n", "<!-- end -->\n"


class Tally:
    """A plugin of pytest that counts tries and failures in each area."""

    def __init__(self):
        self.areas: dict[str, tuple[str, int]] = {}
        self.tried: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.areas = {item.nodeid: area_of(item) for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        area, tries = self.areas[report.nodeid]
        if report.skipped:
            self.skipped[area] += tries
        elif report.when == "call":
            self.tried[area] += tries
        if report.failed:
            self.wrong[area] += 1

    def rows(self) -> list[dict]:
        """One for each area, in the order of the tests."""
        names = dict.fromkeys(area for area, _ in self.areas.values())
        counts = {"tried": self.tried, "skipped": self.skipped, "wrong": self.wrong}
        return [{"area": name, **{what: count[name] for what, count in counts.items()}} for name in names]


def table(rows: list[dict]) -> str:
    """As Markdown."""
    lines = ["| | tried | not tried here | wrong |", "|---|---:|---:|---:|"]
    lines += [f"| {row['area']} | {row['tried']} | {row['skipped']} | {row['wrong']} |" for row in rows]
    total = {what: sum(row[what] for row in rows) for what in ("tried", "skipped", "wrong")}
    lines.append(f"| all | {total['tried']} | {total['skipped']} | {total['wrong']} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    tally = Tally()
    status = pytest.main([str(Path(__file__).parent), "-p", "no:cacheprovider"], plugins=[tally])
    rows = tally.rows()
    page = DOCS / "faults.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    (DOCS / "faults.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
