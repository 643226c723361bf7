"""A run: one experiment, its folder, and what was found.

    run.json             the experiment, the command and the versions: written first
    log.jsonl            progress, a line every so many steps
    checkpoints/         the state to go on from, until training is done
    weights.safetensors  the trained model
    result.json          what training and all measurements gave

The problem of the experiment determines the model, training and evaluation: see `comrope.lab.problem`.

A run that was killed goes on from its last checkpoint when the same command is given again. Finished work is not
repeated.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_model, save_model
from torch import nn

from comrope.encodings import LearnedEncoding, kind_of
from comrope.errors import ConfigurationError, DataError
from comrope.lab import results, run_folder
from comrope.lab.checkpoints import Checkpoints
from comrope.lab.data.labelled import about
from comrope.lab.experiment import WEIGHTS, ExperimentConfig
from comrope.lab.model_summary import summary
from comrope.lab.run_log import Log, summary_writer
from comrope.lab.train import StepProgress, check_precision, sizes, train

MOST_WORKERS = 1024
"""The largest number of processes that read data."""

OnProgress = Callable[[str, int, int, float], None]
"""Is called with (stage, done, total, samples per second) as a run goes on."""


def run(
    experiment: ExperimentConfig,
    conditions: Sequence[Any],
    folder: Path,
    *,
    command: str = "",
    micro_batch: int | None = None,
    num_workers: int = 0,
    save_every: int | None = None,
    compile: bool = False,
    unreadable: str = "fail",
    tensorboard: bool = False,
    data: str | None = None,
    on_progress: OnProgress = lambda stage, done, total, speed: None,
) -> dict[str, Any]:
    """Trains what is not trained yet, measures what is not measured yet, and returns the run's result.

    All processes that were started together call this together; the first of them writes.

    Args:
        experiment: the configuration to train.
        conditions: those to evaluate the model under.
        folder: the run's folder; made if it is missing.
        command: the command that was typed, for the record.
        micro_batch: see `comrope.lab.train.train`; it changes the result by rounding only, as do the next two.
        num_workers: likewise.
        compile: likewise.
        save_every: steps between two checkpoints; the steps of an epoch if None.
        unreadable: whether a sample that cannot be read is an error ("fail"), or is left out and counted ("skip").
        tensorboard: whether progress is also written for TensorBoard, into the folder's `tensorboard`.
        data: where the data are now, if they were moved.
    Raises:
        ConfigurationError: the folder holds another experiment, or a number is out of range.
        DataError: the data are missing, damaged, or different from those that the run began with; the folder cannot be
            written, or another process works on it; weights are missing or damaged.
        DivergedError: the loss is NaN or infinite.
    """
    for name, value, least in (
        ("num_workers", num_workers, 0),
        ("save_every", save_every, 1),
        ("micro_batch", micro_batch, 1),
    ):
        if value is not None and value < least:
            raise ConfigurationError(f"{name}={value}: expected {least} or more.")
    if num_workers > MOST_WORKERS:
        raise ConfigurationError(f"num_workers={num_workers}: expected {MOST_WORKERS} or less, each is a process.")
    conditions = list(dict.fromkeys(conditions))
    state = PartialState(cpu=not torch.cuda.is_available())
    problem = experiment.problem
    kind_of(experiment.encoding)
    problem.check(experiment)
    if tensorboard:
        summary_writer()
    run_folder.check(folder, experiment, {})
    sets, described = datasets(experiment, unreadable, data)
    run_folder.check(folder, experiment, described)
    result = run_folder.result_in(folder)
    if result is not None and state.is_main_process:
        Checkpoints(folder / "checkpoints").remove()  # in case of a kill before they were removed
    if result is not None and not missing(result, conditions):
        on_progress("measured", 1, 1, 0.0)
        return result
    model = task = None
    if result is None:  # errors are raised before anything is written
        check_precision(experiment.recipe)
        model = problem.build(experiment, sets[0], folder.parent)
        if experiment.frozen:
            _freeze(model, experiment)
        task = problem.task(model, *sets, experiment)
        sizes(experiment.recipe, len(task.dataset), state.num_processes, micro_batch)
    with run_folder.alone(folder, state):
        if state.is_main_process:  # the others would read while this process writes
            run_folder.check(folder, experiment, described)
        result = run_folder.result_in(folder)  # another command may have finished it meanwhile
        if result is None:
            run_folder.claim(folder, experiment, described, command, state)
            settings = {"micro_batch": micro_batch, "num_workers": num_workers, "compile": compile}
            result = _train(experiment, model, task, folder, settings, save_every, tensorboard, on_progress, state)
        left = missing(result, conditions)
        if left:
            model = load_run(folder, sets[1])
            begun = time.perf_counter()
            rows = problem.evaluate(model, sets[1], left, num_workers=num_workers)
            on_progress("measuring", 0, len(left), 0.0)
            for done, row in enumerate(rows, 1):
                result["evaluation"].append(row)
                result["timing"]["evaluation_seconds"] += round(time.perf_counter() - begun, 2)
                begun = time.perf_counter()
                if state.is_main_process:  # at once, since a later condition may fail
                    results.write_json(result, folder / "result.json")
                on_progress("measuring", done, len(left), 0.0)
            state.wait_for_everyone()
    on_progress("measured", 1, 1, 0.0)
    return result


def _freeze(model: nn.Module, experiment: ExperimentConfig) -> None:
    """Excludes the angles from training; raises ConfigurationError if there are none."""
    learned = [module for module in model.modules() if isinstance(module, LearnedEncoding)]
    if not learned:
        raise ConfigurationError(
            f"frozen=True with encoding={experiment.encoding!r}, which learns no angles: leave it out."
        )
    for encoding in learned:
        encoding.requires_grad_(False)


def datasets(
    experiment: ExperimentConfig, unreadable: str = "fail", data: str | None = None
) -> tuple[tuple[Any, Any], dict[str, dict]]:
    """Returns the samples to train on and those to evaluate on, and what identifies them, as run.json has it.

    Args:
        experiment: the configuration, which names the data.
        unreadable, data: see `run`.
    """
    sets = experiment.problem.datasets(experiment if data is None else replace(experiment, data=data), unreadable)
    return sets, {name: about(samples) for name, samples in zip(("train", "test"), sets, strict=True)}


def missing(result: dict[str, Any], conditions: Sequence[Any]) -> list[Any]:
    """Returns the conditions that have no row in a run's result yet."""
    return [c for c in conditions if not any(c.describes(row) for row in result["evaluation"])]


