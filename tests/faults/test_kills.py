"""SIGKILL at random instants: whatever a process was doing, the same command given again ends as if nothing had happened."""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import comrope
from comrope.cli.tools import Fold
from comrope.hosts._atomic_folder import is_taken
from comrope.lab import runs
from comrope.lab.classification import plain
from comrope.lab.study import Job, run_all
from tests.faults.children import killed
from tests.faults.sample import campaign
from tests.lab.helpers import QUICK

pytestmark = pytest.mark.slow

PLAIN = tuple(plain([(8, 8)]))
MANY = tuple(plain([(size, size) for size in range(8, 48, 4)]))
EXPERIMENT = replace(QUICK, encoding="comrope-ld", recipe=replace(QUICK.recipe, epochs=4))
JOBS = [Job(replace(EXPERIMENT, encoding=name), PLAIN) for name in ("rope", "comrope-ld")]


Over = Callable[..., bool]


def _never(*arguments: Any) -> bool:
    return False


def _train(folder: Path) -> None:
    runs.run(EXPERIMENT, PLAIN, folder, save_every=1)


def _evaluate(folder: Path) -> None:
    runs.run(EXPERIMENT, MANY, folder)


def _study(folder: Path) -> None:
    run_all(JOBS, folder, save_every=1)


def _fold(model: Path, out: Path) -> None:
    Fold(model, out).run()


def _same(folder: Path, whole: Path) -> bool:
    """Whether two finished runs are, but for the time they took."""
    here, there = ({**runs.read(path), "timing": None, "command": None} for path in (folder, whole))
    bits = [(path / "weights.safetensors").read_bytes() for path in (folder, whole)]
    return here == there and bits[0] == bits[1] and not (folder / "checkpoints").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    _train(folder)
    return folder


def _kill(
    tries: int,
    longest: float,
    work: Callable[..., None],
    begin: Callable[[int], tuple],
    over: Over = _never,
    least: int = 0,
) -> int:
    """Kills `work` so many times within `longest` seconds, and returns how often it was over before.

    Args:
        begin: gives the arguments of the n-th work, which goes on with them until it is over.
        over: whether work that was killed is over all the same.
        least: it is killed until it was over so often, or kills were all too early to say much.
    """
    draws, kills, finished = random.Random(f"{tries} {work.__name__}"), 0, 0
    while kills < tries or finished < least:
        assert kills < 100, f"{work.__name__} comes to no end within {longest} seconds"
        arguments = begin(finished)
        stopped = killed(draws, longest, work, *arguments)
        finished += not stopped or over(*arguments)
        kills += stopped
    return finished


@pytest.mark.area("kills of a training")
@pytest.mark.parametrize("tries", [9, *campaign(38)])
def test_trainings(tries, tmp_path, whole):
    finished = _kill(tries, 1.6, _train, lambda n: (tmp_path / f"run-{n}",), least=1)
    for n in range(finished + 1):
        _train(tmp_path / f"run-{n}")
        assert _same(tmp_path / f"run-{n}", whole), n


@pytest.mark.area("kills of an evaluation")
@pytest.mark.parametrize("tries", [4, *campaign(11)])
def test_evaluations(tries, tmp_path, whole):
    def begin(n: int | str) -> tuple[Path]:
        folder = tmp_path / f"run-{n}"
        if not folder.exists():
            shutil.copytree(whole, folder)
        return (folder,)

    _evaluate(*begin("expected"))
    finished = _kill(tries, 1.5, _evaluate, begin)
    for n in range(finished + 1):
        _evaluate(*begin(n))
        assert _same(tmp_path / f"run-{n}", tmp_path / "run-expected"), n


@pytest.mark.area("kills of a reproduction")
@pytest.mark.parametrize("tries", [1, *campaign(2)])
def test_studies(tries, tmp_path):
    for job in JOBS:
        runs.run(job.experiment, PLAIN, tmp_path / "expected" / job.experiment.name)
    finished = _kill(tries, 12.0, _study, lambda n: (tmp_path / f"runs-{n}",))
    _study(tmp_path / f"runs-{finished}")
    for n in range(finished + 1):
        for job in JOBS:
            assert _same(tmp_path / f"runs-{n}" / job.experiment.name, tmp_path / "expected" / job.experiment.name), n


@pytest.mark.area("kills of a fold")
@pytest.mark.parametrize("tries", [3, *campaign(7)])
def test_folds(tries, tmp_path):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
    model = comrope.attach(timm.create_model("vit_tiny_patch16_224", **sizes), "comrope-ld").eval()
    comrope.save(model, tmp_path / "model")
    pixels = torch.randn(1, 3, 16, 16)
    begin, over = lambda n: (tmp_path / "model", tmp_path / f"out-{n}"), lambda _, out: is_taken(out)
    finished = _kill(tries, 0.5, _fold, begin, over)
    _fold(*begin(finished))
    for n in range(finished + 1):
        assert torch.allclose(comrope.load(tmp_path / f"out-{n}")(pixels), model(pixels), atol=1e-5)
