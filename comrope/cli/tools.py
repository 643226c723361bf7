"""Commands that answer at once or in minutes: `demo`, `report`, `bench`, and `check` and `fold` for models on disk."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from comrope.cli.typed import existing, typed
from comrope.errors import ConfigurationError

MOST_THREADS = 1024


@dataclass(frozen=True)
class Demo:
    """Train the same small ViT with every encoding on real images, compare and verify them, write a report.

    Takes a few minutes on two cores and downloads nothing. The same seed gives the same numbers.
    """

    out: Path = Path("runs/demo")
    """Folder for results.json, report.html and the figures. An earlier result there is replaced."""
    seed: int = 0
    """Of the weights, the batches, the crops, the perturbations and the offsets."""
    epochs: int | None = None
    """How long each model is trained; the demo's own setting by default."""
    encodings: tuple[str, ...] = ()
    """Which to compare; all by default."""
    workers: int = 2
    """Models trained at a time, each in a process of one thread. The numbers do not depend on it."""

    def run(self) -> None:
        from comrope.encodings import ENCODINGS
        from comrope.lab import demo, results, terminal

        recipe = replace(demo.EXPERIMENT.recipe, seed=self.seed)
        recipe = recipe if self.epochs is None else replace(recipe, epochs=self.epochs)
        experiment = replace(demo.EXPERIMENT, recipe=recipe)
        names = self.encodings or tuple(ENCODINGS)
        with results.whole_or_nothing(self.out) as folder:
            with terminal.progress(names) as progress:
                result = demo.run(names, experiment, workers=self.workers, command=typed(), progress=progress)
            results.save(result, folder)
        terminal.show(demo.table(result))
        print(f"wrote {self.out}: report.html, results.json and the figures, in {result['timing']['seconds']:.0f} s")


@dataclass(frozen=True)
class Report:
    """Write the HTML report of an earlier run again."""

    results: tyro.conf.Positional[Path]
    """results.json, or the folder that holds it."""
    out: Path = Path("report.html")
    """The file to write."""

    def run(self) -> None:
        from comrope.lab import report, results

        report.write_report(results.read(self.results), self.out)
        print(f"wrote {self.out}")


@dataclass(frozen=True)
class Bench:
    """Time every way of rotating queries and keys, side by side; whole ViT-B/16 training steps, inference, peak memory.

    Takes an hour or more on two cores. Prints ratios to plain RoPE, and every target beside what was measured.
    """

    out: Path = Path("runs/bench")
    """Folder for results.json, tables.md and the figure. An earlier result there is replaced."""
    threads: int = 2
    """Processor threads."""
    rounds: int = 7
    """Turns that each way of rotating takes; whole models take three times as many."""
    batch: int = 4
    """Images in a training step."""
    depth: int = 12
    """Layers of the ViT in a training step; 12 is ViT-B/16."""
    tokens: int = 32768
    """Shapes with more tokens are left out."""

    def run(self) -> None:
        import torch

        from comrope.lab import bench, results, table, terminal
        from comrope.lab.bench.figure import figure
        from comrope.lab.bench.tables import measured_on, tables

        least = {"threads": 1, "rounds": 2, "batch": 1, "depth": 1, "tokens": bench.SHAPES[0].num_tokens}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ConfigurationError(f"{name}={getattr(self, name)}: expected {number} or more.")
        if self.threads > MOST_THREADS:
            raise ConfigurationError(f"threads={self.threads}: expected 1 to {MOST_THREADS}.")
        sizes = {"rounds": self.rounds, "batch": self.batch, "depth": self.depth, "tokens": self.tokens}
        with results.whole_or_nothing(self.out) as folder:
            torch.set_num_threads(self.threads)
            with terminal.working("bench") as working:
                found = bench.run(**sizes, command=typed(), progress=working)
            results.write_json(found, folder / "results.json")
            (folder / "tables.md").write_text(table.page("comrope bench", tables(found)), encoding="utf-8")
            figure(found).savefig(folder / "bench.svg")
        terminal.show(*tables(found))
        print(measured_on(found))
        print(f"wrote {self.out}: results.json, tables.md and bench.svg")


@dataclass(frozen=True)
class Check:
    """Measure on a saved model, layer by layer, whether the angle matrices commute and the RoPE equation holds.

    Exit status 1 where it does not hold.
    """

    model: tyro.conf.Positional[Path]
    """Folder that comrope.save wrote, or of a run."""
    data: str | None = None
    """Where the data of a run are now, if they were moved."""

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
    """Folder to write; must not be there yet."""

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
    """The model of a folder, whether `comrope.save` or a training wrote it; of a run, whose data tell classes."""
    if (folder / "run.json").exists():
        from comrope.lab import runs

        return runs.load_run(folder, where=data)
    import comrope

    if data is not None:
        raise ConfigurationError(f"--data {data}: {folder} is no run, and needs none: leave it out.")
    return comrope.load(folder)