def read(folder: Path) -> dict[str, Any]:
    """Returns the result of a finished run; raises DataError if there is none."""
    found = run_folder.result_in(folder)
    if found is None:
        raise DataError(
            f"{folder} holds no finished run: give its training command again, which is in its run.json, or name another "
            "folder."
        )
    return found


def experiment_of(folder: Path) -> ExperimentConfig:
    """Returns the configuration of the run in a folder; raises DataError if there is none."""
    found = run_folder.record_in(folder)
    if found is None:
        raise DataError(f"{folder} is no run: it has no run.json. Name a folder that `comrope train` wrote.")
    return run_folder.experiment_in(found, folder)


def load_run(folder: Path, data: Any = None, *, where: str | None = None) -> nn.Module:
    """Returns the trained model of a run, in eval mode, on the GPU if there is one.

    Args:
        folder: the run's folder.
        data: either data set of the run, whose classes the model has; read from disk if None.
        where: where the data are now, if they were moved.
    """
    experiment = experiment_of(folder)
    problem = experiment.problem
    if data is None:
        data = problem.datasets(experiment if where is None else replace(experiment, data=where))[1]
    model = problem.build(experiment, data, folder.parent)
    load_weights(model, folder)
    return model.eval().to(PartialState(cpu=not torch.cuda.is_available()).device)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Loads the weights of a finished run; raises DataError if they are missing or are not what training wrote."""
    path, result = folder / WEIGHTS, run_folder.result_in(folder)
    if result is None:
        raise DataError(f"{folder} has no trained weights yet: give its training command again.")
    if not path.is_file() or result.get("weights") not in (None, results.sum_of(path)):
        what = "is not what training wrote" if path.is_file() else "is missing"
        raise DataError(
            f"{path} {what}: bring it back, or remove {folder} and give its training command again, which is in its run.json."
        )
    load_model(model, path)


def _train(experiment, model, task, folder, settings, save_every, tensorboard, on_progress, state) -> dict[str, Any]:
    if torch.cuda.is_available():
        model.to(state.device)
    log = Log(folder / "log.jsonl", state.is_main_process, tensorboard)

    def after_step(progress: StepProgress) -> None:
        on_progress("training", progress.step, progress.total, progress.samples_per_second)
        log.write(progress)

    checkpoints = Checkpoints(folder / "checkpoints", save_every)
    history = train(model, task, experiment.recipe, checkpoints=checkpoints, after_step=after_step, **settings)
    seconds = checkpoints.progress()["seconds"]  # also those before an interruption
    state.wait_for_everyone()  # all have read it before the main process removes the checkpoints
    result = {
        "name": experiment.name,
        **json.loads((folder / "run.json").read_text(encoding="utf-8")),
        **summary(model),
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
        with results.atomic_file(folder / WEIGHTS, "the last checkpoint has all of it") as draft:
            save_model(model, str(draft))
            result["weights"] = results.sum_of(draft)
        results.write_json(result, folder / "result.json")
        checkpoints.remove()
    state.wait_for_everyone()
    return result
