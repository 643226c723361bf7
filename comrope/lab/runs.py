"""A run: one experiment, its folder, and what was found.

    run.json             the experiment, the command and the versions: written first
    log.jsonl            progress, a line every so many steps
    checkpoints/         the state to go on from, until training is done
    weights.safetensors  the trained model
    result.json          what training and all measurements gave

What is trained, and how it is measured, is the problem's: the module that `experiment.module` names has
    data(experiment, unreadable)           what to train on, and what to test on
    build(experiment, data, runs)          the model
    task(model, data, experiment)          what `comrope.lab.train` wants to know
    conditions(experiment, …)              what `comrope evaluate` asks for, of its options
    measure(model, data, conditions, readers=…)   a row a condition
and conditions say with `describes(row)` which rows are theirs.

A run that was killed goes on from its last checkpoint when the same command is given again, and what is done is not done twice.
"""

import importlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_model, save_model
from torch import nn

import comrope
from comrope.encodings import Encoding, LearnedEncoding, SpectralEncoding
from comrope.errors import ConfigurationError, DataError
from comrope.hosts import angle_parameters
from comrope.lab import results
from comrope.lab.checkpoints import Checkpoints
from comrope.lab.detection.experiment import DetectionExperiment
from comrope.lab.experiment import Experiment, Trial
from comrope.lab.text.experiment import TextExperiment
from comrope.lab.train import Progress, train
from comrope.lab.video.experiment import VideoExperiment

KINDS: dict[str, type[Trial]] = {
    cls.kind: cls for cls in (Experiment, VideoExperiment, DetectionExperiment, TextExperiment)
}
"""The experiments of all problems."""

Report = Callable[[str, int, int, float], None]
"""Told (stage, done, in all, samples a second) as a run goes on."""


def run(
    experiment: Trial,
    conditions: Sequence[Any],
    folder: Path,
    *,
    command: str = "",
    micro_batch: int | None = None,
    readers: int = 0,
    save_every: int | None = None,
    compiled: bool = False,
    unreadable: str = "fail",
    tensorboard: bool = False,
    report: Report = lambda stage, done, total, speed: None,
) -> dict[str, Any]:
    """Trains what is not trained yet, measures what is not measured yet, and returns the run's result.

    All processes that were started together call this together; the first of them writes.

    Args:
        experiment: what is trained.
        conditions: what it is measured under.
        folder: of the run; made where it is missing.
        command: what was typed, for the record.
        micro_batch, readers, compiled: see `comrope.lab.train.train`. None of them changes the result but for rounding.
        save_every: steps between two checkpoints; an epoch's if None.
        unreadable: whether an image that cannot be read is to "fail", or be left out ("skip") and counted.
        tensorboard: whether progress is also written for TensorBoard, into the folder's `tensorboard`.
    Raises:
        ConfigurationError: the folder holds another experiment.
        DataError: the data are not there, or damaged.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    problem = importlib.import_module(experiment.module)
    train_set, test_set = problem.data(experiment, unreadable)
    result = _read(folder / "result.json")
    model = (
        problem.build(experiment, train_set, folder.parent) if result is None else None
    )  # or say what is wrong with it
    _claim(folder, experiment, command, state)
    if result is None:
        settings = {"micro_batch": micro_batch, "readers": readers, "compiled": compiled}
        result = _train(experiment, problem, model, train_set, folder, settings, save_every, tensorboard, report, state)
    missing = [c for c in conditions if not any(c.describes(row) for row in result["evaluation"])]
    if missing:
        model = load_run(folder, test_set)
        begun = time.perf_counter()
        for done, condition in enumerate(missing):
            report("measuring", done, len(missing), 0.0)
            result["evaluation"] += problem.measure(model, test_set, [condition], readers=readers)
        result["timing"]["evaluation_seconds"] += round(time.perf_counter() - begun, 2)
        if state.is_main_process:
            results.write_json(result, folder / "result.json")
        state.wait_for_everyone()
    report("measured", 1, 1, 0.0)
    return result


def read(folder: Path) -> dict[str, Any]:
    """The result of a finished run; DataError where there is none."""
    found = _read(folder / "result.json")
    if found is None:
        raise DataError(f"{folder} holds no finished run: `comrope train` makes one.")
    return found


def experiment_of(folder: Path) -> Trial:
    """What a run's folder is about; DataError where it is none."""
    found = _read(folder / "run.json")
    if found is None:
        raise DataError(f"{folder} is no run: it has no run.json, which `comrope train` writes.")
    return _trial(found)


def load_run(folder: Path, data: Any = None) -> nn.Module:
    """The trained model of a run, in eval mode, on the device there is. The data it is for are read if None."""
    experiment = experiment_of(folder)
    problem = importlib.import_module(experiment.module)
    model = problem.build(experiment, problem.data(experiment)[1] if data is None else data, folder.parent)
    if not (folder / "weights.safetensors").exists():
        raise DataError(f"{folder} has no trained weights yet: give its training command again.")
    load_model(model, folder / "weights.safetensors")
    return model.eval().to(PartialState(cpu=not torch.cuda.is_available()).device)


def _trial(found: dict[str, Any]) -> Trial:
    kind = found.get("kind")
    if kind not in KINDS:
        raise DataError(f"a run of kind {kind!r}: this version of comrope knows {', '.join(KINDS)}.")
    return KINDS[kind].from_json(found["experiment"])


