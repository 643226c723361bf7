"""Tables as text, CSV and Markdown. `terminal.py` prints them, `page.py` writes them as HTML."""

import csv
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from comrope.lab.statistics import Difference, Summary

Cell = str | int | float | Summary | Difference | None
"""None is a missing number: "–" as text, empty in CSV."""


@dataclass(frozen=True)
class Table:
    """A table: headings, and rows of cells."""

    name: str
    """The name of its CSV file, without suffix."""
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    decimals: int = 2
    best: Sequence[Callable | None] = ()
    """For each column `max` or `min` if a page marks its best cells, else None. Nothing is marked if empty."""

    def printed(self) -> list[list[str]]:
        """Returns the rows as text: "63.09 ± 0.12" for a mean over seeds, "+0.31 (−0.02 … +0.64)" for a difference."""
        return [[_printed(cell, self.decimals) for cell in row] for row in self.rows]

    def spelt_out(self) -> list[list[Any]]:
        """Returns headings and rows of plain values: a mean or a difference takes a column for each of its numbers."""
        kinds = [next((type(c) for c in column if isinstance(c, tuple)), None) for column in self.by_column()]
        heading: list[Any] = []
        for name, kind in zip(self.columns, kinds, strict=True):
            heading += [name] if kind is None else [f"{name} {part}" for part in kind._fields]
        rows = []
        for row in self.rows:
            values: list[Any] = []
            for cell, kind in zip(row, kinds, strict=True):
                whole = cell if isinstance(cell, tuple) or kind is None else (cell, *[None] * (len(kind._fields) - 1))
                values += [_rounded(value) for value in (whole if isinstance(whole, tuple) else (whole,))]
            rows.append(values)
        return [heading, *rows]

    def by_column(self) -> list[list[Cell]]:
        """Returns the cells of each column."""
        return [[row[i] for row in self.rows] for i in range(len(self.columns))]

    def marks(self) -> list[list[bool]]:
        """Returns for each cell whether it is the best of its column, or equal to the best."""
        marked = []
        for column, best in zip(self.by_column(), self.best or [None] * len(self.columns), strict=True):
            values = [cell[0] if isinstance(cell, tuple) else cell for cell in column]
            known = [value for value in values if value is not None]
            first = best(known) if best and known else None
            marked.append([value is not None and value == first for value in values])
        return [list(row) for row in zip(*marked, strict=True)]


def csv_text(table: Table) -> str:
    """Returns `Table.spelt_out` as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(table.spelt_out())
    return file.getvalue()


def markdown(table: Table) -> str:
    """Returns the table in Markdown, without its title. Tags and cell separators in a cell are escaped."""
    lines = [list(table.columns), ["---", *["---:"] * (len(table.columns) - 1)], *table.printed()]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def markdown_file(title: str, tables: Sequence[Table], notes: Sequence[str] = ()) -> str:
    """Returns a file in Markdown: the title, the notes, and each table under its own title."""
    parts = [f"# {escaped(title)}", *map(escaped, notes)]
    for table in tables:
        parts += [f"## {escaped(table.title)}", markdown(table)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Returns text whose tags are escaped."""
    return html.escape(text, quote=False)


def _cell(text: str) -> str:
    return escaped(" ".join(text.split())).replace("|", "\\|")


def _rounded(value: Any) -> Any:
    """Returns a number rounded to eight digits; other values unchanged."""
    return float(f"{value:.8g}") if isinstance(value, float) else value


def _printed(cell: Cell, decimals: int) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, Summary):
        spread = "" if cell.deviation is None else f" ± {cell.deviation:.{decimals}f}"
        return f"{cell.mean:.{decimals}f}{spread}"
    if isinstance(cell, Difference):
        if cell.low is None or cell.high is None:
            return _signed(cell.mean, decimals)
        return f"{_signed(cell.mean, decimals)} ({_signed(cell.low, decimals)} … {_signed(cell.high, decimals)})"
    if isinstance(cell, float):
        return f"{cell:.{decimals}f}" if cell == 0 or abs(cell) >= 10**-decimals else f"{cell:.1e}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", "−")
