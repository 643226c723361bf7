"""Folders of image files: what is read, in which order, and what is said of those that cannot be."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comrope.errors import ConfigurationError, DataError
from comrope.lab.images.data import load
from comrope.lab.images.folder import Folder, image_folder

CLASSES = ("ant", "bee", "cat")


def _write(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    """Four images a class to train on, two to test; the red of an image tells its class, the green its number."""
    for part, num in (("train", 4), ("val", 2)):
        for label, name in enumerate(CLASSES):
            for i in range(num):
                _write(tmp_path / part / name / f"{i}.{'png' if i % 2 else 'JPEG'}", (80 * label, 60 * i, 0))
    return tmp_path


def test_images_come_with_the_class_of_their_folder(root):
    train, val = image_folder(root)
    assert (len(train), len(val)) == (12, 6)
    for images in (train, val):
        assert images.classes == CLASSES and images.channels == 3 and images.mirrors
        for index, label in enumerate(images.labels.tolist()):
            image = images.pil(index)
            assert image is not None and image.mode == "RGB" and image.size == (12, 8)
            assert abs(np.asarray(image)[0, 0, 0] / 80 - label) < 0.1
    assert [train.name(i) for i in range(len(train))] == sorted(str(p) for p in (root / "train").glob("*/*"))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_sort_of_image_becomes_rgb(root, mode):
    path = root / "train/ant" / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, (5, 7)).save(path)
    train = image_folder(root)[0]
    (index,) = (i for i in range(len(train)) if train.name(i) == str(path))
    image = train.pil(index)
    assert image is not None and image.mode == "RGB" and image.size == (5, 7)


def test_load_takes_as_many_of_each_class(root):
    train, val = load(str(root), num_train=6, num_test=3)
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and val.labels.tolist() == [0, 1, 2]
    again = load(str(root), num_train=6)[0]
    assert [train.name(i) for i in range(6)] == [again.name(i) for i in range(6)]
    for i, label in enumerate(train.labels.tolist()):
        assert Path(train.name(i)).parent.name == CLASSES[label]


def _noise(path: Path) -> bytes:
    """A file of more than one chunk of data."""
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(256, size=(200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, format="png" if path.suffix == ".png" else "jpeg")
    return whole.getvalue()


def _break_the_last_chunk(path: Path) -> None:
    """Pillow calls a PNG's a SyntaxError."""
    before, chunk, after = _noise(path).rpartition(b"IDAT" if path.suffix == ".png" else b"\xff\xda")
    path.write_bytes(before + bytes(len(chunk)) + after)


DAMAGE = {
    "cut short": lambda path: path.write_bytes(_noise(path)[:10_000]),
    "no image": lambda path: path.write_text("<html>404</html>"),
    "empty": lambda path: path.write_bytes(b""),
    "broken chunk": _break_the_last_chunk,
    "vanished": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["bee/1.png", "bee/2.JPEG"])
def test_an_unreadable_image_is_named_or_skipped(root, file, damage):
    path = root / "train" / file
    images = {unreadable: load(str(root), unreadable=unreadable)[0] for unreadable in ("fail", "skip")}
    (index,) = (i for i in range(12) if images["fail"].name(i) == str(path))
    DAMAGE[damage](path)
    with pytest.raises(DataError, match=rf'{path} cannot be read .*unreadable="skip"'):
        images["fail"].pil(index)
    assert images["skip"].pil(index) is None
    for i in set(range(12)) - {index}:
        assert images["skip"].pil(i) is not None


def test_a_missing_part_is_named(root):
    (root / "val").rename(root / "validation")
    with pytest.raises(DataError, match=rf"{root / 'val'} is no folder.*train/<class>/\* and val/<class>/\*"):
        load(str(root))


def test_a_class_without_images_is_named(root):
    (root / "train/dog").mkdir()
    with pytest.raises(DataError, match=rf"{root / 'train'} has no files in dog.*put images as"):
        load(str(root))


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"train has no files by class .*put images as"):
        load(str(tmp_path))


def test_classes_have_to_be_the_same(root):
    (root / "val/bee").rename(root / "val/wasp")
    with pytest.raises(DataError, match=r"2 classes are in one of train and val only \(bee, wasp"):
        load(str(root))


def test_unknown_ways_are_refused(root):
    train = image_folder(root)[0]
    with pytest.raises(ConfigurationError, match=r"unreadable='pass'.*fail, skip"):
        Folder(train.paths, train.labels, train.classes, unreadable="pass")
