"""An outcome as files: JSON of everything, CSV and Markdown of the tables, SVG and PNG of the figures, and one page."""

import csv
import inspect
import json
import platform
from dataclasses import asdict
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from comrope.lab import report, results
from comrope.lab.reproduce.scales import Scale
from comrope.lab.reproduce.study import Outcome
from comrope.lab.table import page


def as_json(name: str, title: str, scale: Scale, outcome: Outcome, runs: list[dict[str, Any]], command: str) -> dict:
    """All there is to know: what was asked, every run's result, and the tables that were made of them."""
    return {
        "recipe": name,
        "title": title,
        "command": command,
        "versions": {p: version(p) for p in ("comrope", "torch", "timm")} | {"python": platform.python_version()},
        "scale": json.loads(json.dumps(asdict(scale))),
        "notes": [*outcome.notes, *_tested_on(runs)],
        "tables": [{"name": t.name, "title": t.title, "rows": t.spelt_out()} for t in outcome.tables],
        "runs": runs,
    }


def _tested_on(runs: list[dict[str, Any]]) -> list[str]:
    """How many samples each accuracy is of, as a sentence; none of runs that have not noted it."""
    counts = sorted({run["data"]["test"]["count"] for run in runs if "data" in run})
    return [f"Test samples of each run: {' or '.join(f'{count:,}' for count in counts)}."] if counts else []


def write(found: dict[str, Any], what: str, scale: Scale, outcome: Outcome, folder: Path) -> None:
    """Writes an outcome into a folder.

    Args:
        found: as `as_json` gives it.
        what: the recipe's docstring.
        scale: that it was run at.
        outcome: its tables and figures. Their names, and so the files', start with the recipe's.
        folder: empty.
    """
    results.write_json(found, folder / "results.json")
    for table in outcome.tables:
        with (folder / f"{table.name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table.spelt_out())
    for name, figure in outcome.figures.items():
        for kind in ("svg", "png"):
            figure.savefig(folder / f"{name}.{kind}", dpi=150, facecolor="white", bbox_inches="tight")
    (folder / "tables.md").write_text(page(found["title"], outcome.tables, found["notes"]), encoding="utf-8")
    (folder / "report.html").write_text(_page(found, what, scale, outcome), encoding="utf-8")


def _page(found: dict[str, Any], what: str, scale: Scale, outcome: Outcome) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(resources.files(__package__ or "").joinpath("page.html").read_text("utf-8"))
    drawn = [report.inline(figure, name, found["title"]) for name, figure in outcome.figures.items()]
    about = {name: found[name] for name in ("title", "notes", "command", "versions")}
    about["kinds"] = sorted({run["kind"] for run in found["runs"]} or {"images"})
    return template.render(**about, what=inspect.cleandoc(what), scale=scale, tables=outcome.tables, figures=drawn)
