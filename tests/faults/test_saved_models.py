"""`comrope.save` over an older model: killed at any instant, on a full disk, beside other files."""

import errno
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import comrope
from comrope.errors import DataError
from comrope.hosts import _atomic_folder
from tests.faults.sample import campaign
from tests.processes import CONTEXT

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}


def _model(fill: float) -> Any:
    """One whose weights and angles all have the same value, so that a mixture of two shows."""
    model = comrope.attach(timm.create_model("vit_tiny_patch16_224", **SIZES), "comrope-ld")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(fill)
    return model


def _fills(folder: Path) -> set[float]:
    return {value for p in comrope.load(folder).parameters() for value in p.unique().tolist()}


def _save_forever(folder: Path, started: Any) -> None:
    torch.set_num_threads(1)
    models = [_model(fill) for fill in (1.0, 2.0)]
    started.set()
    while True:
        for model in models:
            comrope.save(model, folder)


@pytest.mark.slow
@pytest.mark.area("kills of comrope.save")
@pytest.mark.parametrize("tries", [8, *campaign(17)])
def test_killed_at_any_instant_the_older_or_the_newer_model_loads(tries, tmp_path):
    folder, draws = tmp_path / "model", random.Random(tries)
    comrope.save(_model(1.0), folder)
    (folder / "notes.txt").write_text("mine")
    found = []
    for _ in range(tries):
        started = CONTEXT.Event()
        process = CONTEXT.Process(target=_save_forever, args=(folder, started), daemon=True)
        process.start()
        assert started.wait(60)
        time.sleep(draws.uniform(0, 0.05))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        found.append(_fills(folder))
    assert all(fills in ({1.0}, {2.0}) for fills in found), found
    assert (folder / "notes.txt").read_text() == "mine"
    comrope.save(_model(3.0), folder)
    assert _fills(folder) == {3.0}
    assert sorted(p.name for p in folder.iterdir()) == ["comrope.json", "config.json", "model.safetensors", "notes.txt"]


@pytest.mark.area("kills of comrope.save")
@pytest.mark.parametrize("step", range(4))
def test_stopped_between_two_files_the_rest_is_done_later(step, tmp_path, monkeypatch):
    comrope.save(_model(1.0), tmp_path)
    replace, moved = os.replace, []

    def stop(source, target):
        if len(moved) == step:
            raise KeyboardInterrupt
        moved.append(target)
        return replace(source, target)

    monkeypatch.setattr(_atomic_folder.os, "replace", stop)
    monkeypatch.setattr(_atomic_folder.shutil, "rmtree", lambda *args, **kwargs: None)  # as if killed
    with pytest.raises(KeyboardInterrupt):
        comrope.save(_model(2.0), tmp_path)
    monkeypatch.undo()
    # The first replacement is that of the list, by which all counts as written.
    assert _fills(tmp_path) == ({1.0} if step == 0 else {2.0})


@pytest.mark.area("folders that cannot be written")
def test_on_a_full_disk_the_older_model_stays(tmp_path, monkeypatch):
    comrope.save(_model(1.0), tmp_path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(timm.models, "save_for_hf", full)
    with pytest.raises(DataError, match="No space left"):
        comrope.save(_model(2.0), tmp_path)
    assert _fills(tmp_path) == {1.0}
    assert not (tmp_path / _atomic_folder.NEW).exists()


@pytest.mark.area("folders that cannot be written")
def test_everybody_may_read_the_weights_who_may_read_the_rest(tmp_path):
    comrope.save(_model(1.0), tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


@pytest.mark.area("folders that cannot be written")
def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    path = tmp_path / "model"
    path.write_text("")
    with pytest.raises(DataError, match="is a file"):
        comrope.save(_model(1.0), path)
    with pytest.raises(DataError, match="is no folder"):
        comrope.load(path)
    assert json.dumps(path.read_text()) == '""'
