"""Every recipe from its runs to its files at the smallest scale; nothing is trained twice, and a stopped study goes on."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from comrope.errors import ConfigurationError, DataError
from comrope.lab import reproduce
from comrope.lab.reproduce import RECIPES, SCALES

pytestmark = pytest.mark.slow

DEMO = SCALES["demo"].changed(num_train=48, num_test=20)
FEW = DEMO.changed(seeds=(0,), encodings=("rope", "comrope-ld"))
RESOLUTIONS = ["8 [112]", "– [128]", "– [192]", "16 [224]", "– [256]", "– [320]", "– [384]", "32 [448]", "– [512]"]
DEMOS = ("accuracy_against_resolution", "accuracy_against_offset", "spectra", "training")
FILES = {
    "table1": ("table1", "table1-differences", "table1-perturbation", "table1-fig3.svg", "table1-fig3-still.png"),
    "fig5": ("fig5", "fig5-adversarial", "fig5.svg"),
    "fig6": ("fig6", "fig6.svg"),
    "fig7": ("fig7", "fig7-differences", "fig7-16.svg"),
    "table4": ("table4",),
    "table7": ("table7", "table7-operations", "table7-ours", "table7-ours-operations"),
    "table8": ("table8", "table8-fig8.svg"),
    "table9": ("table9",),
    "table10": ("table10", "table10-differences"),
    "commutators": ("commutators",),
    "axes": ("axes",),
    "spectra": ("spectra", "spectra.svg"),
    "starts": ("starts", "starts-differences", "starts.svg"),
    "grids": ("grids",),
    "learning": ("learning", "learning-differences", "learning-oblique"),
    "larger": ("larger", "larger-differences", "larger.svg"),
    "longer": ("longer", "longer-differences"),
    "beyond": ("beyond", "beyond-differences"),
    "rivals": ("rivals", "rivals-differences"),
    "demo": ("demo", "demo-check", "demo-training", *(f"{name}.svg" for name in DEMOS)),
}


FEWER = {
    "starts": ("rope", "rope-mixed"),
    "learning": ("rope-mixed",),
    "larger": ("none", "rope", "liere"),
    "longer": ("rope", "comrope-ld"),
    "rivals": ("golden-gate", "harope"),
}
"""Encodings of recipes that would take minutes with all of theirs."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs that all recipes share."""
    return tmp_path_factory.mktemp("studies") / "runs"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _trained(told: list[tuple]) -> set[str]:
    return {name for name, stage, *_ in told if stage == "training"}


def test_every_recipe_has_its_files_here_but_those_of_other_problems():
    """Which are tested with these problems."""
    others = {name for name in RECIPES if {job.experiment.kind for job in RECIPES[name](DEMO).jobs} - {"images"}}
    assert set(FILES) == set(RECIPES) - others


@pytest.mark.parametrize("name", FILES)
def test_every_recipe_writes_its_tables_and_figures(name, runs, tmp_path):
    out = tmp_path / name
    scale = DEMO.changed(encodings=FEWER.get(name, ()))
    found = reproduce.run(name, scale, out, runs=runs, parallel=0, command=f"comrope reproduce {name}")
    files = {path.name for path in out.iterdir()}
    expected = {file if "." in file else f"{file}.csv" for file in FILES[name]}
    assert files >= {"results.json", "tables.md", "report.html", *expected}
    others = files - {"results.json", "tables.md", "report.html"}
    assert all(file.startswith((name, *(DEMOS if name == "demo" else ()))) for file in others)
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == found
    assert found["command"] == f"comrope reproduce {name}" and found["scale"]["name"] == "demo"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<table id=") == len(found["tables"]) == sum(file.endswith(".csv") for file in files)
    assert page.count("<svg") == sum(file.endswith(".svg") for file in files) and "http://" not in page.split("<svg")[0]
    if not RECIPES[name](DEMO).measures:
        assert reproduce.page_of(found) == page
    assert all(len(_rows(out / f"{table['name']}.csv")) == len(table["rows"]) - 1 > 0 for table in found["tables"])


