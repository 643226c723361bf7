"""A run: one experiment, its folder, and what was found.

    run.json             the experiment, the command and the versions: written first
    log.jsonl            progress, a line every so many steps
    checkpoints/         the state to go on from, until training is done
    weights.safetensors  the trained model
    result.json          what training and all measurements gave

What is trained, and how it is measured, is the problem's: the module that `experiment.module` names has
    check(experiment)                      refuses what is wrong with it, before data are read
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from safetensors.torch import load_model, save_model
from torch import nn

import comrope
from comrope.encodings import Encoding, LearnedEncoding, SpectralEncoding, kind_of
from comrope.errors import ComropeError, ConfigurationError, DataError
from comrope.hosts import angle_parameters
from comrope.lab import results
from comrope.lab.checkpoints import Checkpoints
from comrope.lab.data.labelled import about
from comrope.lab.detection.experiment import DetectionExperiment
from comrope.lab.experiment import WEIGHTS, Experiment, Trial
from comrope.lab.text.experiment import TextExperiment
from comrope.lab.train import Progress, check_precision, sizes, train
from comrope.lab.video.experiment import VideoExperiment
from comrope.lab.vit import ViT

KINDS: dict[str, type[Trial]] = {
    cls.kind: cls for cls in (Experiment, VideoExperiment, DetectionExperiment, TextExperiment)
}
"""The experiments of all problems."""

LOCK = ".lock"
MOST_READERS = 1024
"""Each is a process."""

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
    data: str | None = None,
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
        data: where the experiment's data are now, if they were moved.
    Raises:
        ConfigurationError: the folder holds another experiment; a number that makes no sense.
        DataError: the data are not there, damaged, or others than those that the run began with; the folder cannot be written,
            or another process is at work on it; weights are missing or damaged.
        DivergedError: the loss is no number any more.
    """
    for name, value, least in (("readers", readers, 0), ("save_every", save_every, 1), ("micro_batch", micro_batch, 1)):
        if value is not None and value < least:
            raise ConfigurationError(f"{name}={value}: expected {least} or more.")
    if readers > MOST_READERS:
        raise ConfigurationError(f"readers={readers}: expected {MOST_READERS} or less, each is a process.")
    conditions = list(dict.fromkeys(conditions))
    state = PartialState(cpu=not torch.cuda.is_available())
    problem = importlib.import_module(experiment.module)
    kind_of(experiment.encoding)
    problem.check(experiment)
    if tensorboard:
        _summary_writer()
    _check(folder, experiment, {})
    sets = problem.data(experiment if data is None else replace(experiment, data=data), unreadable)
    described = {name: about(samples) for name, samples in zip(("train", "test"), sets, strict=True)}
    _check(folder, experiment, described)
    result = _result(folder)
    if result is not None and state.is_main_process:
        Checkpoints(folder / "checkpoints").remove()  # a kill may have come before that
    if result is not None and not _missing(result, conditions):
        report("measured", 1, 1, 0.0)
        return result
    model = task = None
    if result is None:  # what is wrong with it is said before anything is written
        check_precision(experiment.recipe)
        model = problem.build(experiment, sets[0], folder.parent)
        task = problem.task(model, sets[0], experiment)
        sizes(experiment.recipe, len(task.feed), state.num_processes, micro_batch)
    with _alone(folder, state):
        if state.is_main_process:  # while others look, it may be writing
            _check(folder, experiment, described)
        result = _result(folder)  # it may have been waited for
        if result is None:
            _claim(folder, experiment, described, command, state)
            settings = {"micro_batch": micro_batch, "readers": readers, "compiled": compiled}
            result = _train(experiment, model, task, folder, settings, save_every, tensorboard, report, state)
        missing = _missing(result, conditions)
        if missing:
            model = load_run(folder, sets[1])
            if isinstance(model, ViT):
                for condition in missing:
                    model.grid(condition.canvas)  # or say which images it cannot have
            begun = time.perf_counter()
            for done, condition in enumerate(missing):
                report("measuring", done, len(missing), 0.0)
                result["evaluation"] += problem.measure(model, sets[1], [condition], readers=readers)
                result["timing"]["evaluation_seconds"] += round(time.perf_counter() - begun, 2)
                begun = time.perf_counter()
                if state.is_main_process:  # at once: another condition may fail
                    results.write_json(result, folder / "result.json")
            state.wait_for_everyone()
    report("measured", 1, 1, 0.0)
    return result


def _missing(result: dict[str, Any], conditions: Sequence[Any]) -> list[Any]:
    """What was not measured yet."""
    return [c for c in conditions if not any(c.describes(row) for row in result["evaluation"])]


def read(folder: Path) -> dict[str, Any]:
    """The result of a finished run; DataError where there is none."""
    found = _result(folder)
    if found is None:
        raise DataError(
            f"{folder} holds no finished run: give its training command again, which is in its run.json, or name another "
            "folder."
        )
    return found


def experiment_of(folder: Path) -> Trial:
    """What a run's folder is about; DataError where it is none."""
    found = _about(folder)
    if found is None:
        raise DataError(f"{folder} is no run: it has no run.json. Name a folder that `comrope train` wrote.")
    return _trial(found, folder)


