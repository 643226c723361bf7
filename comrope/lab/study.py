"""Studies of many runs. Runs are made in parallel, in processes of one thread, or by all processes of `torchrun` together.

Finished runs are read from disk. So a study that was stopped goes on, and studies that share runs do not repeat them. Runs
that were finished elsewhere are taken from the results that they are recorded in.
"""

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from comrope.errors import ConfigurationError, WorkerError
from comrope.lab import records, run_folder, runs
from comrope.lab.experiment import ExperimentConfig

OnRunProgress = Callable[[str, str, int, int, float], None]
"""Is called with (name of the run, stage, done, total, samples per second)."""


MOST_PARALLEL = 1024
"""The largest number of runs at a time; each is a process."""


@dataclass(frozen=True)
class Job:
    """One run, and the conditions to evaluate it under."""

    experiment: ExperimentConfig
    conditions: tuple[Any, ...] = ()


def run_all(
    jobs: Sequence[Job],
    folder: Path,
    *,
    recorded: Sequence[Path] = (),
    parallel: int = 2,
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
        parallel: runs at a time, each in a process of one thread, which changes no number. 0 runs one after the other here,
            with all threads; so does every process that `torchrun` or `accelerate launch` started, all sharing each run.
        settings: further ones of `comrope.lab.runs.run`.
    Raises:
        DataError: a recorded result is missing or damaged, or a run in it was made on other data; also what
            `comrope.lab.runs.run` raises.
        WorkerError: a process was killed.
    """
    if not 0 <= parallel <= MOST_PARALLEL:
        raise ConfigurationError(f"parallel={parallel}: expected 0 to {MOST_PARALLEL}.")
    settings |= {"command": command}
    jobs, wanted = _merged(jobs), jobs
    taken = _taken(jobs, folder, recorded, settings)
    for experiment in taken:
        on_progress(experiment.name, "recorded", 1, 1, 0.0)
    _make([job for job in jobs if job.experiment not in taken], folder, parallel, settings, on_progress)
    return [taken.get(job.experiment) or runs.read(folder / job.experiment.name) for job in wanted]


def _make(
    jobs: Sequence[Job], folder: Path, parallel: int, settings: dict[str, Any], on_progress: OnRunProgress
) -> None:
    """Makes the runs of all jobs that are not finished yet."""
    if parallel == 0 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        for job in jobs:
            _run(job, folder, settings, on_progress)
        return
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    with ProcessPoolExecutor(parallel, context, initializer=_start_worker, initargs=(reports,)) as pool:
        try:
            for wave in _waves(jobs):
                futures = [pool.submit(_run_here, job, folder, settings) for job in wave]
                while not all(future.done() and future.result() for future in futures):
                    with suppress(queue.Empty):
                        on_progress(*reports.get(timeout=0.2))
            while not reports.empty():
                on_progress(*reports.get())
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker was killed, by hand or for want of memory: give the same command again to go on, with fewer "
                "--parallel if it was memory."
            ) from error
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


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

    left = [job for job in jobs if not _is_complete(job, folder)]
    found = {job.experiment: records.find(there, job.experiment, job.conditions, describe) for job in left}
    starts = {getattr(experiment, "start", None) for experiment, result in found.items() if result is None}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # all have read the records before the first process replaces one
        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()
    return {
        experiment: result
        for experiment, result in found.items()
        if result is not None and experiment.name not in starts
    }


def _is_complete(job: Job, folder: Path) -> bool:
    """Whether the folder has the finished run with all conditions."""
    result = run_folder.result_in(folder / job.experiment.name)
    return result is not None and not runs.missing(result, job.conditions)


def _waves(jobs: Sequence[Job]) -> list[list[Job]]:
    """Returns the jobs that start from scratch, then those that start from their weights."""
    free = [job for job in jobs if getattr(job.experiment, "start", None) in (None, "pretrained")]
    return [wave for wave in (free, [job for job in jobs if job not in free]) if wave]


def _run(job: Job, folder: Path, settings: dict[str, Any], on_progress: OnRunProgress) -> dict[str, Any]:
    name = job.experiment.name

    def tell(stage: str, done: int, total: int, speed: float) -> None:
        on_progress(name, stage, done, total, speed)

    return runs.run(job.experiment, job.conditions, folder / name, on_progress=tell, **settings)


_reports: Any = None  # in a worker process: the queue for its progress


def _start_worker(reports) -> None:
    global _reports
    _reports = reports
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # Nothing reads fresh memory, and filling it takes time in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def _end_with_parent() -> None:
    """Ends this worker when its parent has ended, since a killed parent cannot do it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _run_here(job: Job, folder: Path, settings: dict[str, Any]) -> bool:
    _run(job, folder, settings, lambda *progress: _reports.put(progress))
    return True
