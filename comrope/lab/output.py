"""Writes results of the demo, the recipes and the bench: tables, figures and notes as files in one folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from comrope.lab import page, results
from comrope.lab.table import Table, csv_text, markdown_file


@dataclass(frozen=True)
class Outcome:
    """A result: its tables and figures, and the text of its page."""

    tables: Sequence[Table]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """Figures by the names of their files."""
    notes: Sequence[str] = ()
    """Sentences that a reader needs to interpret the numbers."""
    lead: str = ""
    """What was done, in a sentence or two, at the top of the page."""
    about: str = ""
    """Text for the end of the page."""
    template: str = "page.html"
    """Template of the page, see `comrope.lab.page`."""


def write(found: dict[str, Any], outcome: Outcome, folder: Path) -> None:
    """Writes results.json, tables.md, report.html, a CSV for each table, and an SVG and a PNG for each figure.

    Args:
        found: the content of results.json, with `title`, `notes`, `command` and `versions`.
        outcome: its tables and figures.
        folder: an empty folder, as `comrope.lab.results.atomic_folder` yields it.
    """
    shown = as_page(found, outcome)  # rendered first: saving a figure moves parts of it by rounding
    results.write_json(found, folder / "results.json")
    (folder / "tables.md").write_text(markdown_file(found["title"], outcome.tables, found["notes"]), encoding="utf-8")
    for table in outcome.tables:
        (folder / f"{table.name}.csv").write_text(csv_text(table), encoding="utf-8", newline="")
    for name, figure in outcome.figures.items():
        for kind in ("svg", "png"):
            figure.savefig(folder / f"{name}.{kind}", dpi=150, facecolor="white", bbox_inches="tight")
    (folder / "report.html").write_text(shown, encoding="utf-8")


def as_page(found: Mapping[str, Any], outcome: Outcome) -> str:
    """Returns the page of an outcome."""
    words = {"lead": outcome.lead, "about": outcome.about, "template": outcome.template}
    return page.render(found, outcome.tables, outcome.figures, **words)
