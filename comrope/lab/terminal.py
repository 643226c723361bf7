"""Output in the terminal: progress of runs, and tables of results."""

import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich.table
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from comrope.lab.table import Table

console = Console()
_NUMBER = re.compile(r"[+−-]?\d|–")


def show(*tables: Table) -> None:
    """Prints tables no wider than the terminal: columns that do not fit follow below, with the names of the rows again."""
    for table in tables:
        names, rows = _leading(table), table.printed()
        heading = [_wrapped(*column) for column in zip(table.columns, *rows, strict=True)]
        for number, group in enumerate(_groups(heading, rows, names, console.width)):
            shown = rich.table.Table(
                box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left",
                title=None if number else table.title,
            )  # fmt: skip
            for i in group:
                shown.add_column(heading[i], justify="left" if i < names else "right", overflow="fold")
            for row in rows:
                shown.add_row(*(row[i] for i in group))
            console.print(shown, markup=False, highlight=False)


def result(folder: Path, tables: Sequence[Table], notes: Sequence[str] = ()) -> None:
    """Prints the notes and the tables of a result, and where it was written."""
    for note in notes:
        print(note)
    show(*tables)
    print(f"wrote {folder}: report.html, results.json, the tables and the figures")


def _leading(table: Table) -> int:
    """Returns the number of columns at the left that name a row."""
    columns = list(zip(*table.printed(), strict=True))
    count = next((i for i, column in enumerate(columns) if any(_NUMBER.match(cell) for cell in column)), 1)
    return max(1, min(count, len(table.columns) - 1))


def _wrapped(heading: str, *cells: str) -> str:
    """Returns the heading, wrapped to the width of the widest cell if its words allow."""
    width = max(map(cell_len, (*cells, *heading.split())), default=1)
    return "\n".join(textwrap.wrap(heading, width, break_long_words=False, break_on_hyphens=False)) if heading else ""


def _groups(heading: Sequence[str], rows: Sequence[Sequence[str]], names: int, width: int) -> list[list[int]]:
    """Returns groups of columns that fit side by side, each with the names of the rows."""
    texts = zip(heading, *rows, strict=True)
    widths = [max(cell_len(line) for text in column for line in text.split("\n")) + 2 for column in texts]
    groups: list[list[int]] = [[]]
    for i in range(names, len(widths)):
        if groups[-1] and sum(widths[:names]) + sum(widths[j] for j in (*groups[-1], i)) > width:
            groups.append([])
        groups[-1].append(i)
    return [[*range(names), *group] for group in groups]


def speaks() -> bool:
    """Whether this process prints: of those that were started together only the first does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def run_progress() -> Iterator[Callable[[str, int, int, float], None]]:
    """Yields a callback for the progress of a run. It shows a bar, or prints a line at each tenth if this is no terminal."""
    with study_progress() as report:
        yield lambda stage, done, total, speed: report("", stage, done, total, speed)


@contextmanager
def study_progress() -> Iterator[Callable[[str, str, int, int, float], None]]:
    """Yields a callback (name, stage, done, total, samples per second) for several runs, shown as in `run_progress`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    said: set[tuple[str, str, int]] = set()
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal and speaks()),
    ) as bars:
        shown: dict[str, Any] = {}

        def report(name: str, stage: str, done: int, total: int, speed: float) -> None:
            rate = f"{speed:.0f}/s" if speed else ""
            if console.is_terminal:
                if name not in shown:
                    shown[name] = bars.add_task(name, total=total, speed=rate)
                bars.update(
                    shown[name], description=f"{name} {stage}".strip(), completed=done, total=total, speed=rate,
                    visible=stage not in ("measured", "recorded"),
                )  # fmt: skip
                return
            mark = (name, stage, 10 * done // total)
            if speaks() and mark not in said:
                said.add(mark)
                console.print(f"{name} {stage} {done}/{total} {rate}".strip(), highlight=False)

        yield report


def evaluation(result: dict, conditions: Sequence[Any] | None = None) -> Table:
    """Returns a table of a run's evaluation, with a row for each condition, all if None. Columns of zeros are left out."""
    rows = [r for r in result["evaluation"] if conditions is None or any(c.describes(r) for c in conditions)]
    cells = [_cells(row) for row in rows]
    usual = {"0", "–", "random", "none"}
    names = dict.fromkeys(name for row in cells for name in row)  # rows of earlier versions have fewer
    columns = [name for name in names if name == "correct" or {row.get(name, "–") for row in cells} - usual]
    title = f"{result['name']} on {result['experiment']['data']}"
    return Table("evaluation", title, tuple(columns), [tuple(row.get(n, "–") for n in columns) for row in cells])


def _cells(row: dict) -> dict[str, str]:
    """Returns a row of an evaluation as text: sizes as 8×8, the share of correct answers, no long lists."""
    cells = {}
    for name, value in row.items():
        if isinstance(value, list) and len(value) <= 3:
            cells[name] = "×".join(map(str, value))
        elif value is None or isinstance(value, (str, int, float)):
            cells[name] = "–" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
    if row.get("total"):
        cells["top-1 %"] = f"{100 * row['correct'] / row['total']:.2f}"
    return cells


def recipes(known: Mapping[str, Callable]) -> Table:
    """Returns a table of the recipes of `comrope reproduce`, each with the first line of its docstring."""
    rows = [(name, (recipe.__doc__ or "").strip().splitlines()[0]) for name, recipe in known.items()]
    return Table("recipes", "comrope reproduce <recipe> --scale demo|small|paper", ("", "what it is"), rows)


@contextmanager
def working(title: str) -> Iterator[Callable[[str], None]]:
    """Yields a callback that shows what is being done, in one line; if this is no terminal, it prints a line for each."""
    said: set[str] = set()

    def say(what: str) -> None:
        if not console.is_terminal and what not in said:
            said.add(what)
            console.print(f"{title}: {what}", highlight=False)

    with console.status(title) as status:
        yield lambda what: status.update(f"{title}: {what}") if console.is_terminal else say(what)
