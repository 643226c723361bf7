"""What a run shows in the terminal: progress while it goes on, a table when it is done."""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console()


@contextmanager
def progress(encodings: Sequence[str]) -> Iterator[Callable[[str, str, int, int], None]]:
    """Bars for the models being trained, as a function of (encoding, stage, steps done, steps in all); lines off a terminal."""
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        models = bars.add_task("models", total=len(encodings))
        steps = {name: bars.add_task(name, total=None, visible=False) for name in encodings}

        def update(encoding: str, stage: str, done: int, total: int) -> None:
            measured = stage == "measured"
            bars.update(steps[encoding], completed=done, total=total, visible=not measured)
            if measured:
                bars.advance(models)
                if not console.is_terminal:
                    console.print(f"{encoding}: trained and measured", highlight=False)

        yield update


def table(results: dict) -> Table:
    """Accuracy of every encoding at every resolution and offset, in percent, and whether the RoPE equation holds."""
    settings = results["settings"]
    shown = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        title=f"top-1 % on {settings['num_test']} test images, σ = {settings['perturbation']:g}, seed {settings['seed']}",
        caption="Each column: an image size (* the one trained at), or a random offset ρ, in canvas widths, of an image's "
        "coordinates at that size. changed: labels that the worst offset changes. residual: largest element of "
        "R(x)ᵀR(y) − R(y − x), in float64.",
    )
    first = results["runs"][0]
    shown.add_column("encoding", no_wrap=True)
    for row in first["resolutions"]:
        mark = "*" if row["size"] == settings["training_size"] else ""
        shown.add_column(f"{row['size'][0]}\n×{row['size'][1]}{mark}", justify="right", no_wrap=True)
    for row in first["offsets"]:
        shown.add_column(f"ρ\n{row['offset']:g}", justify="right", no_wrap=True)
    shown.add_column("chan-\nged", justify="right", no_wrap=True)
    shown.add_column("resi-\ndual", justify="right", no_wrap=True)
    for run in results["runs"]:
        cells = [f"{100 * row['correct'] / row['total']:.1f}" for row in (*run["resolutions"], *run["offsets"])]
        changed = max(row["changed"] for row in run["offsets"])
        residual = f"{max(c['equation'] for c in run['check']):.0e}" if run["check"] else "–"
        shown.add_row(run["encoding"], *cells, str(changed), residual)
    return shown


