"""Images of Hugging Face's `datasets`: the same pixels as in folders, labels by any type, damage, streams."""

import io
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image

from comrope.errors import ConfigurationError, DataError
from comrope.lab import runs
from comrope.lab.classification import plain
from comrope.lab.data.labelled import about
from comrope.lab.data.streams import Sample
from comrope.lab.experiment import Recipe
from comrope.lab.images.config import ImageConfig
from comrope.lab.images.data import load
from comrope.lab.images.folder import image_folder
from comrope.lab.images.loading import EvalImages, StreamedTrainImages, TrainImages
from comrope.lab.images.rows import ImageRows, ImageStream
from tests.lab.data.helpers import CLASSES, NAMED, mapped, png, write_image_splits, write_images, write_rows
from tests.lab.helpers import QUICK

SIZE = (8, 8)


def _tells(images: Any, index: int) -> tuple[int, int]:
    """The class and the number that an image shows."""
    red, green, _ = images.pil(index).getpixel((0, 0))
    return red // 80, green


def _number(file: bytes) -> int:
    return np.asarray(Image.open(io.BytesIO(file)))[0, 0, 1].item()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_image_splits(tmp_path_factory.mktemp("rows") / "parquet")


@pytest.fixture
def images(tmp_path) -> Path:
    """The same as files: train/<class>/ and val/<class>/."""
    for part, num in (("train", 9), ("val", 3)):
        for i in range(num):
            path = tmp_path / part / CLASSES[i % 3] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(i % 3, i))
    return tmp_path


def test_rows_have_their_images_and_classes(folder):
    train, test = load(f"hf:{folder}")
    assert isinstance(train, ImageRows) and (len(train), len(test)) == (30, 9)
    for images in (train, test):
        assert images.classes == CLASSES and images.channels == 3 and images.mirrors
        assert [_tells(images, i)[0] for i in range(len(images))] == images.labels.tolist()
    assert [_tells(train, i)[1] for i in range(30)] == list(range(30))
    assert len({train.name(i) for i in range(30)}) == 30 and train.name(7) == f"hf:{folder} train[7]"


def test_a_folder_of_images_is_the_same_by_both_ways(images):
    ours, theirs = image_folder(images), load(f"hf:{images}")
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.labels, other.labels) and one.classes == other.classes
        assert [Path(one.name(i)) == Path(other.name(i).split("(")[1][:-1]) for i in range(len(one))]
        keys = [(epoch, i, copy) for epoch in (0, 1) for i in range(len(one)) for copy in (0, 1)]
        batches = [
            TrainImages(each, SIZE, augment="deit", flip=True, seed=3).__getitems__(keys) for each in (one, other)
        ]
        assert torch.equal(batches[0].pixels, batches[1].pixels) and torch.equal(batches[0].labels, batches[1].labels)
        plain = [EvalImages(each, SIZE).__getitems__([2, 0]).pixels for each in (one, other)]
        assert torch.equal(*plain)


@pytest.mark.parametrize(
    ("dtype", "labels", "classes"),
    [
        ("string", ["bee", "cat", "ant"], ("ant", "bee", "cat")),
        ("large_string", ["bee", "cat", "ant"], ("ant", "bee", "cat")),
        ("int32", [10, 2, 7], ("2", "7", "10")),
        ("bool", [True, False, False], ("False", "True")),
    ],
)
def test_labels_without_names_are_classes_in_order(tmp_path, dtype, labels, classes):
    order = sorted(set(labels))
    for part in ("train", "test"):
        write_images(tmp_path / f"{part}.parquet", 3, label=datasets.Value(dtype), labels=labels)
    train, test = load(f"hf:{tmp_path}")
    assert train.classes == test.classes == classes
    assert train.labels.tolist() == test.labels.tolist() == [order.index(label) for label in labels]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_sort_of_image_becomes_rgb(tmp_path, mode):
    """As files in folders do; grey is equal in all channels."""
    whole = io.BytesIO()
    Image.new(mode, (5, 7), 128 * 257 if mode == "I;16" else 1).save(whole, "tiff" if mode == "CMYK" else "png")
    rows = {"image": [{"bytes": whole.getvalue(), "path": None}] * 4, "label": [0, 1, 0, 1]}
    write_rows(tmp_path / "a.parquet", rows, {"image": datasets.Image(), "label": NAMED})
    image = load(f"hf:{tmp_path / 'a.parquet'}")[0].pil(0)
    assert image is not None and image.mode == "RGB" and image.size == (5, 7)
    if mode in ("L", "I;16"):
        assert len(set(np.asarray(image).flatten().tolist())) == 1


