"""SIGKILL at random instants: whatever a process was doing, the same command given again ends as if nothing had happened."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

import comrope
from comrope.cli.tools import Fold
from comrope.hosts._replaced import is_taken
from comrope.lab import runs
from comrope.lab.evaluate import plain
from comrope.lab.study import Job, run_all
from tests.faults.children import killed
from tests.lab.helpers import QUICK

TRAININGS, EVALUATIONS, STUDIES, FOLDS = 47, 15, 3, 10
PLAIN = tuple(plain([(8, 8)]))
MANY = tuple(plain([(size, size) for size in range(8, 48, 4)]))
EXPERIMENT = replace(QUICK, encoding="comrope-ld", recipe=replace(QUICK.recipe, epochs=4))
JOBS = [Job(replace(EXPERIMENT, encoding=name), PLAIN) for name in ("rope", "comrope-ld")]


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


@pytest.mark.area("kills of a training", tries=TRAININGS)
def test_trainings(tmp_path, whole):
    draws, kills, finished = random.Random(0), 0, 0
    while kills < TRAININGS:
        folder = tmp_path / f"run-{finished}"
        if killed(draws, 1.6, _train, folder):
            kills += 1
        else:
            _train(folder)
            assert _same(folder, whole), folder
            finished += 1
    _train(folder)
    assert _same(folder, whole)
    assert finished, "no run came to its end meanwhile: kills were all too early to say much"


@pytest.mark.area("kills of an evaluation", tries=EVALUATIONS)
def test_evaluations(tmp_path, whole):
    expected = tmp_path / "expected"
    shutil.copytree(whole, expected)
    _evaluate(expected)
    draws, kills, finished = random.Random(1), 0, 0
    while kills < EVALUATIONS:
        folder = tmp_path / f"run-{finished}"
        if not folder.exists():
            shutil.copytree(whole, folder)
        if killed(draws, 1.5, _evaluate, folder):
            kills += 1
        else:
            assert _same(folder, expected), folder
            finished += 1
    _evaluate(folder)
    assert _same(folder, expected)


@pytest.mark.area("kills of a reproduction", tries=STUDIES)
def test_studies(tmp_path):
    expected = tmp_path / "expected"
    for job in JOBS:
        runs.run(job.experiment, PLAIN, expected / job.experiment.name)
    draws, kills, finished = random.Random(2), 0, 0
    while kills < STUDIES:
        folder = tmp_path / f"runs-{finished}"
        if killed(draws, 12.0, _study, folder):
            kills += 1
        else:
            finished += 1
    _study(folder)
    for folder in tmp_path.glob("runs-*"):
        assert all(_same(folder / job.experiment.name, expected / job.experiment.name) for job in JOBS), folder


@pytest.mark.area("kills of a fold", tries=FOLDS)
def test_folds(tmp_path):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
    model = comrope.attach(timm.create_model("vit_tiny_patch16_224", **sizes), "comrope-ld").eval()
    comrope.save(model, tmp_path / "model")
    pixels = torch.randn(1, 3, 16, 16)
    draws, kills, finished = random.Random(3), 0, 0
    while kills < FOLDS:
        out = tmp_path / f"out-{finished}"
        if not (stopped := killed(draws, 0.5, _fold, tmp_path / "model", out)) or is_taken(out):
            assert torch.allclose(comrope.load(out)(pixels), model(pixels), atol=1e-5)
            finished += 1
        kills += stopped