def speaks() -> bool:
    """Whether this process is the one of those started together that prints."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def run_progress() -> Iterator[Callable[[str, int, int, float], None]]:
    """A bar for one run, with throughput and time left; off a terminal, a line at each tenth."""
    with study_progress() as report:
        yield lambda stage, done, total, speed: report("", stage, done, total, speed)


@contextmanager
def study_progress() -> Iterator[Callable[[str, str, int, int, float], None]]:
    """A bar for each run under way, as a function of (name, stage, done, in all, samples a second); lines off a terminal."""
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
                    visible=stage != "measured",
                )  # fmt: skip
                return
            mark = (name, stage, 10 * done // total)
            if speaks() and mark not in said:
                said.add(mark)
                console.print(f"{name} {stage} {done}/{total} {rate}".strip(), highlight=False)

        yield report


def evaluation(result: dict, conditions: Sequence[Any] | None = None) -> Table:
    """What was measured of a run, a row a condition, of those asked for or of all; no columns of nothing but zeros."""
    rows = [r for r in result["evaluation"] if conditions is None or any(c.describes(r) for c in conditions)]
    shown = Table(box=box.SIMPLE_HEAD, padding=0, title=f"{result['name']} on {result['experiment']['data']}")
    cells = [_cells(row) for row in rows]
    usual = {"0", "–", "random"}
    columns = [c for c in (cells[0] if cells else ()) if c == "correct" or {row[c] for row in cells} - usual]
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for row in cells:
        shown.add_row(*(row[column] for column in columns))
    return shown


def _cells(row: dict) -> dict[str, str]:
    """A measured row in print: sizes as 8×8, counts with their share, no long lists."""
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
    """The recipes of `comrope reproduce`, each with the first line of its docstring."""
    shown = _table("comrope reproduce <recipe> --scale demo|small|paper")
    shown.add_column("what it is")
    for name, recipe in known.items():
        shown.add_row(name, (recipe.__doc__ or "").strip().splitlines()[0])
    return shown


@contextmanager
def working(title: str) -> Iterator[Callable[[str], None]]:
    """A line that says what is being done; off a terminal, a line for each thing."""
    said: set[str] = set()

    def say(what: str) -> None:
        if not console.is_terminal and what not in said:
            said.add(what)
            console.print(f"{title}: {what}", highlight=False)

    with console.status(title) as status:
        yield lambda what: status.update(f"{title}: {what}") if console.is_terminal else say(what)


def measured_on(found: dict) -> str:
    """What the times of a bench depend on, in one line."""
    versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    return f"{found['threads']} threads, {found['cpu_capability']}, {versions}"


def bench_tables(found: dict) -> list[Table]:
    """Targets, then times with their ratios to plain RoPE, then memory."""
    tables = [_targets(found["targets"])]
    for shape in dict.fromkeys(row["shape"] for row in found["rotations"]):
        rows = [row for row in found["rotations"] if row["shape"] == shape]
        shown = _table(f"rotating q and k: {shape}, {found['threads']} threads; ratios to transformers' RoPE")
        for column in ("forward, ms", "ratio", "forward + backward, ms", "ratio", "floor, MB", "floor, Mflop"):
            shown.add_column(column, justify="right", no_wrap=True)
        for name in dict.fromkeys(row["opponent"] for row in rows):
            both = [row for row in rows if row["opponent"] == name]
            bounds = (f"{both[-1]['least_bytes'] / 1e6:.0f}", f"{both[-1]['least_operations'] / 1e6:.0f}")
            shown.add_row(name, *(cell for row in both for cell in timing(row)), *bounds)
        tables.append(shown)
    model = f"ViT-B/16 at 224, {found['depth']} layers, batch {found['batch']}"
    for title, rows in (("whole training step", found["training_steps"]), ("inference", found["inference"])):
        shown = _table(f"{title}, {model}; ratios to the same ViT with our RoPE")
        for column in ("ms", "ratio"):
            shown.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            shown.add_row(row["opponent"], *timing(row))
        tables.append(shown)
    attached = found.get("attached", [])  # runs before there were such rows have none
    for host in dict.fromkeys(row["host"] for row in attached):
        for mode in ("training step", "inference"):
            shown = _table(f"attached encodings, {mode}: {host}; ratios to its own RoPE")
            for column in ("ms", "ratio"):
                shown.add_column(column, justify="right", no_wrap=True)
            for row in attached:
                if (row["host"], row["mode"]) == (host, mode):
                    shown.add_row(row["opponent"], *timing(row))
            tables.append(shown)
    memory = _table("peak memory of one forward and backward of the rotation, above what was held before")
    whole = _table(f"peak memory of a process in whole training steps, {model}")
    for shown in (memory, whole):
        shown.add_column("MB", justify="right")
    for row in found["memory"]:
        memory.add_row(f"{row['shape']}: {row['opponent']}", f"{row['peak_bytes'] / 1e6:.0f}")
    for row in found["training_memory"]:
        whole.add_row(row["opponent"], f"{row['peak_bytes'] / 1e6:.0f}")
    return [*tables, memory, whole]


def _targets(rows: list[dict]) -> Table:
    shown = _table("targets")
    for column in ("target", "measured", "reached"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(row["what"], row["target"], f"{row['measured']:.3g}", "yes" if row["reached"] else "no")
    return shown


def _table(title: str) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, padding=0, title=title)
    shown.add_column("", no_wrap=True)
    return shown


def markdown(tables: Sequence[Table]) -> str:
    """The tables as Markdown, each under its title."""
    text = io.StringIO()
    page = Console(file=text, width=250)
    for shown in tables:
        page.print(f"## {shown.title}\n", highlight=False)
        title, shown.title, shown.box, shown.padding = shown.title, None, box.MARKDOWN, (0, 1)
        page.print(shown)
        shown.title, shown.box, shown.padding = title, box.SIMPLE_HEAD, 0
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def timing(row: dict) -> tuple[str, str]:
    """Median milliseconds, and the ratio to the baseline as median (lower to upper quartile)."""
    low, middle, high = row["ratio"]
    return f"{1e3 * row['seconds'][1]:.2f}", f"{middle:.2f} ({low:.2f}–{high:.2f})"