@pytest.mark.parametrize("kind", ["bytes", "structure", "large"])
def test_images_without_a_type_are_found(tmp_path, kind):
    """As other libraries than datasets write them."""
    files = [png(i % 3, i) for i in range(12)]
    column = {
        "bytes": pyarrow.array(files),
        "large": pyarrow.array(files, pyarrow.large_binary()),
        "structure": pyarrow.array([{"bytes": file} for file in files]),
    }[kind]
    table = pyarrow.table({"picture": column, "label": [i % 3 for i in range(12)], "note": ["x"] * 12})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    train, test = load(f"hf:{tmp_path / 'a.parquet'}")
    seen = {_tells(part, i) for part in (train, test) for i in range(len(part))}
    assert seen == {(i % 3, i) for i in range(12)}


def test_the_column_is_named_where_there_are_several(tmp_path):
    other = {"fine": ([2, 1, 0], datasets.ClassLabel(names=["x", "y", "z"]))}
    for part in ("train", "test"):
        write_images(tmp_path / f"{part}.parquet", 3, **other)
    assert load(f"hf:{tmp_path}")[0].labels.tolist() == [0, 1, 2]  # the one called label
    train, _ = load(f"hf:{tmp_path},label=fine")
    assert train.labels.tolist() == [2, 1, 0] and train.classes == ("x", "y", "z")
    with pytest.raises(ConfigurationError, match="label=image is no column of labels"):
        load(f"hf:{tmp_path},label=image")
    with pytest.raises(ConfigurationError, match="text is for other data"):
        load(f"hf:{tmp_path},text=label")


# Numbers of images, and what identifies them


def test_a_tenth_of_each_class_of_a_split_alone_is_held_out(tmp_path):
    path = write_images(tmp_path / "a.parquet", 60)
    train, test = load(f"hf:{path}")
    assert test.labels.bincount().tolist() == [2, 2, 2] and train.labels.bincount().tolist() == [18, 18, 18]
    seen = [[_tells(part, i)[1] for i in range(len(part))] for part in (train, test)]
    assert sorted(seen[0] + seen[1]) == list(range(60)) and seen == [sorted(numbers) for numbers in seen]
    few = load(f"hf:{path}", num_train=6, num_test=3)
    assert [part.labels.bincount().tolist() for part in few] == [[2, 2, 2], [1, 1, 1]]
    assert {few[1].name(i) for i in range(3)} <= {test.name(i) for i in range(6)}
    with pytest.raises(DataError, match="has one image"):
        load(f"hf:{write_images(tmp_path / 'one.parquet', 1)}")


def test_data_are_told_apart_and_are_the_same_elsewhere(tmp_path, images):
    path = write_images(tmp_path / "a.parquet", 30)
    shutil.copy(path, tmp_path / "b.parquet")
    other = write_images(tmp_path / "c.parquet", 30, first=30)  # PNGs of other sizes
    labels = [(i + 1) % 3 for i in range(30)]
    others = [other, write_images(tmp_path / "d.parquet", 30, labels=labels)]
    sums = [about(load(f"hf:{p}")[0])["sum"] for p in (path, tmp_path / "b.parquet", *others)]
    assert sums[0] == sums[1] and len(set(sums)) == 3
    before = [about(part) for part in load(f"hf:{images}")]
    moved = tmp_path / "moved"
    for part in ("train", "val"):
        shutil.copytree(images / part, moved / part)
    assert [about(part) for part in load(f"hf:{moved}")] == before
    (moved / "train" / "ant" / "0.png").rename(moved / "train" / "ant" / "00.png")
    assert about(load(f"hf:{moved}")[0]) != before[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"labels": [0, -1, -1]},
            "2 of 3 rows have no label of the 3 classes, such as row 1 with -1 in the column label",
        ),
        ({"labels": [0, None, 1]}, "1 of 3 rows have no label .* with None"),
        ({"label": datasets.ClassLabel(names=["x", "y", "z"])}, "other columns or classes"),
    ],
)
def test_rows_without_a_class_are_refused(tmp_path, change, said):
    saved = {
        "train": write_images(tmp_path / "a.parquet", 3),
        "test": write_images(tmp_path / "b.parquet", 3, **change),
    }
    parts = {name: datasets.Dataset.from_parquet(str(path)) for name, path in saved.items()}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=rf"hf:{tmp_path}/saved test.*{said}"):
        load(f"hf:{tmp_path / 'saved'}")


