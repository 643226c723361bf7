"""Image files as people have them, and folders with more in them than images."""

import os

import numpy as np
import pytest
from PIL import Image

from comrope.errors import DataError
from comrope.lab.data import image_folder

pytestmark = pytest.mark.area("image files")

GRADIENT = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.fixture
def root(tmp_path):
    """Two classes of one image each, to train and to test on."""
    for part in ("train", "val"):
        for name, value in (("a", 50), ("b", 200)):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (value,) * 3).save(folder / "0.png")
    return tmp_path


def _pixels(root, name: str) -> np.ndarray:
    train, _ = image_folder(root)
    (index,) = (i for i in range(len(train)) if train.name(i).endswith(name))
    image = train.pil(index)
    assert image is not None
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def _add(root, image: Image.Image, name: str, **settings) -> None:
    image.save(root / "train" / "a" / name, **settings)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled(root, suffix):
    _add(root, Image.fromarray((GRADIENT * 65535).astype(np.uint16)), f"deep.{suffix}")
    found = _pixels(root, f"deep.{suffix}")
    assert np.abs(found - 255 * GRADIENT[..., None]).max() <= 1


def test_floats_between_0_and_1_are_scaled(root):
    _add(root, Image.fromarray(GRADIENT.astype(np.float32)), "float.tif")
    assert np.abs(_pixels(root, "float.tif") - 255 * GRADIENT[..., None]).max() <= 1


@pytest.mark.parametrize("array", [300 * GRADIENT.astype(np.float32), (1e6 * GRADIENT).astype(np.int32)])
def test_numbers_of_an_unknown_scale_are_refused(root, array):
    _add(root, Image.fromarray(array), "far.tif")
    with pytest.raises(DataError, match="convert it to 8 or 16 bits"):
        _pixels(root, "far.tif")


def test_images_are_upright(root):
    image = Image.fromarray((255 * GRADIENT[:4]).astype(np.uint8))  # 8 wide, 4 high
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    _add(root, image, "turned.png", exif=exif)
    assert np.array_equal(_pixels(root, "turned.png")[..., 0], np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(root, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((10, 10, 10, 255), (0, 0, 4, 8))
    _add(root, image.convert(mode), "clear.png")
    found = _pixels(root, "clear.png")
    assert (found[:, 4:] == 255).all()
    assert (np.abs(found[:, :4] - 10) <= 2).all()


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