def load_run(folder: Path, data: Any = None, *, where: str | None = None) -> nn.Module:
    """The trained model of a run, in eval mode, on the device there is.

    Args:
        folder: of the run.
        data: that the model is for; read if None.
        where: they are now, if they were moved.
    """
    experiment = experiment_of(folder)
    problem = importlib.import_module(experiment.module)
    if data is None:
        data = problem.data(experiment if where is None else replace(experiment, data=where))[1]
    model = problem.build(experiment, data, folder.parent)
    load_weights(model, folder)
    return model.eval().to(PartialState(cpu=not torch.cuda.is_available()).device)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Those of a run that was trained to the end; DataError where they are not what was written."""
    path, result = folder / WEIGHTS, _result(folder)
    if result is None:
        raise DataError(f"{folder} has no trained weights yet: give its training command again.")
    if not path.is_file() or result.get("weights") not in (None, results.sum_of(path)):
        what = "is not what training wrote" if path.is_file() else "is missing"
        raise DataError(
            f"{path} {what}: bring it back, or remove {folder} and give its training command again, which is in its run.json."
        )
    load_model(model, path)


def _trial(found: dict[str, Any], folder: Path) -> Trial:
    """The experiment in a run's run.json."""
    kind = found["kind"]
    if kind not in KINDS:
        raise DataError(f"{folder} is a run of kind {kind!r}: this version of comrope knows {', '.join(KINDS)}.")
    try:
        return KINDS[kind].from_json(found["experiment"])
    except ComropeError as error:
        raise DataError(f"{folder}: {error}") from error


def _check(folder: Path, experiment: Trial, data: dict[str, dict]) -> None:
    """Refuses a folder that is of something else: of another experiment that was at least begun, or of other data."""
    results.refuse_file(folder)
    found = _about(folder)
    if found is None:
        if folder.exists() and {path.name for path in folder.iterdir()} - {LOCK}:
            raise DataError(f"{folder} holds what is no run of comrope: name another folder.")
        return
    finished = (folder / "result.json").exists()
    if not finished and not (folder / "checkpoints").exists():
        return
    here = _trial(found, folder)
    if here != experiment:
        different = [key for key, value in vars(experiment).items() if vars(here).get(key) != value]
        raise ConfigurationError(
            f"{folder} holds a run with other settings ({', '.join(different)}): name another folder, or remove it."
        )
    for part, now in data.items():
        before = found.get("data", {}).get(part, now)
        # What a finished run was trained on is not needed any more, but for the classes.
        compared = ("classes",) if finished and part == "train" else tuple(now)
        different = [
            f"{key} {_short(before[key])}, now {_short(now[key])}" for key in compared if before[key] != now[key]
        ]
        if different:
            raise DataError(
                f"{folder} is a run on other data, of which {part} had {'; '.join(different)}: bring those back, or name "
                "another folder."
            )


def _short(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


@contextmanager
def _alone(folder: Path, state: PartialState) -> Iterator[None]:
    """No other command works on the folder meanwhile; the processes of this one do together."""
    if not state.is_main_process:
        state.wait_for_everyone()
        yield
        return
    with results.writing(folder, "nothing was lost"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise DataError(
                f"another process is at work on {folder}: wait until it is done, or name another folder."
            ) from None
    state.wait_for_everyone()
    try:
        yield
    finally:
        lock.release()


def _claim(folder: Path, experiment: Trial, data: dict[str, dict], command: str, state: PartialState) -> None:
    """Writes what the folder is about from now on, unless it was begun before."""
    if state.is_main_process and not (folder / "checkpoints").exists():
        versions = {package: version(package) for package in ("comrope", "torch", "timm", "accelerate")}
        versions |= {"python": platform.python_version()}
        about_it = {"kind": experiment.kind, "experiment": experiment.to_json(), "data": data, "command": command}
        results.write_json(about_it | {"versions": versions}, folder / "run.json")
    state.wait_for_everyone()


def _train(experiment, model, task, folder, settings, save_every, tensorboard, report, state) -> dict[str, Any]:
    if torch.cuda.is_available():
        model.to(state.device)
    log = _Log(folder / "log.jsonl", state.is_main_process, tensorboard)

    def after_step(progress: Progress) -> None:
        report("training", progress.step, progress.total, progress.samples_per_second)
        log.write(progress)

    checkpoints = Checkpoints(folder / "checkpoints", save_every)
    hooks = {"after_step": after_step, **({"after_epoch": task.after_epoch} if hasattr(task, "after_epoch") else {})}
    history = train(model, task, experiment.recipe, checkpoints=checkpoints, **hooks, **settings)
    seconds = checkpoints.progress()["seconds"]  # also those before an interruption
    state.wait_for_everyone()  # until all have read it: the first removes the checkpoints below
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
        with results.writing(folder, "the last checkpoint has all of it"):
            partial = folder / ".weights.draft"
            save_model(model, str(partial))
            partial.chmod((folder / "run.json").stat().st_mode)  # safetensors writes files that nobody else can read
            result["weights"] = results.sum_of(partial)
            partial.replace(folder / WEIGHTS)
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


def _about(folder: Path) -> dict[str, Any] | None:
    return _read(folder / "run.json", "kind", "experiment")


def _result(folder: Path) -> dict[str, Any] | None:
    return _read(folder / "result.json", "experiment", "history", "evaluation", "timing")


def _read(path: Path, *needed: str) -> dict[str, Any] | None:
    """What a file of a run holds, or None where there is none; DataError where it is damaged, or lacks what is needed."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        damage = f"it does not say {', '.join(lacking)}" if (lacking := [n for n in needed if n not in found]) else None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        damage = error
    if damage is not None:
        raise DataError(f"{path} is damaged ({damage}): remove {path.parent}, and give its training command again.")
    return found


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigurationError("tensorboard is not installed: pip install tensorboard, or leave it out.") from None
    return SummaryWriter


class _Log:
    """A line of JSON every so many steps; after a kill, lines of steps that are done anew give way."""

    def __init__(self, path: Path, writes: bool, tensorboard: bool, every: int = 50):
        self.path, self.writes, self.every = path, writes, every
        self.begun = False
        self.board = _summary_writer()(str(path.parent / "tensorboard")) if writes and tensorboard else None

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
