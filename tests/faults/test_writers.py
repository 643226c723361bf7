"""Two commands on one folder at a time: both do their work, or one says that another is at work, and nothing is mixed."""

import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

import comrope
from comrope.lab import results, runs
from comrope.lab.classification import plain
from tests.faults.children import told
from tests.lab.helpers import QUICK

pytestmark = pytest.mark.slow

PLAIN, MORE = tuple(plain([(8, 8)])), tuple(plain([(8, 8), (12, 12)]))
FIRST = replace(QUICK, encoding="comrope-ld")
SECOND = replace(QUICK, encoding="comrope-ap")
SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
BUSY = "another process is at work"


def _train(folder: Path, experiment=FIRST) -> None:
    runs.run(experiment, PLAIN, folder, save_every=1)


def _train_other(folder: Path) -> None:
    _train(folder, SECOND)


def _evaluate(folder: Path) -> None:
    runs.run(FIRST, MORE, folder)


def _save(folder: Path, fill: float = 1.0) -> None:
    model = comrope.attach(timm.create_model("vit_tiny_patch16_224", **SIZES), "comrope-ld")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(fill)
    for _ in range(20):
        comrope.save(model, folder)


def _save_other(folder: Path) -> None:
    _save(folder, 2.0)


def _write_result(folder: Path) -> None:
    for number in range(20):
        with results.atomic_folder(folder) as new:
            results.write_json({"number": number}, new / "results.json")


def _both(first, second, folder: Path, apart: float) -> list[str | None]:
    """What each of two processes says, of which the second begins so many seconds later."""
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(told, first, folder)
        time.sleep(apart)
        other = pool.submit(told, second, folder)
        return [one.result(), other.result()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """Runs of each experiment that nobody else worked on."""
    root = tmp_path_factory.mktemp("alone")
    for name, experiment in (("first", FIRST), ("second", SECOND)):
        _train(root / name, experiment)
    shutil.copytree(root / "first", root / "measured")
    _evaluate(root / "measured")
    return {path.name: path for path in root.iterdir()}


def _weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


@pytest.mark.area("two writers")
@pytest.mark.parametrize("seed", range(4))
def test_two_trainings_of_the_same(seed, tmp_path, whole):
    said = _both(_train, _train, tmp_path / "run", random.Random(seed).uniform(0, 0.3))
    assert None in said and all(each is None or BUSY in each for each in said), said
    assert _weights(tmp_path / "run") == _weights(whole["first"])


@pytest.mark.area("two writers")
@pytest.mark.parametrize("seed", range(4))
def test_two_trainings_of_two_experiments(seed, tmp_path, whole):
    said = _both(_train, _train_other, tmp_path / "run", random.Random(seed).uniform(0, 0.3))
    assert said.count(None) == 1, said
    assert any(each and (BUSY in each or "other settings" in each) for each in said), said
    assert _weights(tmp_path / "run") == _weights(whole["first" if said[0] is None else "second"])
    assert runs.experiment_of(tmp_path / "run") == (FIRST if said[0] is None else SECOND)


@pytest.mark.area("two writers")
@pytest.mark.parametrize("seed", range(4))
def test_two_evaluations(seed, tmp_path, whole):
    shutil.copytree(whole["first"], tmp_path / "run")
    said = _both(_evaluate, _evaluate, tmp_path / "run", random.Random(seed).uniform(0, 0.2))
    assert None in said and all(each is None or BUSY in each for each in said), said
    assert runs.read(tmp_path / "run")["evaluation"] == runs.read(whole["measured"])["evaluation"]


@pytest.mark.area("two writers")
@pytest.mark.parametrize("seed", range(4))
def test_two_that_save_a_model(seed, tmp_path):
    assert _both(_save, _save_other, tmp_path / "model", random.Random(seed).uniform(0, 0.2)) == [None, None]
    values = {value for p in comrope.load(tmp_path / "model").parameters() for value in p.unique().tolist()}
    assert values in ({1.0}, {2.0})


@pytest.mark.area("two writers")
@pytest.mark.parametrize("seed", range(2))
def test_two_that_write_a_result(seed, tmp_path):
    said = _both(_write_result, _write_result, tmp_path / "out", random.Random(seed).uniform(0, 0.02))
    assert said == [None, None], said
    assert results.read(tmp_path / "out") == {"number": 19}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
