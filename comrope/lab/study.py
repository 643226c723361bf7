"""Studies of many runs. Runs are made in parallel, in processes of one thread, or by all processes of `torchrun` together,
or each by a job of a cluster's scheduler.

Finished runs are read from disk. So a study that was stopped goes on, and studies that share runs do not repeat them. Runs
that were finished elsewhere are taken from the results that they are recorded in.
"""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from comrope.errors import ConfigurationError
from comrope.lab import pool, records, runs
from comrope.lab.experiment import ExperimentConfig
from comrope.lab.job import Job as Job
from comrope.lab.job import OnRunProgress as OnRunProgress
from comrope.lab.place import POOL, Place

MOST_PARALLEL = 1024
"""The largest number of runs at a time; each is a process."""


def run_all(
    jobs: Sequence[Job],
    folder: Path,
    *,
    recorded: Sequence[Path] = (),
    parallel: int | None = None,
    place: Place = POOL,
    command: str = "",
    on_progress: OnRunProgress = lambda name, stage, done, total, speed: None,
    **settings,
) -> list[dict[str, Any]]:
    """Returns the results of all jobs, in their order.

    Args:
        jobs: the runs. Those that start from the weights of another one come after it.
        folder: the folder that the runs' own folders are in.
        recorded: folders with earlier results. A run that `folder` does not have, and that they have on the same data and
            with all conditions, is taken from them: it is not trained, and `folder` does not get it. Its result is as it
            was, with a key `recorded`, the path of the earlier results.json. Weights are not recorded: a run that another
            one starts from is trained if the other one is.
        parallel: runs at a time, each in a process of one thread, which changes no number; 2 if None, and in SLURM as many
            as it starts. 0 runs one after the other here, with all threads; so does every process that `torchrun` or
            `accelerate launch` started, all sharing each run.
        place: where the runs are made: by processes of this one, or by jobs of a scheduler, which see `folder` too.
        settings: further ones of `comrope.lab.runs.run`.
    Raises:
        ConfigurationError: `parallel` or `place` cannot be had here; also what `comrope.lab.runs.run` raises.
        DataError: a recorded result is missing or damaged, or a run in it was made on other data; also what
            `comrope.lab.runs.run` raises.
        WorkerError: a process or a job was killed.
    """
    if parallel is not None and not 0 <= parallel <= MOST_PARALLEL:
        raise ConfigurationError(f"parallel={parallel}: expected 0 to {MOST_PARALLEL}.")
    settings |= {"command": command}
    jobs, wanted = _merged(jobs), jobs
    taken = _taken(jobs, folder, recorded, settings)
    for experiment in taken:
        on_progress(experiment.name, "recorded", 1, 1, 0.0)
    _make([job for job in jobs if job.experiment not in taken], folder, settings, on_progress, place, parallel)
    return [taken.get(job.experiment) or runs.read(folder / job.name) for job in wanted]


def _make(
    jobs: Sequence[Job],
    folder: Path,
    settings: dict[str, Any],
    on_progress: OnRunProgress,
    place: Place,
    parallel: int | None,
) -> None:
    """Makes the runs of all jobs that are not finished yet."""
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if place.on != "pool" and (together or parallel == 0):
        why = "torchrun" if together else "--parallel 0"
        raise ConfigurationError(f"--on {place.on} with {why}, by which the runs are made here: leave one of them out.")
    if together or parallel == 0:
        for job in jobs:
            job.run(folder, settings, on_progress)
    elif place.on == "pool":
        pool.make(_waves(jobs), folder, settings, on_progress, parallel=parallel or 2)
    else:
        from comrope.lab import scheduler  # which needs submitit

        scheduler.make(_waves(jobs), folder, settings, on_progress, place=place, parallel=parallel)


def _merged(jobs: Sequence[Job]) -> list[Job]:
    """Returns a job for each different experiment, with all conditions that are asked for."""
    conditions: dict[ExperimentConfig, dict[Any, None]] = {}
    for job in jobs:
        conditions.setdefault(job.experiment, {}).update(dict.fromkeys(job.conditions))
    return [Job(experiment, tuple(asked)) for experiment, asked in conditions.items()]


def _taken(
    jobs: Sequence[Job], folder: Path, recorded: Sequence[Path], settings: dict[str, Any]
) -> dict[ExperimentConfig, dict[str, Any]]:
    """Returns the results of the jobs that are taken from `recorded`, by their experiment."""
    if not recorded:
        return {}
    there = records.read(recorded)
    data = {name: settings[name] for name in ("unreadable", "data") if name in settings}

    @cache
    def describe(experiment: ExperimentConfig) -> dict[str, dict]:
        return runs.datasets(experiment, **data)[1]

    left = [job for job in jobs if not job.is_complete(folder)]
    found = {job.experiment: records.find(there, job.experiment, job.conditions, describe) for job in left}
    starts = {getattr(experiment, "start", None) for experiment, result in found.items() if result is None}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # all have read the records before the first process replaces one
        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()
    return {
        experiment: result
        for experiment, result in found.items()
        if result is not None and experiment.name not in starts
    }


def _waves(jobs: Sequence[Job]) -> list[list[Job]]:
    """Returns the jobs that start from scratch, then those that start from their weights."""
    free = [job for job in jobs if getattr(job.experiment, "start", None) in (None, "pretrained")]
    return [wave for wave in (free, [job for job in jobs if job not in free]) if wave]
