"""Commands of the laboratory: `train`, `evaluate`, `reproduce`."""

import importlib
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from comrope.cli.typed import existing, typed
from comrope.errors import ConfigurationError
from comrope.lab.detection.experiment import DetectionExperiment
from comrope.lab.experiment import MOST_PIXELS, Experiment, Trial
from comrope.lab.text.experiment import TextExperiment
from comrope.lab.video.experiment import VideoExperiment

GO_ON = "give the same command again to go on."


@dataclass(frozen=True)
class _Running:
    """How a run is carried out: nothing here changes its result, but for rounding."""

    micro_batch: int | None = None
    """Samples that one process takes at a time; the rest of its share of a batch is accumulated."""
    readers: int = 0
    """Processes that read data, for each process that trains."""
    save_every: int | None = None
    """Steps between two checkpoints; an epoch's by default."""
    compiled: bool = False
    """Compile the model with torch.compile."""
    unreadable: Literal["fail", "skip"] = "fail"
    """What to do about an image that cannot be read; skipped ones are named and counted."""
    tensorboard: bool = False
    """Also write progress for TensorBoard."""


@dataclass(frozen=True)
class _Train:
    """What training commands have in common; each says which problem its experiment is of."""

    stopped: ClassVar[str] = GO_ON

    out: Path
    """Folder of the run."""
    running: tyro.conf.OmitArgPrefixes[_Running]
    experiment: Trial

    def run(self) -> None:
        from comrope.lab import runs, terminal

        conditions = importlib.import_module(self.experiment.module).conditions(self.experiment)
        with terminal.run_progress() as report:
            found = runs.run(
                self.experiment, conditions, self.out, command=typed(), report=report, **vars(self.running)
            )
        if terminal.speaks():
            terminal.show(terminal.evaluation(found))
            print(f"wrote {self.out}: weights.safetensors, result.json, log.jsonl")


@dataclass(frozen=True)
class TrainImages(_Train):
    """Train an image classifier with any encoding. Give the same command again to go on after a kill.

    One process, or many: `torchrun --nproc-per-node 8 -m comrope train images …`, or `accelerate launch -m comrope …`.
    """

    experiment: tyro.conf.OmitArgPrefixes[Experiment]


@dataclass(frozen=True)
class TrainVideo(_Train):
    """Train a video classifier, on UCF-101, any folder of videos, or made-up clips whose class is their motion."""

    experiment: tyro.conf.OmitArgPrefixes[VideoExperiment]


@dataclass(frozen=True)
class TrainDetection(_Train):
    """Train an object detector on COCO, on a folder laid out as it is, or on made-up scenes."""

    experiment: tyro.conf.OmitArgPrefixes[DetectionExperiment]


