"""Runs as jobs of a scheduler, which submitit submits: of SLURM, or of its own on this machine.

    <run>/              the run's folder, see `comrope.lab.runs`
    jobs/<run>/         submitit's files: what was submitted, the log of each job, the error that ended the last one

The command that waits and the jobs meet in these folders alone, so they must be on a disk that all machines share.

A job that SLURM stops, since its time is over or a more urgent job needs its place, is queued again under the same number, and
the run goes on from its last checkpoint. The command that waits may be stopped: jobs that are queued or run are then left
alone, and the same command finds them again by their files. Two commands may submit the same run at the same moment. SLURM
then starts the second job when the first has ended (`--dependency=singleton`), and it finds nothing left to do.

submitit itself asks `sacct` for the state of a job, and waits forever where SLURM keeps no accounts. Here `squeue` is asked,
once for all jobs, and what counts as done is the run's own result.
"""

import io
import json
import logging
import os
import pickle
import select
import shutil
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from comrope.errors import ComropeError, ConfigurationError, WorkerError
from comrope.lab.job import Job, OnRunProgress, use_one_thread
from comrope.lab.place import MOST_MINUTES, Place

MINUTES = 240
"""How long a job of SLURM may take unless it is said; SLURM stops it then, and it is queued again."""
MOST_TIMEOUTS = 1000
"""How often a job is queued again when its time is over."""
LATEST_FILE = 15.0
"""Seconds after the end of a job within which its files are seen on a shared disk."""
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT", "gone",
}  # fmt: skip
_NOT_ITS_FAULT = {"BOOT_FAIL", "NODE_FAIL", "PREEMPTED"}
"""How a job ends whose run is submitted again, where SLURM is not set up to queue it again."""


def make(
    waves: Sequence[Sequence[Job]],
    folder: Path,
    settings: dict[str, Any],
    on_progress: OnRunProgress,
    *,
    place: Place,
    parallel: int | None,
) -> None:
    """Makes the runs of all jobs that are not finished yet, one wave after the other. A run that fails stops none of its wave.

    Args:
        waves: the jobs; those of a later wave may start from the weights of an earlier one's.
        folder: the folder that the runs' own folders are in, on a disk that all machines share.
        settings: further arguments of `comrope.lab.runs.run`.
        on_progress: is called with (name of the run, stage, done, total, samples per second).
        place: "slurm" or "local", and what each job gets.
        parallel: how many jobs are queued or run at a time; if None, all in SLURM, 2 on this machine.
    Raises:
        ConfigurationError: there is no submitit, no SLURM, or SLURM does not take a job.
        WorkerError: a job was killed.
        ComropeError: what ended a run, with the path of its job's log. If several failed, the first one's.
    """
    folder = folder.absolute()
    queue = (_Slurm if place.on == "slurm" else _Local)(folder / "jobs", place)
    try:
        for wave in waves:
            _make_wave(wave, folder, settings, on_progress, queue, parallel or queue.most)
    finally:
        queue.close()


def _make_wave(
    wave: Sequence[Job],
    folder: Path,
    settings: dict[str, Any],
    on_progress: OnRunProgress,
    queue: "_Queue",
    parallel: int,
) -> None:
    left, running, failures = list(wave), {}, []
    begun = time.monotonic()
    while left or running:
        queue.look()
        for job, submitted, ours in list(running.values()):
            state = queue.state(submitted)
            if state not in _ENDED:
                on_progress(job.name, *_progress(folder / job.name, state))
                continue
            del running[job.name]
            if _finished(job, folder, state):
                on_progress(job.name, "measured", 1, 1, 0.0)
            elif not ours or state in _NOT_ITS_FAULT:  # another command's job may have left out some conditions
                left.append(job)
            else:
                failures.append(_failure(job, submitted, state, queue.folder))
                logging.getLogger("comrope").warning("%s", failures[-1])  # the others may take days yet
                on_progress(job.name, "failed", 0, 1, 0.0)
        while left and len(running) < parallel:
            job = left.pop(0)
            if job.is_complete(folder):
                on_progress(job.name, "measured", 1, 1, 0.0)
            elif (earlier := queue.earlier(job.name)) is not None:
                running[job.name] = job, earlier, False
            else:
                running[job.name] = job, queue.submit(job, folder, settings), True
        if running:
            time.sleep(min(queue.longest_pause, max(0.5, (time.monotonic() - begun) / 60)))
    if failures:
        first, *others = failures
        further = f" {len(others)} further runs failed: see {queue.folder}." if others else ""
        raise type(first)(f"{first}{further}") from first


