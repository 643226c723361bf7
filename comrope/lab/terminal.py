"""What a run shows in the terminal: progress while it goes on, a table when it is done."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console()


@contextmanager
def progress(encodings: Sequence[str]) -> Iterator[Callable[[str, str, int, int], None]]:
    """Two bars, models and steps, as a function of (encoding, stage, steps done, steps in all); off a terminal, lines."""
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        models = bars.add_task("models", total=len(encodings))
        steps = bars.add_task("", total=None)

        def update(encoding: str, stage: str, done: int, total: int) -> None:
            bars.update(steps, description=f"{encoding}: {stage}", completed=done, total=total)
            if stage == "evaluate" and done == total:
                bars.advance(models)
                if not console.is_terminal:
                    console.print(f"{encoding}: trained and measured", highlight=False)

        yield update


def table(results: dict) -> Table:
    """Accuracy of every encoding at every resolution and offset, in percent, and whether the RoPE equation holds."""
    settings = results["settings"]
    trained = settings["training_size"]
    shown = Table(
        title=f"top-1 % on {settings['num_test']} test images, trained at {trained[0]}×{trained[1]}, "
        f"σ = {settings['perturbation']:g}, seed {settings['seed']}",
    )
    first = results["runs"][0]
    shown.add_column("encoding")
    for row in first["resolutions"]:
        shown.add_column("×".join(map(str, row["size"])) + ("*" if row["size"] == trained else ""), justify="right")
    for row in first["offsets"]:
        shown.add_column(f"ρ={row['offset']:g}", justify="right")
    shown.add_column("labels changed", justify="right")
    shown.add_column("RoPE equation", justify="right")
    for run in results["runs"]:
        cells = [f"{100 * row['correct'] / row['total']:.1f}" for row in (*run["resolutions"], *run["offsets"])]
        changed = max(row["changed"] for row in run["offsets"])
        residual = f"{max(c['equation'] for c in run['check']):.0e}" if run["check"] else "not a rotation"
        shown.add_row(run["encoding"], *cells, str(changed), residual)
    shown.caption = (
        "* training resolution. ρ: strength of the random offset of all of an image's coordinates, in canvas widths; "
        "labels changed: by the worst ρ. RoPE equation: largest residual of R(x)ᵀR(y) = R(y − x)."
    )
    return shown
