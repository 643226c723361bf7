"""Full disks and folders that cannot be written: an error that names the folder; what was there stays; later all goes on."""

import functools
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm

import comrope
from comrope.cli.tools import Fold
from comrope.lab import reproduce, runs
from comrope.lab.classification import plain
from tests.faults.children import told
from tests.faults.sample import each_choice
from tests.lab.helpers import QUICK

pytestmark = pytest.mark.slow

PLAIN, MORE = tuple(plain([(8, 8)])), tuple(plain([(8, 8), (12, 12)]))
EXPERIMENT = replace(QUICK, encoding="comrope-ld")
SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
REMEDY = "cannot be written"


def _train(folder: Path) -> None:
    runs.run(EXPERIMENT, PLAIN, folder / "run", save_every=1)


def _evaluate(folder: Path) -> None:
    runs.run(EXPERIMENT, MORE, folder / "run")


def _save(folder: Path) -> None:
    comrope.save(comrope.attach(timm.create_model("vit_tiny_patch16_224", **SIZES), "comrope-ld"), folder / "model")


def _fold(folder: Path) -> None:
    Fold(folder / "model", folder / "folded").run()


def _reproduce(folder: Path) -> None:
    scale = replace(reproduce.SCALES["demo"], seeds=(0,), encodings=("comrope-ap", "comrope-ld"))
    reproduce.run("table8", scale, folder / "out", runs=folder / "runs", parallel=0)


WORK = {work.__name__[1:]: work for work in (_train, _evaluate, _save, _fold, _reproduce)}


@functools.cache
def _without_limit(work: str, root: Path) -> tuple[list[str], int]:
    """The files that are there when all went well, and the size of the largest that the work wrote."""
    folder = root / work
    _prepare(work, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    WORK[work](folder)
    written = [p for p in folder.rglob("*") if p.is_file() and before.get(p) != p.stat().st_mtime_ns]
    return _files(folder), max(path.stat().st_size for path in written)


def _prepare(work: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if work == "evaluate":
        _train(folder)
    if work == "fold":
        _save(folder)


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("without-limit")


@pytest.mark.area("full disks")
@pytest.mark.parametrize(("work", "most"), each_choice(WORK, [3_000, 300, 0, 30_000]))
def test_on_a_full_disk(work, most, tmp_path, root):
    files, largest = _without_limit(work, root)
    _prepare(work, tmp_path)
    error = told(WORK[work], tmp_path, most_bytes=most)
    assert error is not None or largest <= most
    assert error is None or REMEDY in error
    WORK[work](tmp_path)
    assert _files(tmp_path) == files


@pytest.mark.area("folders that cannot be written")
@pytest.mark.parametrize("work", WORK)
def test_where_nobody_may_write(work, tmp_path, root):
    files, _ = _without_limit(work, root)
    _prepare(work, tmp_path)
    before = _files(tmp_path)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    error = told(WORK[work], tmp_path, no_rights=True)
    for folder in folders:
        folder.chmod(0o755)
    assert error is not None and REMEDY in error
    assert _files(tmp_path) == before
    WORK[work](tmp_path)
    assert _files(tmp_path) == files


@pytest.mark.area("folders that cannot be written")
@pytest.mark.parametrize("work", WORK)
def test_where_nobody_may_read(work, tmp_path):
    """A folder in the place of each file that is read first."""
    _prepare(work, tmp_path)
    place = {"evaluate": "run/result.json", "fold": "model/comrope.json", "save": "model", "train": "run"}
    path = tmp_path / place.get(work, "runs")
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if work in ("evaluate", "fold"):
        path.mkdir()
    else:
        path.write_text("")
    error = told(WORK[work], tmp_path)
    assert error is not None and os.fspath(tmp_path) in error