def test_a_test_label_that_was_never_trained_on_is_refused(tmp_path):
    for part, labels in (("train", ["a", "b", "a"]), ("test", ["a", "b", "c"])):
        write_images(tmp_path / f"{part}.parquet", 3, label=datasets.Value("string"), labels=labels)
    with pytest.raises(DataError, match=r"test: 1 of 3 rows have no label of the 2 classes, such as row 2 with 'c'"):
        load(f"hf:{tmp_path}")


# Damage

DAMAGED = {
    "cut short": {"bytes": png(0, 0)[:40], "path": "x.png"},
    "no image": {"bytes": b"<html>404</html>", "path": None},
    "empty": {"bytes": b"", "path": None},
    "nothing": {"bytes": None, "path": None},
    "vanished": {"bytes": None, "path": "/nowhere/x.png"},
    "elsewhere": {"bytes": None, "path": "https://example.com/x.png"},
    "null": None,
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """As many damaged rows as there are sorts, each after a whole one."""
    folder = tmp_path_factory.mktemp("damaged")
    rows = [value for i, value in enumerate(DAMAGED.values()) for value in ({"bytes": png(0, i), "path": None}, value)]
    structure = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.table({"image": pyarrow.array(rows, structure), "label": [0, 1] * len(DAMAGED)})
    for part in ("train", "test"):
        pyarrow.parquet.write_table(table, folder / f"{part}.parquet")
    return folder


@pytest.mark.parametrize("sort", DAMAGED)
def test_an_unreadable_row_is_named_or_skipped(damaged, sort):
    fails, skips = (load(f"hf:{damaged}", unreadable=unreadable)[0] for unreadable in ("fail", "skip"))
    row = 2 * list(DAMAGED).index(sort) + 1
    with pytest.raises(DataError, match=rf'train\[{row}\].* cannot be read .*unreadable="skip"'):
        fails.pil(row)
    assert skips.pil(row) is None and skips.pil(row - 1) is not None


def test_batches_leave_unreadable_rows_out(damaged):
    train = load(f"hf:{damaged}", unreadable="skip")[0]
    indices = range(len(train))
    batch = TrainImages(train, SIZE, flip=False, seed=0).__getitems__([(0, i, 0) for i in indices])
    assert len(batch.pixels) == len(DAMAGED) and batch.labels.tolist() == [0] * len(DAMAGED)
    assert batch.skipped == tuple(train.name(i) for i in indices if i % 2)
    assert EvalImages(train, SIZE).__getitems__(list(indices)).skipped == batch.skipped


# Memory


def test_images_are_mapped_and_not_loaded(tmp_path):
    """The kernel says that the bytes of images lie in a mapped file, and Arrow that it allocates none for them."""
    noise = np.random.default_rng(0).bytes(1 << 20)
    rows = {"image": [{"bytes": bytes([i]) + noise, "path": None} for i in range(16)], "label": [0, 1] * 8}
    path = write_rows(tmp_path / "big.parquet", rows, {"image": datasets.Image(), "label": NAMED})
    load(f"hf:{path}")  # is put into Arrow
    before = pyarrow.total_allocated_bytes()
    train, test = load(f"hf:{path}", unreadable="skip")
    assert isinstance(train, ImageRows)
    assert mapped(train.dataset, "image")
    assert [part.pil(i) for part in (train, test) for i in range(len(part))] == [None] * 16
    about(train)
    assert pyarrow.total_allocated_bytes() - before < 1 << 20


# Streams


def _stream(data: Any, num_train: int = 30, **settings) -> ImageStream:
    train, _ = load(f"hf:{data},streaming,buffer_size=4", num_train, **settings)
    assert isinstance(train, ImageStream)
    return train


def _samples(stream: ImageStream) -> list[Sample]:
    values = [value for _, found in stream.buffers(5, 0) for value in found]
    return [Sample(0, index, 1, value) for index, value in enumerate(values)]


@pytest.mark.parametrize("augment", ["basic", "deit"])
def test_streamed_images_are_augmented_by_their_keys(folder, augment):
    """As the images of a set in memory mapped files are that has them in the order of the stream."""
    stream, (rows, test) = _stream(folder), load(f"hf:{folder}")
    assert (len(stream), stream.classes, stream.channels) == (30, CLASSES, 3)
    assert about(load(f"hf:{folder},streaming", 30)[1]) == about(test)
    samples = _samples(stream)
    settings = {"augment": augment, "flip": True, "seed": 3}
    streamed = StreamedTrainImages(stream, SIZE, **settings).__getitems__(samples)
    numbers = [_number(s.value[0]["bytes"]) for s in samples]
    ordered = TrainImages(rows.take(numbers), SIZE, **settings).__getitems__([s[:3] for s in samples])
    assert sorted(numbers) == list(range(30)) and numbers != list(range(30))
    assert torch.equal(streamed.pixels, ordered.pixels) and torch.equal(streamed.labels, ordered.labels)


def test_a_stream_skips_or_names_what_cannot_be_read(damaged):
    fails, skips = (_stream(damaged, 14, unreadable=unreadable) for unreadable in ("fail", "skip"))
    batch = StreamedTrainImages(skips, SIZE, flip=False, seed=0).__getitems__(_samples(skips))
    assert batch.labels.tolist() == [0] * len(DAMAGED) and len(set(batch.skipped)) == len(DAMAGED)
    with pytest.raises(DataError, match=r"train, image \d+ of epoch 1.* cannot be read"):
        StreamedTrainImages(fails, SIZE, flip=False, seed=0).__getitems__(_samples(fails))


def test_classes_of_a_stream_without_names_are_those_to_test_on(tmp_path):
    for part, labels in (("train", ["b", "a", "c"]), ("test", ["a", "b", "b"])):
        write_images(tmp_path / f"{part}.parquet", 3, label=datasets.Value("string"), labels=labels)
    stream = _stream(tmp_path, 3)
    assert stream.classes == ("a", "b")
    with pytest.raises(DataError, match=r"train: a row has 'c' in the column label, which is none of the 2 classes"):
        _samples(stream)


def test_a_stream_is_told_by_its_files(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert about(_stream(folder)) == about(_stream(moved)) != about(_stream(moved, 20))
    write_images(next(moved.glob("train-00001*")), 11)
    assert about(_stream(folder)) != about(_stream(moved))


def test_what_cannot_be_streamed_is_refused(folder, images):
    with pytest.raises(ConfigurationError, match="--num-train says how many samples are an epoch"):
        load(f"hf:{folder},streaming")
    with pytest.raises(ConfigurationError, match=r"there is nothing to stream.*leave out streaming"):
        load(f"hf:{images},streaming", 9)
    with pytest.raises(ConfigurationError, match=r"train is the only split.*leave out streaming"):
        load(f"hf:{folder / 'test.parquet'},streaming", 9)


# Runs; those that are stopped, and those in two processes, are in tests/lab/test_problems.py


def _experiment(data: str) -> ImageConfig:
    return replace(QUICK, data=data, num_train=30, num_test=None, recipe=Recipe(epochs=1, batch_size=10))


@pytest.mark.parametrize("settings", ["", ",streaming"])
def test_a_run_says_what_it_read_and_is_refused_on_rows_that_changed(folder, tmp_path, settings):
    data = tmp_path / "rows"
    shutil.copytree(folder, data)
    experiment = _experiment(f"hf:{data}{settings}")
    result = runs.run(experiment, plain([SIZE]), tmp_path / "run")
    (row,) = result["evaluation"]
    assert row["total"] == 9 and result["versions"]["datasets"] == version("datasets")
    assert result["data"]["train"]["count"] == 30 and result["data"]["train"]["classes"] == list(CLASSES)
    assert runs.run(experiment, plain([SIZE]), tmp_path / "run") == result
    data.rename(tmp_path / "moved")
    moved = f"hf:{tmp_path / 'moved'}{settings}"
    assert runs.run(experiment, plain([SIZE]), tmp_path / "run", data=moved) == result
    shutil.copytree(tmp_path / "moved", tmp_path / "changed")
    write_images(tmp_path / "changed" / "test.parquet", 9, first=100)
    with pytest.raises(DataError, match=r"a run on other data, of which test had sum"):
        runs.run(experiment, plain([SIZE]), tmp_path / "run", data=f"hf:{tmp_path / 'changed'}{settings}")


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["", ",streaming,buffer_size=8"])
def test_reading_processes_change_nothing(folder, tmp_path, settings):
    for num_workers in (0, 2):
        runs.run(_experiment(f"hf:{folder}{settings}"), [], tmp_path / str(num_workers), num_workers=num_workers)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("0", "2")]
    assert weights[0] == weights[1]