def _claim(folder: Path, experiment: Trial, command: str, state: PartialState) -> None:
    """The folder is this experiment's from now on, unless it is another's that was at least begun."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name a folder for the run.")
    found = _read(folder / "run.json")
    begun = any((folder / part).exists() for part in ("checkpoints", "result.json"))
    state.wait_for_everyone()
    if found is None or not begun:
        if found is None and folder.exists() and any(folder.iterdir()) and state.is_main_process:
            raise DataError(f"{folder} holds what is no run of comrope: name another folder.")
        if state.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            versions = {package: version(package) for package in ("comrope", "torch", "timm", "accelerate")}
            about = {"kind": experiment.kind, "experiment": experiment.to_json(), "command": command}
            results.write_json(
                about | {"versions": versions | {"python": platform.python_version()}}, folder / "run.json"
            )
        state.wait_for_everyone()
        return
    here = _trial(found)
    if here != experiment:
        different = [key for key, value in vars(experiment).items() if vars(here).get(key) != value]
        raise ConfigurationError(
            f"{folder} holds a run with other settings ({', '.join(different)}): name another folder, or remove it."
        )


def _train(
    experiment, problem, model, data, folder, settings, save_every, tensorboard, report, state
) -> dict[str, Any]:
    if torch.cuda.is_available():
        model.to(state.device)
    log = _Log(folder / "log.jsonl", state.is_main_process, tensorboard)

    def after_step(progress: Progress) -> None:
        report("training", progress.step, progress.total, progress.samples_per_second)
        log.write(progress)

    checkpoints = Checkpoints(folder / "checkpoints", save_every)
    task = problem.task(model, data, experiment)
    hooks = {"after_step": after_step, **({"after_epoch": task.after_epoch} if hasattr(task, "after_epoch") else {})}
    history = train(model, task, experiment.recipe, checkpoints=checkpoints, **hooks, **settings)
    seconds = checkpoints.progress()["seconds"]  # also those before an interruption
    result = {
        "name": experiment.name,
        **json.loads((folder / "run.json").read_text(encoding="utf-8")),
        **describe(model),
        "history": history,
        "evaluation": [],
        "timing": {
            "train_seconds": round(seconds, 2),
            "evaluation_seconds": 0.0,
            "threads": torch.get_num_threads(),
            "processes": state.num_processes,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        },
    }
    if state.is_main_process:
        partial = folder / ".weights.draft"
        save_model(model, str(partial))
        partial.replace(folder / "weights.safetensors")
        results.write_json(result, folder / "result.json")
        checkpoints.remove()
    state.wait_for_everyone()
    return result


def describe(model: nn.Module) -> dict[str, Any]:
    """Sizes of a model, what `comrope.check` finds in it, its frequencies, and how its angle matrices' elements are spread."""
    encodings = [module for module in model.modules() if isinstance(module, Encoding)]
    learned = [pe for pe in encodings if isinstance(pe, SpectralEncoding) and isinstance(pe, LearnedEncoding)]
    own = angle_parameters(model)
    return {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_encoding_parameters": sum(p.numel() for p in own.values()),
        "check": [{**asdict(c), "holds": c.holds} for c in comrope.check(model)] if encodings else [],
        "frequencies": [_rounded(pe.spectrum().frequencies) for pe in learned] or None,
        "elements": _elements(encodings),
    }


def _rounded(values: torch.Tensor) -> Any:
    """Six digits, as nested lists."""
    return np.vectorize(lambda x: float(f"{x:.6g}"))(values.detach().cpu().double().numpy()).tolist()


def _elements(encodings: Sequence[Encoding], bins: int = 121) -> dict[str, Any] | None:
    """Standard deviation and histogram of the angles above the diagonal, but for AP's fixed zeros (Table 8)."""
    learned = [pe for pe in encodings if isinstance(pe, LearnedEncoding)]
    if not learned:
        return None
    matrices = [pe.angle_matrices().detach().cpu().double() for pe in learned]
    above = torch.cat([m[..., *torch.triu_indices(*m.shape[-2:], offset=1)].flatten() for m in matrices])
    above = above[above != 0]
    if not len(above):
        return None
    bound = above.abs().max().item()
    counts = torch.histc(above, bins, -bound, bound)
    return {"std": above.std(correction=0).item(), "bound": bound, "counts": [int(n) for n in counts]}


def _read(path: Path) -> Any:
    return results.read(path) if path.exists() else None


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigurationError("tensorboard is not installed: pip install tensorboard, or leave it out.") from None
    return SummaryWriter(str(folder))


class _Log:
    """A line of JSON every so many steps; after a kill, lines of steps that are done anew give way."""

    def __init__(self, path: Path, writes: bool, tensorboard: bool, every: int = 50):
        self.path, self.writes, self.every = path, writes, every
        self.begun = False
        self.board = _board(path.parent / "tensorboard") if writes and tensorboard else None

    def write(self, progress: Progress) -> None:
        if not self.writes or (progress.step % self.every and progress.step != progress.total):
            return
        if not self.begun:
            self._cut(progress.step)
        row = {
            **vars(progress),
            "loss": progress.loss.item(),
            "samples_per_second": round(progress.samples_per_second, 1),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name in ("loss", "learning_rate", "samples_per_second"):
                self.board.add_scalar(name, row[name], progress.step)

    def _cut(self, step: int) -> None:
        self.begun = True
        if self.path.exists():
            kept = []
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    kept += [line] if json.loads(line)["step"] < step else []
                except json.JSONDecodeError:
                    continue  # cut off by a kill
            self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
