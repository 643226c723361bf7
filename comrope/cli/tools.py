"""The commands `demo`, `report` and `bench`, and `check` and `fold` for models on disk."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from comrope.cli.typed import existing, typed
from comrope.errors import ConfigurationError

MOST_THREADS = 1024


@dataclass(frozen=True)
class Demo:
    """Train the same small ViT with every encoding on real images, compare and verify them, and write a page about them.

    Takes a few minutes on two cores and downloads nothing. The same seed gives the same numbers.
    """

    out: Path = Path("runs/demo")
    """Folder for results.json, report.html, the tables and the figures. An earlier result there is replaced."""
    seed: int = 0
    """Seed of the weights, the batches, the crops, the perturbations and the offsets."""
    epochs: int | None = None
    """Epochs of training; the demo's own number by default."""
    encodings: tuple[str, ...] = ()
    """Encodings to compare; all by default."""
    parallel: int = 2
    """Number of models trained at a time, each in a process of one thread. The results do not depend on it."""

    def run(self) -> None:
        from comrope.lab import reproduce, terminal

        if self.parallel < 1:
            raise ConfigurationError(f"parallel={self.parallel}: expected 1 or more.")
        scale = reproduce.DEMO.changed(seeds=(self.seed,), encodings=self.encodings, epochs=self.epochs)
        made: list[reproduce.Outcome] = []
        with (
            terminal.study_progress() as on_progress,
            tempfile.TemporaryDirectory(prefix="comrope-demo-") as runs,
        ):
            settings = {"parallel": self.parallel, "command": typed(), "on_progress": on_progress, "show": made.append}
            reproduce.run("demo", scale, self.out, runs=Path(runs), **settings)
        for outcome in made:
            terminal.result(self.out, outcome.tables, outcome.notes)


@dataclass(frozen=True)
class Report:
    """Write the HTML page of an earlier demo or recipe again, from its results.json."""

    results: tyro.conf.Positional[Path]
    """results.json, or the folder that holds it."""
    out: Path = Path("report.html")
    """The file to write."""

    def run(self) -> None:
        from comrope.lab import page, reproduce, results

        page.write(reproduce.page_of(results.read(self.results)), self.out)
        print(f"wrote {self.out}")


@dataclass(frozen=True)
class Bench:
    """Measure implementations of the rotation side by side: time, whole training steps, inference and peak memory.

    Takes an hour or more on two cores. Prints ratios to plain RoPE, and all targets with their measured values.
    """

    out: Path = Path("runs/bench")
    """Folder for results.json, report.html, the tables and the figure. An earlier result there is replaced."""
    threads: int = 2
    """Processor threads."""
    rounds: int = 7
    """Number of rounds in which each rotation is timed; whole models take three times as many."""
    batch: int = 4
    """Images in a training step."""
    depth: int = 12
    """Layers of the ViT in a training step; 12 is ViT-B/16."""
    tokens: int = 32768
    """Shapes with more tokens are left out."""

    def run(self) -> None:
        import torch

        from comrope.lab import bench, output, results, terminal

        least = {"threads": 1, "rounds": 2, "batch": 1, "depth": 1, "tokens": bench.SHAPES[0].num_tokens}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ConfigurationError(f"{name}={getattr(self, name)}: expected {number} or more.")
        if self.threads > MOST_THREADS:
            raise ConfigurationError(f"threads={self.threads}: expected 1 to {MOST_THREADS}.")
        sizes = {"rounds": self.rounds, "batch": self.batch, "depth": self.depth, "tokens": self.tokens}
        with results.atomic_folder(self.out, ("bench.*", "bench-*")) as folder:
            torch.set_num_threads(self.threads)
            with terminal.working("bench") as working:
                found = bench.run(**sizes, command=typed(), progress=working)
            outcome = bench.outcome(found)
            output.write(found, outcome, folder)
        terminal.result(self.out, outcome.tables, [outcome.lead])


@dataclass(frozen=True)
class Check:
    """Measure on a saved model, layer by layer, whether the angle matrices commute and the RoPE equation holds.

    Exit status 1 where it does not hold.
    """

    model: tyro.conf.Positional[Path]
    """Folder that comrope.save wrote, or the folder of a run."""
    data: str | None = None
    """Where the data of the run are now, if they were moved."""

    def run(self) -> None:
        existing(self.model, "saved model, as comrope.save or `comrope train` writes it")
        import comrope

        report = comrope.check(_model_in(self.model, self.data))
        print(report)
        if not report.holds:
            sys.exit(1)


@dataclass(frozen=True)
class Fold:
    """Fold the encoding of a saved model into its weights: plain RoPE with frequencies of each head, the same outputs."""

    model: tyro.conf.Positional[Path]
    """Folder that comrope.save wrote."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write; it must not exist yet."""

    def run(self) -> None:
        existing(self.model, "saved model, as comrope.save writes it")
        from comrope.hosts._atomic_folder import is_taken

        if is_taken(self.out):
            raise ConfigurationError(f"{self.out} exists already: choose another --out, or remove it.")
        import comrope

        model = comrope.load(self.model)
        comrope.fold(model)
        comrope.save(model, self.out)
        print(f"wrote {self.out}: load it with comrope.load")


def _model_in(folder: Path, data: str | None) -> Any:
    """Returns the model in a folder of `comrope.save` or of a run. A run needs its data, which determine the classes."""
    if (folder / "run.json").exists():
        from comrope.lab import runs

        return runs.load_run(folder, where=data)
    import comrope

    if data is not None:
        raise ConfigurationError(f"--data {data}: {folder} is no run, and needs none: leave it out.")
    return comrope.load(folder)
