"""Commands of the laboratory: `train`, `evaluate`, `reproduce`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, Literal, TypeVar

import tyro

from comrope.cli.typed import existing, typed
from comrope.errors import ConfigurationError
from comrope.lab.experiment import ExperimentConfig
from comrope.lab.place import POOL, Place

GO_ON = "give the same command again to go on."
Config = TypeVar("Config", bound=ExperimentConfig)
Options = TypeVar("Options")


@dataclass(frozen=True)
class _Running:
    """Options that do not change the result of a run, but for rounding."""

    micro_batch: int | None = None
    """Samples that one process takes at a time; gradients of its share of a batch are accumulated."""
    num_workers: int = 0
    """Number of processes that read data, for each process that trains."""
    save_every: int | None = None
    """Steps between two checkpoints; by default one epoch."""
    compile: bool = False
    """Compile the model with torch.compile."""
    unreadable: Literal["fail", "skip"] = "fail"
    """What to do about a sample that cannot be read: "skip" names and counts it."""
    tensorboard: bool = False
    """Also write progress for TensorBoard."""


@dataclass(frozen=True)
class Train(Generic[Config]):
    """Train a model, and evaluate it as it was trained. After an interruption, give the same command again to go on."""

    stopped: ClassVar[str] = GO_ON

    out: Path
    """Folder of the run."""
    running: tyro.conf.OmitArgPrefixes[_Running]
    experiment: tyro.conf.OmitArgPrefixes[Config]

    def run(self) -> None:
        from comrope.lab import runs, terminal

        conditions = self.experiment.problem.conditions(self.experiment)
        with terminal.run_progress() as on_progress:
            found = runs.run(
                self.experiment, conditions, self.out, command=typed(), on_progress=on_progress, **vars(self.running)
            )
        if terminal.speaks():
            terminal.show(terminal.evaluation(found))
            print(f"wrote {self.out}: weights.safetensors, result.json, log.jsonl")


@dataclass(frozen=True)
class Evaluate(Generic[Options]):
    """Evaluate a trained run under every combination of the options; earlier measurements are not repeated."""

    folder: tyro.conf.Positional[Path]
    """Folder of the run, as `comrope train` wrote it."""
    measurements: tyro.conf.OmitArgPrefixes[Options]
    num_workers: int = 0
    """Number of processes that read data, for each process that computes."""
    unreadable: Literal["fail", "skip"] = "fail"
    """What to do about a sample that cannot be read: "skip" names and counts it."""
    data: str | None = None
    """Where the run's data are now, if they were moved."""

    def run(self) -> None:
        existing(self.folder, "run, as `comrope train` writes it")
        from comrope.lab import runs, terminal

        experiment = runs.experiment_of(self.folder)
        if type(self.measurements) is not experiment.Options:
            raise ConfigurationError(
                f"{self.folder} is a run on {experiment.kind}: give `comrope evaluate {experiment.kind} {self.folder}`."
            )
        runs.read(self.folder)  # raises an error unless training is finished
        conditions = experiment.problem.conditions(experiment, self.measurements)
        running = {"num_workers": self.num_workers, "unreadable": self.unreadable, "data": self.data}
        with terminal.run_progress() as on_progress:
            found = runs.run(experiment, conditions, self.folder, on_progress=on_progress, **running)
        if terminal.speaks():
            terminal.show(terminal.evaluation(found, conditions))


@dataclass(frozen=True)
class Reproduce:
    """Reproduce a table or figure of the paper: train and evaluate its models, and compare with the paper's numbers.

    Models that are trained already are taken from --runs, so a stopped command goes on when it is given again. What was
    measured of models that are trained elsewhere is taken from --recorded.
    """

    recipe: tyro.conf.Positional[str] = ""
    """Name of the table or figure; --list shows all."""
    scale: Literal["demo", "small", "paper"] = "demo"
    """demo: seconds, on digits. small: hours, on Fashion-MNIST, several seeds. paper: the published setting, on a cluster."""
    out: Path | None = None
    """Folder for results.json, the tables, the figures and the page; runs/<recipe>-<scale> by default."""
    runs: Path | None = None
    """Folder of the runs, which recipes share; runs/runs-<scale> by default."""
    recorded: tuple[Path, ...] = ()
    """Folders of earlier results or of runs, or folders above these. Their runs are taken in place of training them again."""
    data: str | None = None
    """Data set in place of the scale's own, such as the folder of ImageNet-1K. All of its samples are used."""
    num_train: int | None = None
    """Number of training samples, in place of the scale's own."""
    num_test: int | None = None
    """Number of test samples, likewise."""
    seeds: tuple[int, ...] = ()
    """Seeds in place of the scale's own."""
    encodings: tuple[str, ...] = ()
    """Encodings to compare; the recipe's own by default."""
    epochs: int | None = None
    """Number of epochs of every training, in place of the scale's own."""
    batch_size: int | None = None
    """Batch size, in place of the scale's own."""
    parallel: int | None = None
    """Number of runs at a time, each in a process of one thread; 2 by default. 0: one after the other, with all threads.
    Of jobs in SLURM, the number that are queued or run at a time; all by default."""
    list: bool = False
    """List all recipes, and exit."""
    running: tyro.conf.OmitArgPrefixes[_Running] = field(default_factory=_Running)
    place: tyro.conf.OmitArgPrefixes[Place] = POOL

    @property
    def stopped(self) -> str:
        """What is said after an interruption."""
        return f"jobs in SLURM's queue go on: {GO_ON}" if self.place.on == "slurm" else GO_ON

    def run(self) -> None:
        from comrope.lab import reproduce, terminal

        if self.list:
            terminal.show(terminal.recipes(reproduce.RECIPES))
            return
        if self.recipe not in reproduce.RECIPES:
            raise ConfigurationError(f"recipe {self.recipe!r}: expected one of {', '.join(reproduce.RECIPES)}.")
        out = self.out or Path("runs") / f"{self.recipe}-{self.scale}"
        names = ("data", "num_train", "num_test", "seeds", "encodings", "epochs", "batch_size")
        scale = reproduce.SCALES[self.scale].changed(**{name: getattr(self, name) for name in names})
        with terminal.study_progress() as on_progress:
            settings = {"runs": self.runs, "recorded": self.recorded, "parallel": self.parallel, "place": self.place}
            settings |= {**vars(self.running), "command": typed(), "on_progress": on_progress}
            made: list[reproduce.Outcome] = []
            reproduce.run(self.recipe, scale, out, show=made.append, **settings)
        for outcome in made:
            terminal.result(out, outcome.tables, outcome.notes)
