"""What a recipe is made of: runs to make, and what to make of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from comrope.lab.reproduce.statistics import Difference, Summary
from comrope.lab.study import Job

Cell = str | int | float | Summary | Difference | None
"""None is a number that does not exist: "–" in print, empty in CSV."""


@dataclass(frozen=True)
class Table:
    """Rows of cells, in print and as CSV."""

    name: str
    """Of its file."""
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    decimals: int = 2

    def printed(self) -> list[list[str]]:
        """The rows as text: "63.09 ± 0.12" for a mean over seeds, "+0.31 (−0.02 … +0.64)" for a difference."""
        return [[_printed(cell, self.decimals) for cell in row] for row in self.rows]

    def spelt_out(self) -> list[list[Any]]:
        """Heading and rows of plain values: a mean or a difference takes a column for each of its numbers."""
        kinds = [next((type(c) for c in column if isinstance(c, tuple)), None) for column in self._columns()]
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

    def _columns(self) -> list[list[Cell]]:
        return [[row[i] for row in self.rows] for i in range(len(self.columns))]


@dataclass(frozen=True)
class Outcome:
    """What a recipe found."""

    tables: list[Table]
    figures: dict[str, Figure] = field(default_factory=dict)
    """By the name of their files."""
    notes: list[str] = field(default_factory=list)
    """What a reader has to know of the numbers: sentences."""


@dataclass(frozen=True)
class Study:
    """Runs, and the function that makes their results, in the same order, an outcome."""

    title: str
    jobs: Sequence[Job]
    outcome: Callable[[list[dict[str, Any]]], Outcome]
    encodings: Sequence[str] = ()
    """Those that it can compare, where no jobs say it."""


def _rounded(value: Any) -> Any:
    """Eight digits of a number."""
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