def _finished(job: Job, folder: Path, state: str) -> bool:
    """Whether the run is complete; if its job ended well, waits for its files, which a shared disk may show late."""
    end = time.monotonic() + (LATEST_FILE if state in ("COMPLETED", "gone") else 0)
    while not job.is_complete(folder):
        if time.monotonic() >= end:
            return False
        time.sleep(0.5)
        with suppress(FileNotFoundError):
            os.listdir(folder / job.name)  # makes a network file system ask its server
    return True


def _progress(folder: Path, state: str) -> tuple[str, int, int, float]:
    """Returns the stage of a run, how much of how much is done, and samples per second, from its log."""
    if state == "PENDING":
        return "queued", 0, 1, 0.0
    with suppress(OSError, ValueError, KeyError, IndexError):  # not there yet, or being written
        last = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        return "training", last["step"], last["total"], last["samples_per_second"]
    return "started", 0, 1, 0.0


def _failure(job: Job, submitted: Any, state: str, folder: Path) -> ComropeError:
    """Returns the error that ended a job, as it was raised there, with the path of the job's log."""
    log = submitted.paths.stdout
    with suppress(OSError, EOFError, pickle.UnpicklingError):
        error: ComropeError = pickle.loads(_error_file(folder, job.name).read_bytes())
        return type(error)(f"{job.name}: {error} The log of its job is {log}.")
    return WorkerError(
        f"{job.name}: its job {submitted.job_id} ended ({state}) before the run was finished. Look at its log, {log}; give the "
        "same command again to go on."
    )


def _error_file(folder: Path, name: str) -> Path:
    return folder / name / "error.pkl"


@dataclass(frozen=True)
class _Task:
    """What a job does. submitit pickles it, calls it in the job, and queues it again when its time is over."""

    job: Job
    folder: Path
    settings: dict[str, Any]
    error: Path
    gpus: int
    processes: int
    command: int | None
    """The process with which the job ends, on this machine."""

    def __call__(self) -> None:
        self.error.unlink(missing_ok=True)
        if self.processes == 1:
            # Processes that read data would otherwise answer the signal by which submitit queues the job again.
            os.register_at_fork(after_in_child=lambda: signal.signal(_SIGNAL, signal.SIG_IGN))
            self.run()
            return
        self._end_with_command()
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.processes,
            run_id=self.job.name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
        )
        with ThreadPoolExecutor(1) as thread:  # the main thread's signal handlers are submitit's
            thread.submit(elastic_launch(config, _run_in_process), self).result()

    def checkpoint(self) -> Any:
        """Returns what submitit queues again: the same task, since the run goes on from its own checkpoint."""
        return _submitit().helpers.DelayedSubmission(self)

    def run(self) -> None:
        """Makes the run, in each process of the job; an error of ours is written for the command that waits."""
        self._end_with_command()
        try:
            if self.gpus == 0:
                os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
                use_one_thread()
            elif torch.cuda.device_count() < self.gpus:
                raise ConfigurationError(
                    f"--gpus {self.gpus}: PyTorch finds {torch.cuda.device_count()} in the job. Look at what SLURM gave it, "
                    "and at the driver."
                )
            self.job.run(self.folder, self.settings, lambda *progress: None)
        except ComropeError as error:
            with suppress(FileExistsError), self.error.open("xb") as file:  # the first process that fails says why
                pickle.dump(error, file)
            raise

    def _end_with_command(self) -> None:
        if self.command is not None:
            threading.Thread(target=_end_with, args=(self.command,), daemon=True).start()


def _run_in_process(task: _Task) -> None:
    signal.signal(_SIGNAL, signal.SIG_IGN)  # the process that started this one handles it
    task.run()


def _end_with(process: int) -> None:
    """Ends this process when another one has ended."""
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(process)], [], [])
    os._exit(1)


_SIGNAL = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}", signal.SIGUSR2)
"""The signal by which submitit queues a job again."""