def test_table1_has_the_paper_s_rows_and_columns(runs, tmp_path):
    reproduce.run("table1", DEMO, tmp_path / "out", runs=runs, parallel=0)
    rows = _rows(tmp_path / "out" / "table1.csv")
    published = [row for row in rows if row["source"] == "paper"]
    assert {(row["method"], row["σ"]): row["16 [224] mean"] for row in published}["ComRoPE-LD", "1"] == "65.49"
    assert len(published) == 10 and all(row["– [128]"] for row in published)
    ours = [row for row in rows if row["source"] == "ours"]
    assert len(ours) == 14 and {row["seeds"] for row in ours} == {"2"}
    assert all(0 <= float(row["8 [112] mean"]) <= 100 and row["– [128]"] == "" for row in ours)
    table = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8").splitlines()
    assert f"| method | σ | source | seeds | {' | '.join(RESOLUTIONS)} |" in table


def test_block_sizes_and_intensities_are_compared_within_a_seed(runs, tmp_path):
    two = DEMO.changed(seeds=(0, 1), encodings=("comrope-ld",))
    for name, column, usual in (("fig6", "block size", "8"), ("fig7", "σ", "0")):
        reproduce.run(name, two, tmp_path / name, runs=runs, parallel=0)
        reached = {row[column]: row for row in _rows(tmp_path / name / f"{name}.csv")}
        compared = (
            reached if name == "fig6" else {r[column]: r for r in _rows(tmp_path / name / f"{name}-differences.csv")}
        )
        minus = "minus b = 8, at 16 mean" if name == "fig6" else "top-1 % at 16 mean"
        assert compared.keys() >= reached.keys() - {usual} != set()
        for key in reached.keys() - {usual}:
            means = (float(reached[at]["top-1 % at 16 mean"]) for at in (key, usual))
            assert float(compared[key][minus]) == pytest.approx(next(means) - next(means), abs=0.011)


def test_offsets_change_labels_of_what_does_not_commute_alone(runs, tmp_path):
    few = SCALES["demo"].changed(seeds=(0,), encodings=("ape", "liere", "comrope-ld"))
    longer = replace(few, recipe=replace(few.recipe, epochs=15))  # until images get different labels
    found = reproduce.run("fig5", longer, tmp_path / "out", runs=runs, parallel=0, save_every=1000)
    assert all(run["evaluation"][0]["correct"] > 10 for run in found["runs"])
    for file in ("fig5.csv", "fig5-adversarial.csv"):
        for row in _rows(tmp_path / "out" / file):
            if row["measure"] == "labels changed, %":
                changed = any(float(value) for key, value in row.items() if key.endswith("mean"))
                assert changed == (row["method"] in ("APE", "LieRE")), row


def test_only_liere_does_not_commute(runs, tmp_path):
    reproduce.run("commutators", DEMO, tmp_path / "out", runs=runs, parallel=0)
    holds = {row["method"]: row["holds in all"] for row in _rows(tmp_path / "out" / "commutators.csv")}
    assert {method for method, answer in holds.items() if answer == "no"} == {"LieRE"} and len(holds) == 8


def test_a_second_run_trains_nothing_and_finds_the_same(tmp_path):
    told: list[list[tuple]] = [[], []]
    found = [
        reproduce.run("table1", FEW, tmp_path / f"out{i}", parallel=0, on_progress=lambda *told_: told[i].append(told_))  # noqa: B023
        for i in range(2)
    ]
    assert len(_trained(told[0])) == 4 and not _trained(told[1])
    assert found[0] == found[1]
    assert (tmp_path / "runs-demo").is_dir()  # beside the result, and shared


def test_a_stopped_study_leaves_no_result_and_goes_on(tmp_path):
    reproduce.run("table1", FEW, tmp_path / "whole", runs=tmp_path / "runs of whole", parallel=0)
    first: list[tuple] = []

    def stop_at_the_third(*told) -> None:
        first.append(told)
        if len(_trained(first)) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce.run("table1", FEW, tmp_path / "out", parallel=0, on_progress=stop_at_the_third)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
    second: list[tuple] = []
    reproduce.run("table1", FEW, tmp_path / "out", parallel=0, on_progress=lambda *told: second.append(told))
    assert len(_trained(second)) == 2  # the one that was stopped, and the fourth
    for file in ("table1.csv", "table1-differences.csv"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_what_is_no_result_is_not_touched(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"thesis\.tex"):
        reproduce.run("table1", FEW, out, parallel=0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and [p.name for p in out.iterdir()] == ["thesis.tex"]


def test_an_unknown_recipe_is_named_beside_those_there_are(tmp_path):
    with pytest.raises(ConfigurationError, match=r"table5.*table1.*starts"):
        reproduce.run("table5", FEW, tmp_path / "out")
