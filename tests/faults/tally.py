"""A plugin of pytest that counts tries in each area, and writes the table of docs/faults.md from what was found."""

import json
from collections import Counter
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- written by python -m tests.faults -->\n", "<!-- end -->\n"

tried: Counter[str] = Counter()
skipped: Counter[str] = Counter()
wrong: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    area, tries = dict(report.user_properties).get("area", (None, 0))
    if area is None:
        return
    if report.skipped:
        skipped[area] += tries
    elif report.when == "call":
        tried[area] += tries
    if report.failed:
        wrong[area] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput") or not tried:
        return
    names = sorted(tried | skipped | wrong)
    rows = [{"area": n, "tried": tried[n], "skipped": skipped[n], "wrong": wrong[n]} for n in names]
    page = DOCS / "faults.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    (DOCS / "faults.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def table(rows: list[dict]) -> str:
    """As Markdown."""
    total = {what: sum(row[what] for row in rows) for what in ("tried", "skipped", "wrong")}
    lines = ["| | tried | not tried here | wrong |", "|---|---:|---:|---:|"]
    cells = [*rows, {"area": "all", **total}]
    lines += [f"| {row['area']} | {row['tried']} | {row['skipped']} | {row['wrong']} |" for row in cells]
    return "\n".join(lines) + "\n"