class _Queue(ABC):
    """Where jobs are submitted."""

    most: int
    """How many of them are submitted at a time unless it is said."""
    longest_pause: float
    """Seconds between two looks at it, at most."""
    parameters: dict[str, Any]

    def __init__(self, folder: Path, place: Place):
        self.folder, self.place = folder, place
        self.submitit = _submitit()

    def submit(self, job: Job, folder: Path, settings: dict[str, Any]) -> Any:
        """Submits a job, and returns submitit's handle."""
        place, command = self.place, os.getpid() if self.place.on == "local" else None
        error = _error_file(self.folder, job.name)
        processes = place.processes or max(1, place.gpus)
        task = _Task(job, folder, settings, error, place.gpus, processes, command)
        try:
            with redirect_stderr(io.StringIO()):  # what sbatch says is in the error too
                executor = self.submitit.AutoExecutor(
                    self.folder / job.name, place.on, slurm_max_num_timeout=MOST_TIMEOUTS
                )
                executor.update_parameters(
                    name=job.name, gpus_per_node=place.gpus or None, stderr_to_stdout=True, **self.parameters
                )
                return executor.submit(task)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"--on {place.on} does not take a job: {' '.join(str(error).split())}. Change what is asked for, or give fewer "
                "jobs at a time by --parallel; jobs that are queued go on."
            ) from error

    @abstractmethod
    def look(self) -> None:
        """Asks for the states of all jobs."""

    @abstractmethod
    def state(self, submitted: Any) -> str:
        """Returns the state of a job at the last look; one of `_ENDED` if it has ended."""

    def earlier(self, name: str) -> Any:
        """Returns the job of a run that an earlier command submitted, if it is queued or runs; None otherwise."""
        return None

    def close(self) -> None:
        """Is called at the end, also if that is an error or an interruption."""
        return


class _Local(_Queue):
    """Jobs on this machine, which end with the command."""

    most, longest_pause = 2, 0.5

    def __init__(self, folder: Path, place: Place):
        super().__init__(folder, place)
        self.parameters = {"timeout_min": MOST_MINUTES}
        self._submitted: list[Any] = []

    def submit(self, job: Job, folder: Path, settings: dict[str, Any]) -> Any:
        self._submitted.append(super().submit(job, folder, settings))
        return self._submitted[-1]

    def look(self) -> None:
        pass

    def state(self, submitted: Any) -> str:
        return "FAILED" if submitted.done() else "RUNNING"

    def close(self) -> None:
        running = [submitted for submitted in self._submitted if not submitted.done()]
        for submitted in running:
            submitted.cancel()
        end = time.monotonic() + 5  # where SIGINT is ignored, as in the background, jobs end when the command has ended
        while not all(submitted.done() for submitted in running) and time.monotonic() < end:
            time.sleep(0.1)


class _Slurm(_Queue):
    """SLURM's queue."""

    most, longest_pause = 10**6, 30.0

    def __init__(self, folder: Path, place: Place):
        super().__init__(folder, place)
        if shutil.which("sbatch") is None:
            raise ConfigurationError(
                "--on slurm: there is no sbatch here. Give the command on a machine of the cluster, such as its login node."
            )
        given = {"dependency": "singleton", **place.parameters}
        if "cpus_per_task" in given:  # srun does not take it from sbatch since SLURM 22.05
            given["srun_args"] = [f"--cpus-per-task={given['cpus_per_task']}", *given.get("srun_args", [])]
        given["additional_parameters"] = {"requeue": True, **given.get("additional_parameters", {})}
        self.parameters = {f"slurm_{name}": value for name, value in given.items()}
        self.parameters |= {"slurm_partition": place.partition, "timeout_min": place.time or MINUTES}
        self._states: dict[str, tuple[str, str]] = {}
        self._reached = False

    def look(self) -> None:
        command = ["squeue", "--me", "--states=all", "--noheader", "--format=%i|%T|%j"]
        while (done := subprocess.run(command, capture_output=True, text=True)).returncode:
            said = " ".join(done.stderr.split())
            if not self._reached:
                raise ConfigurationError(
                    f"--on slurm: SLURM cannot be reached ({said}). Give the command where squeue works."
                )
            logging.getLogger("comrope").warning("%s; asking again", said)  # its controller is away, and jobs go on
            time.sleep(self.longest_pause)
        self._reached = True
        rows = [line.split("|", 2) for line in done.stdout.splitlines()]
        self._states = {number: (state, name) for number, state, name in rows}

    def state(self, submitted: Any) -> str:
        return self._states.get(submitted.job_id, ("gone", ""))[0]

    def earlier(self, name: str) -> Any:
        for path in (self.folder / name).glob("*_submitted.pkl"):
            number = path.name.removesuffix("_submitted.pkl")
            state, of = self._states.get(number, ("gone", ""))
            if of == name and state not in _ENDED:  # numbers may begin anew
                return self.submitit.SlurmJob(self.folder / name, number)
        return None


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise ConfigurationError(
            "submitit is not installed: get it by pip install -e '.[cluster]' in the repository, or leave out --on."
        ) from None
    return submitit
