"""A study on a real SLURM: jobs that are pushed out, killed and stopped end with the bits of a study without any."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from comrope.errors import ConfigurationError
from comrope.lab import runs
from comrope.lab.classification import plain
from comrope.lab.place import Place
from comrope.lab.study import Job, run_all
from tests.lab.helpers import QUICK, job_processes
from tests.processes import CONTEXT
from tests.slurm import ask, logs, slurm, wait

pytestmark = pytest.mark.slow


def _job(encoding: str, seed: int, epochs: int) -> Job:
    recipe = replace(QUICK.recipe, epochs=epochs, seed=seed)
    return Job(replace(QUICK, encoding=encoding, recipe=recipe), tuple(plain([(8, 8)])))


LONG = [_job("rope", seed, 80) for seed in (0, 1)]
MIDDLE = _job("comrope-ld", 0, 40)
JOBS = [*LONG, MIDDLE, *(_job("rope-mixed", seed, 2) for seed in (0, 1, 2))]


@pytest.fixture(scope="module")
def cluster(request) -> Iterator[Path]:
    failed = request.session.testsfailed
    with slurm() as folder:
        yield folder
        if request.session.testsfailed > failed:
            print(logs(folder))


def _study(environment: dict[str, str], folder: Path, partition: str) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    place = Place(on="slurm", partition=partition, time=10, slurm=("cpus_per_task=1", "comment=six runs"))
    run_all(JOBS, folder, place=place, save_every=5, num_workers=1)


def _begin(folder: Path, partition: str, commands: list[Any]) -> Any:
    environment = {name: os.environ[name] for name in ("SLURM_CONF", "PATH")}
    process = CONTEXT.Process(target=_study, args=(environment, folder, partition))
    process.start()
    commands.append(process)
    return process


def _submitted(folder: Path, job: Job) -> list[int]:
    """The numbers of all jobs that were submitted for a run, the last one last."""
    found = (folder / "jobs" / job.name).glob("*_submitted.pkl")
    return sorted(int(path.name.removesuffix("_submitted.pkl")) for path in found)


def _state(folder: Path, job: Job) -> str:
    """The state of the last job of a run."""
    number = _submitted(folder, job)[-1]
    return ask("squeue", "--states=all", "--noheader", "--format=%T", f"--jobs={number}")


def _trains(folder: Path, job: Job) -> bool:
    """Whether a run goes on and has a checkpoint."""
    checkpoints = (folder / job.name / "checkpoints").glob("step-*")
    return any(checkpoints) and _state(folder, job) == "RUNNING"


def _begun(folder: Path, job: Job) -> int:
    """When the training of a run began; it is another time if it began anew."""
    return (folder / job.name / "run.json").stat().st_mtime_ns


def _need(processors: int) -> None:
    """Submits a more urgent job."""
    ask("sbatch", "--partition=urgent", f"--ntasks={processors}", "--output=/dev/null", "--wrap=true")


def test_a_study_of_six_runs_comes_to_the_bits_of_one_without_a_scheduler(cluster, tmp_path):
    expected = run_all(JOBS, tmp_path / "here", parallel=0)
    folder = tmp_path / "there"
    commands = []
    try:
        first = _begin(folder, "batch", commands)
        wait(lambda: all(_trains(folder, job) for job in LONG), 240)
        _need(1)
        wait(lambda: any(_state(folder, job) != "RUNNING" for job in LONG), 30)
        pushed_out, killed = sorted(LONG, key=lambda job: _state(folder, job) == "RUNNING")
        for process in job_processes(folder, killed):
            process.kill()  # as for want of memory
        wait(lambda: _state(folder, killed) == "FAILED", 30)
        begun = {job: _begun(folder, job) for job in LONG}
        os.kill(first.pid, signal.SIGINT)
        first.join(30)
        assert first.exitcode == 1

        second = _begin(folder, "cheap", commands)
        wait(lambda: _trains(folder, MIDDLE), 240)
        begun[MIDDLE] = _begun(folder, MIDDLE)
        ask("scancel", "--signal=USR2", str(*_submitted(folder, MIDDLE)))  # as SLURM does before its time is over
        wait(lambda: _state(folder, killed) == "RUNNING", 240)
        _need(2)
        wait(lambda: len(_submitted(folder, killed)) == 3, 60)
        second.join(180)
        assert second.exitcode == 0
    finally:
        for command in commands:
            command.kill()
            command.join()

    found = [runs.read(folder / job.name) for job in JOBS]
    assert [{**result, "timing": None} for result in found] == [{**result, "timing": None} for result in expected]
    assert all("weights" in result for result in found)  # the sum of their bits
    assert begun == {job: _begun(folder, job) for job in begun}  # each went on from its checkpoint
    # None was submitted twice but the one that was killed, then pushed out for good.
    assert [len(_submitted(folder, job)) for job in JOBS] == [3 if job is killed else 1 for job in JOBS]
    for job in (pushed_out, MIDDLE):
        (number,) = _submitted(folder, job)
        assert "Restarts=0" not in ask("scontrol", "show", "job", str(number))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"partition": "no-such"}, "no-such"),
        ({"slurm": ("nodelist=elsewhere",)}, "Invalid node name"),
        ({"slurm": ("memory=1GB",)}, "'memory'"),
    ],
)
def test_what_slurm_does_not_take_is_said(cluster, tmp_path, capfd, asked, said):
    with pytest.raises(ConfigurationError, match=said):
        run_all(JOBS[-1:], tmp_path, place=Place(on="slurm", **asked))
    assert capfd.readouterr().err == ""
