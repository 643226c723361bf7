"""The main job: train the same small ViT with every encoding on real images, compare them, verify their laws, report."""

import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from comrope.encodings import ENCODINGS
from comrope.errors import ConfigurationError
from comrope.lab.classification import plain, shifted
from comrope.lab.experiment import Recipe
from comrope.lab.images.config import ImageConfig
from comrope.lab.images.data import load
from comrope.lab.images.model import MODELS
from comrope.lab.study import MOST_WORKERS, Job, run_all
from comrope.lab.table import Cell, Table

EXPERIMENT = ImageConfig(
    data="digits", model="demo", image_size=(48, 48), perturbation=1.0, recipe=Recipe(epochs=12, learning_rate=2e-3)
)
SIZES = ((24, 24), (32, 32), (32, 56), (48, 48), (64, 64), (96, 96))
OFFSETS = (0.0, 0.5, 1.0, 2.0)


def run(
    encodings: Sequence[str] = tuple(ENCODINGS),
    experiment: ImageConfig = EXPERIMENT,
    *,
    workers: int = 2,
    command: str = "",
    progress: Callable[[str, str, int, int], None] = lambda encoding, stage, done, total: None,
) -> dict:
    """Trains and measures one model an encoding, each in one thread of its own process.

    Args:
        encodings: names, in the order of the report.
        experiment: what is trained, but for the encoding.
        workers: processes at a time. The numbers do not depend on it.
        command: what was typed, for the record.
        progress: called with (encoding, stage, steps done, steps in all).
    Returns:
        The results as JSON-ready dicts and lists; everything but `timing` is the same for the same seed and machine.
    """
    unknown = [name for name in encodings if name not in ENCODINGS]
    if unknown or not encodings or len(set(encodings)) < len(encodings):
        raise ConfigurationError(
            f"encodings: got {list(encodings)}, expected different ones of {', '.join(ENCODINGS)}."
        )
    if not 1 <= workers <= MOST_WORKERS:
        raise ConfigurationError(f"workers={workers}: expected 1 or more, up to {MOST_WORKERS}.")
    started = time.perf_counter()
    conditions = (*plain(SIZES), *shifted(experiment.image_size, OFFSETS, experiment.recipe.seed))
    experiments = [replace(experiment, encoding=name) for name in encodings]
    jobs = [Job(each, conditions) for each in experiments]
    names = {each.name: each.encoding for each in experiments}

    def report(name: str, stage: str, done: int, total: int, speed: float) -> None:
        progress(names[name], stage, done, total)

    with tempfile.TemporaryDirectory(prefix="comrope-demo-") as folder:
        found = run_all(jobs, Path(folder), workers=workers, command=command, report=report)
    return {
        "command": command,
        "versions": {
            **{package: version(package) for package in ("comrope", "torch", "timm")},
            "python": platform.python_version(),
        },
        "settings": _settings(experiment),
        "runs": [_row(result) for result in found],
        "timing": {
            "threads": workers,
            "seconds": round(time.perf_counter() - started, 1),
            "train_seconds": {row["experiment"]["encoding"]: row["timing"]["train_seconds"] for row in found},
        },
    }


def _settings(experiment: ImageConfig) -> dict:
    """What the report says of the comparison."""
    train, test = load(experiment.data, experiment.num_train, experiment.num_test)
    model = MODELS[experiment.model]
    return {
        "width": model["embed_dim"],
        "depth": model["depth"],
        "num_heads": model["num_heads"],
        "patch_size": model["patch_size"],
        "sizes": [list(size) for size in SIZES],
        "offsets": list(OFFSETS),
        **{key: value for key, value in asdict(experiment.recipe).items() if value is not None},
        "enlargement": experiment.resize_ratio,
        "perturbation": experiment.perturbation,
        "training_size": list(experiment.image_size),
        "num_train": len(train),
        "num_test": len(test),
        "data": "scikit-learn's digits, upsampled from 8 x 8",
    }


def _row(result: dict) -> dict:
    """One encoding's results: training, other resolutions, then offsets at the size trained at."""
    rows = result["evaluation"]
    kept = ("num_parameters", "num_encoding_parameters", "history")
    trained = result["experiment"]["image_size"]
    moved = [row for row in rows if row["offset"] or row["size"] == trained]
    return {
        "encoding": result["experiment"]["encoding"],
        **{key: result[key] for key in kept},
        "resolutions": [row for row in rows if not row["offset"]],
        "offsets": sorted(moved, key=lambda row: row["offset"]),
        "check": [] if result["experiment"]["encoding"] == "ape" else result["check"],  # it turns nothing
        "frequencies": result["frequencies"],
    }


def table(results: dict) -> Table:
    """Accuracy of every encoding at every resolution and offset, in percent, and whether the RoPE equation holds."""
    settings, first = results["settings"], results["runs"][0]
    sizes = [
        f"{height}\n×{width}{'*' if [height, width] == settings['training_size'] else ''}"
        for height, width in (row["size"] for row in first["resolutions"])
    ]
    offsets = [f"ρ\n{row['offset']:g}" for row in first["offsets"]]
    rows: list[tuple[Cell, ...]] = []
    for run in results["runs"]:
        cells = [f"{100 * row['correct'] / row['total']:.1f}" for row in (*run["resolutions"], *run["offsets"])]
        changed = max(row["changed"] for row in run["offsets"])
        residual = f"{max(c['equation'] for c in run['check']):.0e}" if run["check"] else None
        rows.append((run["encoding"], *cells, changed, residual))
    title = (
        f"top-1 % on {settings['num_test']} test images, σ = {settings['perturbation']:g}, seed {settings['seed']}. Each "
        "column: an image size (* the one trained at), or a random offset ρ, in canvas widths, of an image's coordinates at "
        "that size. changed: labels that the worst offset changes. residual: largest element of R(x)ᵀR(y) − R(y − x), in "
        "float64."
    )
    return Table("demo", title, ("encoding", *sizes, *offsets, "chan-\nged", "resi-\ndual"), rows)