@dataclass(frozen=True)
class TrainText(_Train):
    """Train a language model on bytes: of any folder of texts, or of Python's own standard library."""

    experiment: tyro.conf.OmitArgPrefixes[TextExperiment]


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained run at every combination of the conditions given; what was measured before is read.

    Not every problem has all of them: texts have lengths, videos frames, and only they.
    """

    folder: tyro.conf.Positional[Path]
    """Folder of the run, as `comrope train` wrote it."""
    resolutions: tuple[str, ...] = ()
    """Sizes in pixels: 224, or 224x320 for height x width. The one trained at by default."""
    offsets: tuple[float, ...] = ()
    """ρ, in canvas widths: how far all coordinates of an image are moved together."""
    direction: Literal["random", "first-axis", "last-axis", "steepest"] | None = None
    """Each image by its own N(0, ρ²I), or all by ρ along an axis, or along the direction of the fastest plane."""
    perturbations: tuple[float, ...] = ()
    """σ, in patches: how far each patch is moved by itself."""
    seed: int | None = None
    """Of offsets and perturbations."""
    frames: tuple[int, ...] = ()
    """Of a clip; as many as were trained with by default."""
    lengths: tuple[int, ...] = ()
    """Of a window of text, in bytes; the one trained with by default."""
    scalings: tuple[Literal["none", "linear", "ntk", "yarn"], ...] = ()
    """How frequencies are scaled where windows of text are longer than those trained with."""
    readers: int = 0
    """Processes that read data, for each process that computes."""
    unreadable: Literal["fail", "skip"] = "fail"
    """What to do about a sample that cannot be read; skipped ones are named and counted."""
    data: str | None = None
    """Where the run's data are now, if they were moved."""

    def run(self) -> None:
        existing(self.folder, "run, as `comrope train` writes it")
        from comrope.lab import runs, terminal

        experiment = runs.experiment_of(self.folder)
        runs.read(self.folder)  # trained to the end
        problem = importlib.import_module(experiment.module)
        running = {"readers": self.readers, "unreadable": self.unreadable, "data": self.data}
        options = {key: value for key, value in vars(self).items() if key not in ("folder", *running)}
        options = {key: value for key, value in options.items() if value not in ((), None)}
        known = inspect.signature(problem.conditions).parameters
        foreign = [f"--{key}" for key in options if key not in known]
        if foreign:
            raise ConfigurationError(
                f"{self.folder} is a run on {experiment.kind}, which has no {', '.join(foreign)}: leave it out."
            )
        if self.direction is not None and not any(self.offsets):
            raise ConfigurationError(
                f"--direction {self.direction} says where --offsets go: give some that are not 0, or leave it out."
            )
        if self.seed is not None and not any((*self.offsets, *self.perturbations)):
            raise ConfigurationError(
                f"--seed {self.seed} is of --offsets and --perturbations: give some that are not 0, or leave it out."
            )
        if "resolutions" in options:
            options["resolutions"] = [_size(text) for text in self.resolutions]
        asked = problem.conditions(experiment, **options)
        with terminal.run_progress() as report:
            found = runs.run(experiment, asked, self.folder, report=report, **running)
        if terminal.speaks():
            terminal.show(terminal.evaluation(found, asked))


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigurationError(f"resolution {text!r}: expected pixels, as 224, or height x width, as 224x320.")
    size = int(parts[0]), int(parts[-1])
    if max(size) > MOST_PIXELS:
        raise ConfigurationError(f"resolution {text!r}: expected at most {MOST_PIXELS} pixels a side.")
    return size


@dataclass(frozen=True)
class Reproduce:
    """Reproduce a table or figure of the paper: train what it needs, measure, and set our numbers beside the paper's.

    What is trained already is taken from --runs, so that a stopped command goes on when it is given again.
    """

    stopped: ClassVar[str] = GO_ON

    recipe: tyro.conf.Positional[str] = ""
    """Which: see --list."""
    scale: Literal["demo", "small", "paper"] = "demo"
    """demo: seconds, on digits. small: hours, on Fashion-MNIST, several seeds. paper: the published setting, on a cluster."""
    out: Path | None = None
    """Folder for results.json, the tables, the figures and the report; runs/<recipe>-<scale> by default."""
    runs: Path | None = None
    """Folder of the runs, which recipes share; runs/runs-<scale> by default."""
    data: str | None = None
    """Data set in place of the scale's own, such as ImageNet-1K's folder."""
    seeds: tuple[int, ...] = ()
    """Seeds in place of the scale's own."""
    encodings: tuple[str, ...] = ()
    """Which to compare; the recipe's own by default."""
    epochs: int | None = None
    """Length of every training, in place of the scale's own."""
    batch_size: int | None = None
    """Samples in a step, in place of the scale's own."""
    workers: int = 2
    """Runs at a time, each in a process of one thread; 0: one after the other, with all threads."""
    list: bool = False
    """Name all recipes, and stop."""
    running: tyro.conf.OmitArgPrefixes[_Running] = field(default_factory=_Running)

    def run(self) -> None:
        from comrope.lab import reproduce, terminal

        if self.list:
            terminal.show(terminal.recipes(reproduce.RECIPES))
            return
        if self.recipe not in reproduce.RECIPES:
            raise ConfigurationError(f"recipe {self.recipe!r}: expected one of {', '.join(reproduce.RECIPES)}.")
        out = self.out or Path("runs") / f"{self.recipe}-{self.scale}"
        overrides = {"epochs": self.epochs, "batch_size": self.batch_size}
        scale = reproduce.SCALES[self.scale].changed(
            data=self.data, seeds=self.seeds, encodings=self.encodings, **overrides
        )
        with terminal.study_progress() as report:
            settings = {"workers": self.workers, "command": typed(), "report": report, **vars(self.running)}
            made: list[reproduce.Outcome] = []
            reproduce.run(self.recipe, scale, out, runs=self.runs, show=made.append, **settings)
        for outcome in made:
            for note in outcome.notes:
                print(note)
            terminal.show(*outcome.tables)
            print(f"wrote {out}: report.html, results.json, the tables and the figures")
