"""Every result leaves by one function, whatever it is of."""

import csv
import io
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from comrope.lab import results
from comrope.lab.output import Outcome, write
from comrope.lab.statistics import Summary, half_width
from comrope.lab.table import Table, csv_text, markdown

FOUND = {"title": "A title", "notes": ["A note."], "command": "comrope x", "versions": {"comrope": "0"}}


def test_a_result_has_a_file_for_each_table_and_two_for_each_figure(tmp_path):
    table = Table("x-accuracy", "Accuracy.", ("method", "%"), [("RoPE", Summary(60.0, 0.5, 2)), ("paper", 61.0)])
    figure = Figure()
    figure.add_axes((0.1, 0.1, 0.8, 0.8)).plot([1, 2])
    write(FOUND, Outcome([table], {"x": figure}, FOUND["notes"], lead="What was done."), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {*results.FILES, "x-accuracy.csv", "x.svg", "x.png"}
    assert results.read(tmp_path) == FOUND
    assert (tmp_path / "results.json").read_bytes().endswith(b"}\n")
    assert (tmp_path / "x-accuracy.csv").read_text("utf-8") == csv_text(table)
    assert (tmp_path / "tables.md").read_text("utf-8") == f"# A title\n\nA note.\n\n## Accuracy.\n\n{markdown(table)}\n"
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (tmp_path / "x.svg").read_text("utf-8")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert all(part in page for part in ("A title", "A note.", "What was done.", "60.00 ± 0.50", "<svg", "comrope x"))
    assert page.count('class="paper"') == 1


def test_csv_spells_means_out():
    rows = list(
        csv.reader(io.StringIO(csv_text(Table("t", "", ("a", "b"), [("x", Summary(0.5, None, 1)), ("y", None)]))))
    )
    assert rows == [["a", "b mean", "b deviation", "b count"], ["x", "0.5", "", "1"], ["y", "", "", ""]]


def test_marks_are_of_the_best_cells_of_a_column_and_of_all_that_equal_them():
    rows = [("a", Summary(100 * 9 / 27, None, 1), 3), ("b", Summary(100 * 1 / 3, None, 1), None), ("c", 33.0, 2)]
    assert Table("t", "", ("", "", ""), rows, best=(None, max, min)).marks() == [
        [False, True, False],
        [False, True, False],
        [False, False, True],
    ]
    assert not any(map(any, Table("t", "", ("", "", ""), rows).marks()))


def test_half_width_is_wilsons():
    # Textbook values: 10 of 20 gives [0.299, 0.701]; with no error at all the interval is still not empty.
    assert half_width(10, 20) == pytest.approx(20.1, abs=0.05)
    assert half_width(20, 20) == pytest.approx(8.06, abs=0.01)


@pytest.mark.parametrize("name", ["accuracy_against_offset.svg", "demo.csv", "demo-check.csv", "tables.md"])
def test_an_earlier_demo_may_be_replaced(tmp_path, name):
    from comrope.lab.reproduce.demo import SCALE, demo

    folder = tmp_path / "result"
    folder.mkdir()
    (folder / name).write_text("old")
    with results.atomic_folder(folder, ("demo.*", "demo-*", *demo(SCALE).files)) as new:
        Path(new / "results.json").write_text("{}")
    assert [p.name for p in folder.iterdir()] == ["results.json"]
