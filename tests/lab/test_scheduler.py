"""Runs as jobs, here of submitit's own on this machine; `test_slurm.py` has those of a real SLURM."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from comrope.errors import ConfigurationError, WorkerError
from comrope.lab import runs
from comrope.lab.classification import plain
from comrope.lab.place import Place
from comrope.lab.study import Job, run_all
from tests.lab.helpers import QUICK, job_processes
from tests.processes import CONTEXT
from tests.slurm import wait

JOB = Job(QUICK, tuple(plain([(8, 8)])))
ELSEWHERE = Job(replace(QUICK, data="elsewhere"))
LONG = Job(replace(QUICK, recipe=replace(QUICK.recipe, epochs=10_000)))
LOCAL = Place(on="local")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_makes_the_run_and_one_that_fails_says_why(tmp_path, processes):
    (expected,) = run_all([JOB], tmp_path / "here", parallel=0)
    told = []
    with pytest.raises(
        ConfigurationError, match=rf"{ELSEWHERE.name}: .*elsewhere.* log of its job is .*\.out"
    ) as raised:
        place = replace(LOCAL, processes=processes)
        run_all([ELSEWHERE, JOB], tmp_path / "there", place=place, on_progress=lambda *progress: told.append(progress))
    log = Path(str(raised.value).rpartition(" log of its job is ")[2].removesuffix("."))
    assert "ConfigurationError" in log.read_text()
    assert {(ELSEWHERE.name, "failed", 0, 1, 0.0), (JOB.name, "measured", 1, 1, 0.0)} <= set(told)
    assert any(row[:4] == (JOB.name, "training", 6, 6) for row in told)
    found = runs.read(tmp_path / "there" / JOB.name)
    assert found["timing"]["processes"] == processes and found["timing"]["threads"] == 1
    if processes == 1:
        assert {**found, "timing": None} == {**expected, "timing": None}
    here, there = (load_file(tmp_path / place / JOB.name / "weights.safetensors") for place in ("here", "there"))
    assert all(torch.allclose(there[name], here[name], rtol=1e-3, atol=2e-5) for name in here)


def _study(folder: Path) -> None:
    run_all([LONG], folder, place=LOCAL, save_every=1)


@pytest.mark.slow
def test_a_killed_job_is_said_and_jobs_here_end_with_their_command(tmp_path):
    def trains() -> bool:
        return any((tmp_path / LONG.name / "checkpoints").glob("step-*")) and bool(job_processes(tmp_path, LONG))

    def once_it_trains(act: Callable[[], None]) -> Callable[..., None]:
        return lambda *progress: act() if trains() else None

    def kill() -> None:
        for process in job_processes(tmp_path, LONG):
            process.kill()

    def interrupt() -> None:
        raise KeyboardInterrupt

    settings = {"place": LOCAL, "save_every": 1}
    with pytest.raises(WorkerError, match=r"its job \d+ ended.* its log, .*give the same command again"):
        run_all([LONG], tmp_path, on_progress=once_it_trains(kill), **settings)
    with pytest.raises(KeyboardInterrupt):
        run_all([LONG], tmp_path, on_progress=once_it_trains(interrupt), **settings)
    assert not job_processes(tmp_path, LONG)
    command = CONTEXT.Process(target=_study, args=(tmp_path,))
    command.start()
    wait(trains, 240)
    command.kill()
    command.join()
    wait(lambda: not job_processes(tmp_path, LONG), 120)  # a job that is importing ends when it has done that


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"gpus": -1}, "gpus=-1: expected 0"),
        ({"on": "slurm", "time": 0}, "time=0: expected 1"),
        ({"processes": 0}, "processes=0: expected 1"),
        ({"gpus": 2}, "--gpus is for --on slurm or local, and this is --on pool"),
        ({"on": "local", "partition": "a"}, "--partition is for --on slurm, and this is --on local"),
        ({"on": "local", "slurm": ("mem=1GB",)}, "--slurm is for --on slurm"),
        ({"on": "slurm", "slurm": ("mem",)}, "'mem': expected name=value"),
        ({"on": "slurm", "slurm": ("gpus_per_node=2",)}, "set by --gpus"),
        ({"on": "slurm", "slurm": ("mem=1GB", "mem=2GB")}, "mem is given twice"),
    ],
)
def test_places_that_make_no_sense(asked, said):
    with pytest.raises(ConfigurationError, match=said):
        Place(**asked)


def test_values_of_further_parameters_are_read_as_json_where_they_are():
    given = ("mem=32GB", "cpus_per_task=8", "exclusive=true", 'setup=["module load cuda"]', "constraint=a=b")
    expected = {
        "mem": "32GB",
        "cpus_per_task": 8,
        "exclusive": True,
        "setup": ["module load cuda"],
        "constraint": "a=b",
    }
    assert Place(on="slurm", slurm=given).parameters == expected


@pytest.mark.parametrize(
    ("on", "missing", "said"),
    [
        ("local", "submitit", r"submitit is not installed: .*'\.\[cluster\]'"),
        ("slurm", "sbatch", "there is no sbatch here"),
        ("local", "workers", "--on local with --parallel 0"),
        ("slurm", "processes", "--on slurm with torchrun"),
    ],
)
def test_what_jobs_need_and_is_not_there(tmp_path, monkeypatch, on, missing, said):
    if missing == "submitit":
        monkeypatch.setitem(sys.modules, "submitit", None)
    elif missing == "sbatch":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif missing == "processes":
        monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match=said):
        run_all([JOB], tmp_path / "runs", place=Place(on=on), parallel=0 if missing == "workers" else None)
    assert not os.listdir(tmp_path)
