"""Runs that were damaged, that others work on, that diverge, or whose data have changed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from comrope.errors import ComropeError, ConfigurationError, DataError, DivergedError
from comrope.lab import run_folder, runs
from comrope.lab.classification import plain
from comrope.lab.experiment import Recipe
from comrope.lab.images import data as image_data
from comrope.lab.images.config import ImageConfig
from tests.lab.helpers import QUICK

pytestmark = pytest.mark.slow

PLAIN = plain([(8, 8)])
EXPERIMENT = replace(QUICK, encoding="comrope-ld")


class Stopped(Exception):
    """In place of a kill."""


def _stop_after(steps: int):
    def report(stage, done, total, speed):
        if stage == "training" and done >= steps:
            raise Stopped

    return report


def _broken_off(folder: Path, steps: int = 5) -> Path:
    with pytest.raises(Stopped):
        runs.run(EXPERIMENT, PLAIN, folder, save_every=1, on_progress=_stop_after(steps))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.run(EXPERIMENT, PLAIN, folder)
    return folder


def _newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.area("damaged checkpoints")
@pytest.mark.area("settings of runs")
@pytest.mark.area("damaged checkpoints")
@pytest.mark.parametrize("damage", [_flip, lambda path: os.truncate(path, 100), os.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json"])
def test_from_a_damaged_checkpoint_it_goes_on_with_the_one_before(name, damage, tmp_path, whole, caplog):
    folder = _broken_off(tmp_path / "run")
    damage(_newest(folder) / name)
    runs.run(EXPERIMENT, PLAIN, folder)
    assert "is damaged" in caplog.text
    assert (folder / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


@pytest.mark.area("damaged checkpoints")
def test_where_all_checkpoints_are_damaged_it_says_what_to_do(tmp_path):
    folder = _broken_off(tmp_path / "run")
    for path in (folder / "checkpoints").glob("step-*"):
        _flip(path / "model.safetensors")
    with pytest.raises(DataError, match=r"all checkpoints are damaged\. Remove"):
        runs.run(EXPERIMENT, PLAIN, folder)


DAMAGES = {
    "a flipped bit": _flip,
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "gone": os.unlink,
    "other text": lambda path: path.write_text("no more"),
    "another object": lambda path: path.write_text("{}"),
    "a list": lambda path: path.write_text("[1, 2]"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
"""What may happen to a file."""


def _without_times(result: dict) -> dict:
    return {**result, "timing": None}


@pytest.mark.area("damaged finished runs")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["run.json", "result.json", "weights.safetensors", "log.jsonl"])
def test_a_damaged_file_of_a_finished_run_is_named_or_not_needed(name, damage, tmp_path, whole):
    """Trained again and measured further, the run says which file is damaged, or gives what the undamaged one gives."""
    folder, undamaged = tmp_path / "run", tmp_path / "undamaged"
    for copy in (folder, undamaged):
        shutil.copytree(whole, copy)
    DAMAGES[damage](folder / name)
    more = plain([(8, 8), (12, 12)])
    for conditions in (PLAIN, more):
        expected = runs.run(EXPERIMENT, conditions, undamaged)
        try:
            found = runs.run(EXPERIMENT, conditions, folder)
        except ComropeError as error:
            assert str(folder) in str(error)
        else:
            noticed_by_nobody = (name, damage) == ("result.json", "a flipped bit")  # a digit that is another one now
            assert noticed_by_nobody or _without_times(found) == _without_times(expected)


@pytest.mark.area("damaged finished runs")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_named_with_the_way_out(damage, tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    DAMAGES[damage](folder / "weights.safetensors")
    more = plain([(8, 8), (12, 12)])
    with pytest.raises(DataError, match="bring it back, or remove"):
        runs.run(EXPERIMENT, more, folder)
    shutil.rmtree(folder)
    runs.run(EXPERIMENT, more, folder)
    assert (folder / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


@pytest.mark.area("settings of runs")
def test_a_run_that_diverges_says_so_at_the_step(tmp_path):
    recipe = replace(QUICK.recipe, learning_rate=1e30, warmup=0.0)
    with pytest.raises(DivergedError, match=r"since step \d+ of"):
        runs.run(replace(EXPERIMENT, recipe=recipe), PLAIN, tmp_path / "run", save_every=1)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.area("two writers")
def test_a_folder_that_another_process_works_on_is_left_alone(tmp_path):
    folder = _broken_off(tmp_path / "run")
    with FileLock(folder / run_folder.LOCK), pytest.raises(DataError, match="another process is at work"):
        runs.run(EXPERIMENT, PLAIN, folder)
    runs.run(EXPERIMENT, PLAIN, folder)


@pytest.mark.area("folders that cannot be written")
def test_what_is_measured_already_is_read_from_a_folder_that_cannot_be_written(tmp_path, whole, monkeypatch):
    expected = runs.read(whole)
    monkeypatch.setattr(run_folder, "alone", None)
    assert runs.run(EXPERIMENT, PLAIN, whole) == expected


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    for part in ("train", "val"):
        for number, name in enumerate(("a", "b")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (8, 8), (100 * number + i,) * 3).save(folder / f"{i}.png")
    recipe = Recipe(epochs=3, batch_size=4)
    return root, ImageConfig(data=str(root), image_size=(8, 8), model="tiny", encoding="none", recipe=recipe)


@pytest.mark.area("data that change")
def test_images_that_vanish_between_two_parts_of_a_run_are_missed(tmp_path, images):
    root, experiment = images
    with pytest.raises(Stopped):
        runs.run(experiment, PLAIN, tmp_path / "run", save_every=1, on_progress=_stop_after(2))
    (root / "train" / "a" / "0.png").unlink()
    image_data._cached.cache_clear()  # as in another process
    with pytest.raises(DataError, match="train had count 12, now 11"):
        runs.run(experiment, PLAIN, tmp_path / "run")


@pytest.mark.area("data that change")
def test_renamed_classes_are_not_evaluated(tmp_path, images):
    root, experiment = images
    runs.run(experiment, PLAIN, tmp_path / "run")
    for part in ("train", "val"):
        (root / part / "a").rename(root / part / "c")
    image_data._cached.cache_clear()
    with pytest.raises(DataError, match="classes a, b, now b, c"):
        runs.run(experiment, PLAIN, tmp_path / "run")


@pytest.mark.area("settings of runs")
@pytest.mark.parametrize(
    "settings",
    [
        {"warmup": -1.0},
        {"warmup": 2.0},
        {"learning_rate": -1.0},
        {"learning_rate": float("inf")},
        {"angle_learning_rate": -1.0},
        {"weight_decay": -3.0},
        {"repeats": 0},
        {"seed": -1},
        {"epochs": 0},
        {"precision": "int3"},
    ],
)
def test_recipes_that_make_no_sense_are_refused(settings):
    (name,) = settings
    with pytest.raises(ConfigurationError, match=f"{name}="):
        Recipe(**settings)


@pytest.mark.area("settings of runs")
@pytest.mark.parametrize(
    "settings", [{"resize_ratio": 1000.0}, {"perturbation": float("nan")}, {"image_size": (4, 1_000_000)}]
)
def test_experiments_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigurationError, match="expected"):
        ImageConfig(**settings)


@pytest.mark.area("settings of runs")
@pytest.mark.parametrize("settings", [{"save_every": 0}, {"save_every": -1}, {"num_workers": -1}])
def test_ways_of_running_that_make_no_sense_are_refused(settings, tmp_path):
    with pytest.raises(ConfigurationError, match="expected"):
        runs.run(EXPERIMENT, PLAIN, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.area("kills of a reproduction")
def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    command = [sys.executable, "-m", "comrope", "reproduce", "fig5", "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out"), "--epochs", "1000"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "runs").glob("*/checkpoints"))) < 1:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = _children(process.pid)
    assert workers
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers):
        assert time.monotonic() < deadline + 60
        time.sleep(0.1)
    assert json.loads((next((tmp_path / "runs").glob("*/run.json"))).read_text())


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
