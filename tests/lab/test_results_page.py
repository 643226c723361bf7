"""docs/results.md stands on files in the repository: its tables follow from raw output, its numbers from its tables."""

import importlib
import json
import re
from pathlib import Path

import pytest

from comrope.encodings import registry
from comrope.lab import records, results
from comrope.lab.reproduce import RECIPES, scale_of
from comrope.lab.table import markdown


@pytest.fixture(autouse=True)
def only_this_librarys_encodings(monkeypatch):
    """Other tests of the process may have registered more, which the recipe of rivals would want to train."""
    registry.known_encodings()
    ours = {n: each for n, each in registry._REGISTERED.items() if each.kind.__module__.startswith("comrope.")}
    monkeypatch.setattr(registry, "_REGISTERED", ours)


PAGE = Path(__file__).parents[2] / "docs/results.md"
FOLDERS = sorted(path.parent for path in PAGE.parent.glob("results/*/results.json"))
DEMO = PAGE.parent / "demo"


@pytest.mark.slow
@pytest.mark.parametrize("folder", [*FOLDERS, DEMO], ids=lambda folder: folder.name)
def test_tables_follow_from_the_runs(folder, monkeypatch, tmp_path):
    """Each table that a recipe makes of the raw results is the one that lies there."""
    monkeypatch.chdir(tmp_path)  # for data that figures need
    for name, function, made in (
        ("text", "_long", []),  # measured anew each time, which takes half an hour
        ("video", "_strips", None),  # pictures of clips, which would all be written first
    ):
        module = importlib.import_module(f"comrope.lab.reproduce.{name}")
        monkeypatch.setattr(module, function, lambda *_, made=made: made)
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    plan = RECIPES[found["recipe"]](scale_of(found))
    wanted = [job.experiment for job in plan.jobs]
    assert wanted == [w.from_json(run["experiment"]) for w, run in zip(wanted, found["runs"], strict=True)]
    tables = (folder / "tables.md").read_text(encoding="utf-8")
    for table in plan.outcome(found["runs"]).tables:
        assert markdown(table) in tables, table.name


@pytest.mark.parametrize("folder", [*FOLDERS, DEMO], ids=lambda folder: folder.name)
def test_no_run_of_a_recipe_has_to_be_trained_again(folder):
    """Each is found among the recorded ones, with all conditions. Which data they had, some do not say."""
    found, there = results.read(folder), records.read([folder])
    jobs = RECIPES[found["recipe"]](scale_of(found)).jobs
    missing = [j for j in jobs if records.find(there, j.experiment, j.conditions, lambda _: {}) is None]
    assert not missing and len(there) == len(jobs)


def test_the_pages_tables_and_numbers_are_those_of_the_files():
    summary, _, rest = PAGE.read_text(encoding="utf-8").partition("## How to read the numbers")
    raw = "\n".join((folder / "tables.md").read_text(encoding="utf-8") for folder in FOLDERS)
    lines = raw.splitlines()
    shown = [line for line in rest.splitlines() if line.startswith("|")]
    assert shown and not [line for line in shown if line not in lines]
    prose = summary + "\n".join(line for line in rest.splitlines() if not line.startswith("|"))
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", re.sub(r"```.*?```", "", prose, flags=re.DOTALL))
    numbers = set(re.findall(r"\d+\.\d+", prose))
    assert numbers and not [n for n in numbers if not re.search(rf"(?<![\d.]){re.escape(n)}(?![\d.])", raw)]


def test_the_summary_counts_the_intervals_and_links_to_sections():
    page = PAGE.read_text(encoding="utf-8")
    intervals = []
    for folder in FOLDERS:
        for table in json.loads((folder / "results.json").read_text(encoding="utf-8"))["tables"]:
            heading, *rows = table["rows"]
            lows = [i for i, name in enumerate(heading) if str(name).endswith(" low")]
            intervals += [(row[i], row[i + 1]) for row in rows for i in lows if row[i] is not None]
    outside = sum(not low <= 0 <= high for low, high in intervals)
    assert f"{len(intervals)} such intervals, of which\n{outside} exclude 0" in page
    assert f"about {round(0.05 * len(intervals))} would" in page
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= headings


def test_every_file_is_named_and_every_command_said():
    page = PAGE.read_text(encoding="utf-8")
    for folder in FOLDERS:
        assert f"results/{folder.name}/tables.md" in page, folder.name
        assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["command"] in page
    for target in re.findall(r"\]\((results/[^)]*)\)", page):
        assert (PAGE.parent / target).exists(), target
