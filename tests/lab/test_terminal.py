"""Tables where somebody types: none is wider than the terminal, nothing of them is left out, and Markdown finds no tags."""

import json
from pathlib import Path

import pytest

from comrope.lab import terminal
from comrope.lab.bench.tables import tables
from comrope.lab.table import Table, markdown, markdown_file

ROOT = Path(__file__).parents[2]
BENCH = tables(json.loads((ROOT / "benchmarks/cpu-2-threads/results.json").read_text(encoding="utf-8")))
WIDE = Table("wide", "A title.", ("method", "minus", *map(str, range(12))), [("a", "b", *[1.25] * 12)])


def _shown(table: Table, width: int, monkeypatch) -> list[str]:
    monkeypatch.setattr(terminal, "console", terminal.Console(width=width))
    with terminal.console.capture() as capture:
        terminal.show(table)
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [50, 80, 200])
@pytest.mark.parametrize("table", [WIDE, *BENCH], ids=lambda table: table.title)
def test_no_line_is_longer_than_the_terminal_and_no_cell_is_missing(table, width, monkeypatch):
    lines = _shown(table, width, monkeypatch)
    assert max(map(len, lines)) <= width
    text = "".join("".join(lines).split())
    for row in table.printed():
        for cell in row[1:]:
            assert "".join(cell.split()) in text


def test_columns_that_do_not_fit_come_below_with_the_names_again(monkeypatch):
    lines = _shown(WIDE, 50, monkeypatch)
    assert [line.split()[:2] for line in lines].count(["a", "b"]) == 3
    assert len([line for line in lines if "A title." in line]) == 1


def test_headings_are_no_wider_than_their_cells_where_words_allow(monkeypatch):
    table = Table("t", "", ("method", "labels changed", "48×48 (trained)"), [("RoPE", 3, "60.9")])
    assert [line.split() for line in _shown(table, 50, monkeypatch)[1:3]] == [
        ["labels", "48×48"],
        ["method", "changed", "(trained)"],
    ]


def test_markdown_finds_no_tags_in_names():
    table = Table("t", "On <b>data</b>.", ("method",), [("<script>|x|</script>",)])
    assert markdown(table).splitlines()[-1] == "| &lt;script&gt;\\|x\\|&lt;/script&gt; |"
    assert "<" not in markdown_file("a <i>", [table], ["<note>"])
