"""Folders with more in them than images, any names, and processes that read them."""

import os
import signal

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset

from comrope.errors import ComropeError, DataError, WorkerError
from comrope.lab import runs
from comrope.lab.classification import plain
from comrope.lab.data.batches import read_batches
from comrope.lab.experiment import Recipe
from comrope.lab.images.config import ImageConfig
from comrope.lab.images.data import load
from comrope.lab.images.folder import image_folder
from comrope.lab.images.loading import EvalImages, TrainImages
from tests.faults.images import noise, pixels, write_images

pytestmark = pytest.mark.area("image folders")


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("way", ["training", "testing"])
def test_what_a_reading_process_finds_is_said_as_by_this_one(way, num_workers, root):
    path = root / "train" / "b" / "1.png"
    path.write_bytes(noise(6000))
    keys = [[(0, 0, 0)], [(0, 2, 0), (0, 1, 0)]] if way == "training" else [[0], [2, 1]]
    for unreadable in ("fail", "skip"):
        train, _ = image_folder(root, unreadable)
        feed = TrainImages(train, (8, 8), flip=False, seed=0) if way == "training" else EvalImages(train, (8, 8))
        if unreadable == "skip":
            first, second = read_batches(feed, keys, num_workers)
            assert (len(first.labels), second.labels.tolist(), second.skipped) == (1, [1], (str(path),))
            continue
        with pytest.raises(DataError, match=rf"^{path} cannot be read \(.*\): mend or remove the file") as caught:
            list(read_batches(feed, keys, num_workers))
        assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("unreadable", ["fail", "skip"])
def test_a_run_with_readers_names_or_counts_what_cannot_be_read(unreadable, root, tmp_path_factory):
    (root / "train" / "b" / "1.png").write_bytes(noise(6000))
    (root / "val" / "b" / "1.png").write_bytes(b"")
    recipe = Recipe(epochs=1, batch_size=3, warmup=0.0)
    experiment = ImageConfig(data=str(root), image_size=(8, 8), model="tiny", encoding="none", recipe=recipe)
    folder = tmp_path_factory.mktemp("runs") / "run"
    if unreadable == "fail":
        with pytest.raises(DataError, match=r"^.*1\.png cannot be read \(.*\): mend or remove the file") as caught:
            runs.run(experiment, plain([(8, 8)]), folder, num_workers=2)
        assert "Traceback" not in str(caught.value)
        return
    result = runs.run(experiment, plain([(8, 8)]), folder, num_workers=2, unreadable="skip")
    assert [row["skipped"] for row in result["history"]] == [1]
    assert [(row["total"], row["skipped"]) for row in result["evaluation"]] == [(2, 1)]


class Killed(Dataset):
    """A feed whose reading process is gone, as where memory runs out."""

    def __getitems__(self, keys):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_reading_process_that_is_gone_is_named():
    with pytest.raises(WorkerError, match=r"a process that reads data is gone .*fewer --num-workers"):
        next(read_batches(Killed(), [[0]], 1))


def test_links_that_lead_back_up_are_not_followed(root, caplog):
    os.symlink(root / "train", root / "train" / "a" / "loop")
    os.symlink(root / "train" / "b", root / "train" / "a" / "there")  # another folder is followed, as it was
    train, _ = image_folder(root)
    assert [train.name(i).removeprefix(str(root)) for i in range(len(train))] == [
        "/train/a/0.png",
        "/train/a/there/0.png",
        "/train/b/0.png",
    ]
    assert "leads back" in caplog.text


def test_hidden_folders_are_no_classes_and_pipes_are_no_images(root):
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "a" / "._0.png").write_bytes(b"of another system")
    os.mkfifo(root / "train" / "a" / "pipe.png")
    train, val = image_folder(root)
    assert train.classes == val.classes == ("a", "b")
    assert len(train) == 2


def test_a_class_without_images_is_named(root):
    for part in ("train", "val"):
        (root / part / "empty").mkdir()
    with pytest.raises(DataError, match="no files in empty"):
        image_folder(root)


@pytest.mark.parametrize("name", ["a b.png", "ä 動.png", "a\nb.png", "%s{}.png", os.fsdecode(b"\xff\xfe.png"), "A.PNG"])
def test_any_name_of_a_file(name, root):
    (root / "train" / "a" / name).write_bytes((root / "train" / "a" / "0.png").read_bytes())
    assert np.abs(pixels(root, name) - 50).max() == 0
    (root / "train" / "a" / name).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        pixels(root, name)
    assert str(caught.value).startswith(f"{root}/train/a/{name} cannot be read (")


@pytest.mark.parametrize("name", ["a class", "ä 動", os.fsdecode(b"\xff"), "{}%s", "a\nb", "-"])
def test_any_name_of_a_class(name, root, tmp_path_factory):
    for part in ("train", "val"):
        (root / part / "a").rename(root / part / name)
    recipe = Recipe(epochs=1, batch_size=2, warmup=0.0)
    experiment = ImageConfig(data=str(root), image_size=(8, 8), model="tiny", encoding="none", recipe=recipe)
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = runs.run(experiment, plain([(8, 8)]), folder)
    assert result["data"]["train"]["classes"] == sorted([name, "b"])
    assert runs.read(folder) == result


def test_files_that_do_not_count_are_named(root, caplog):
    for name in ("notes.txt", "photo.heic", "0.png.part"):
        (root / "train" / "a" / name).write_bytes(b"")
    train, _ = image_folder(root)
    assert len(train) == 2
    assert "3 files do not count, such as" in caplog.text
    assert "/train/a/0.png.part: only .jpg, " in caplog.text


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/null", "pipe"])
def test_what_is_no_file_does_not_count(target, root):
    os.mkfifo(root / "train" / "a" / "pipe")
    (root / "train" / "a" / "link.png").symlink_to(target)
    assert len(image_folder(root)[0]) == 2


def test_what_may_not_be_read_is_named(strangers_folder):
    for path in (strangers_folder / part / "a" / "0.png" for part in ("train", "val")):
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path)
    train, _ = image_folder(strangers_folder)
    (strangers_folder / "train" / "a" / "0.png").chmod(0)
    with pytest.raises(DataError, match=r"0\.png cannot be read .*Permission denied.*mend or remove the file"):
        train.pil(0)
    (strangers_folder / "train" / "a").chmod(0)
    with pytest.raises(DataError, match=r"train is no folder of files by class .*Permission denied"):
        image_folder(strangers_folder)
    (strangers_folder / "train" / "a").chmod(0o700)


@pytest.mark.parametrize("source", ["", "no/such", "a\0b", "a" * 5000, "0.png"])
def test_what_is_no_folder_of_images(source, root, monkeypatch):
    monkeypatch.chdir(root / "train" / "a")
    with pytest.raises(ComropeError, match=r"expected digits, fashion-mnist, or a folder|put images as train"):
        load(source)
