"""Image files as people have them, and files that are none."""

import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from comrope.errors import DataError
from comrope.lab.images.folder import image_folder
from comrope.lab.images.loading import EvalImages
from tests.faults.images import noise, pixels, write_images

pytestmark = pytest.mark.area("image files")

GRADIENT = np.linspace(0, 1, 64).reshape(8, 8)
NUM_DAMAGES = 60
"""Of each format, drawn from a fixed seed."""


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path)


def _add(root, image: Image.Image, name: str, **settings) -> None:
    image.save(root / "train" / "a" / name, **settings)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled(root, suffix):
    _add(root, Image.fromarray((GRADIENT * 65535).astype(np.uint16)), f"deep.{suffix}")
    found = pixels(root, f"deep.{suffix}")
    assert np.abs(found - 255 * GRADIENT[..., None]).max() <= 1


def test_floats_between_0_and_1_are_scaled(root):
    _add(root, Image.fromarray(GRADIENT.astype(np.float32)), "float.tif")
    assert np.abs(pixels(root, "float.tif") - 255 * GRADIENT[..., None]).max() <= 1


@pytest.mark.parametrize("array", [300 * GRADIENT.astype(np.float32), (1e6 * GRADIENT).astype(np.int32)])
def test_numbers_of_an_unknown_scale_are_refused(root, array):
    _add(root, Image.fromarray(array), "far.tif")
    with pytest.raises(DataError, match="convert it to 8 or 16 bits"):
        pixels(root, "far.tif")


def test_images_are_upright(root):
    image = Image.fromarray((255 * GRADIENT[:4]).astype(np.uint8))  # 8 wide, 4 high
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    _add(root, image, "turned.png", exif=exif)
    assert np.array_equal(pixels(root, "turned.png")[..., 0], np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(root, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((10, 10, 10, 255), (0, 0, 4, 8))
    _add(root, image.convert(mode), "clear.png")
    found = pixels(root, "clear.png")
    assert (found[:, 4:] == 255).all()
    assert (np.abs(found[:, :4] - 10) <= 2).all()


def _ramp(colour: bool) -> np.ndarray:
    """(8, 8, 3), uint8: red to the right and green to the bottom, or grey."""
    step = np.arange(8) * 36
    if colour:
        return np.stack([*np.meshgrid(step, step), np.full((8, 8), 90)], -1).astype(np.uint8)
    return (255 * GRADIENT[..., None] * np.ones(3)).astype(np.uint8)


OPAQUE = np.where(np.arange(8) < 4, 255, 0) * np.ones((8, 1), dtype=int)
"""Of the left half: (8, 8)."""


def _of_mode(mode: str) -> tuple[Image.Image, np.ndarray]:
    """An image, and what a viewer shows of it, on white where it is transparent: (8, 8, 3)."""
    shown = _ramp(mode not in ("1", "L", "LA", "I;16"))
    if mode == "1":
        return Image.fromarray(shown[..., 0] > 127), np.where(shown > 127, 255, 0)
    if mode == "I;16":
        return Image.fromarray((GRADIENT * 65535).astype(np.uint16)), shown
    if mode == "P":
        image = Image.new("P", (8, 8))
        image.putdata(range(64))
        image.putpalette(shown.tobytes())
        return image, shown
    if mode == "CMYK":
        return Image.merge(mode, [*Image.fromarray(255 - shown).split(), Image.new("L", (8, 8))]), shown
    bands = [Image.fromarray(shown[..., i]) for i in range(3)][: 1 if mode in ("L", "LA") else 3]
    if mode in ("LA", "RGBA"):
        bands.append(Image.fromarray(OPAQUE.astype(np.uint8)))
        shown = np.where(OPAQUE[..., None] == 0, 255, shown)
    return Image.merge(mode, bands), shown


LOSSY = {"jpg": {"quality": 98, "subsampling": 0}, "jfif": {"quality": 98, "subsampling": 0}, "avif": {"quality": 98}}
SETTINGS: dict[str, dict[str, Any]] = {"webp": {"lossless": True, "exact": True}, **LOSSY}
WRITTEN = {
    "png": ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"],
    "tif": ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16"],
    "gif": ["1", "L", "P", "RGBA"],
    "bmp": ["1", "L", "P", "RGB"],
    "webp": ["L", "RGB", "RGBA"],
    "jp2": ["L", "RGB", "RGBA"],
    "pgm": ["L", "I;16"],
    "ppm": ["RGB"],
    "jpg": ["L", "RGB", "CMYK"],
    "jfif": ["RGB"],
    "avif": ["L", "RGB", "RGBA"],
}
HAS = {"webp": features.check("webp"), "jp2": features.check("jpg_2000"), "avif": features.check("avif")}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in WRITTEN.items() for mode in modes])
def test_every_mode_is_what_a_viewer_shows(suffix, mode, root):
    if not HAS.get(suffix, True):
        pytest.skip(f"this Pillow writes no {suffix}")
    image, shown = _of_mode(mode)
    _add(root, image, f"some.{suffix.upper()}", **SETTINGS.get(suffix, {}))
    apart = np.abs(pixels(root, f"some.{suffix.upper()}") - shown.astype(int))
    assert apart.mean() <= 8 if suffix in LOSSY else apart.max() <= 1


@pytest.mark.parametrize(("mode", "colour"), [("L", 36), ("RGB", (36, 0, 90)), ("P", 1), ("I;16", 3120), ("1", 0)])
def test_a_colour_may_be_transparent(mode, colour, root):
    image, shown = _of_mode(mode)
    clear = np.asarray(image) == colour
    _add(root, image, "clear.png", transparency=colour)
    expected = np.where((clear.all(-1) if clear.ndim == 3 else clear)[..., None], 255, shown.astype(int))
    assert (expected != shown).any()
    assert np.abs(pixels(root, "clear.png") - expected).max() <= 1


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", [*TURNED, 0, 9])
def test_any_orientation(orientation, suffix, root):
    """The numbers from 1 to 8 mean something; others nothing."""
    image, exif = Image.fromarray(_ramp(colour=True)[:4]), Image.Exif()
    exif[0x0112] = orientation
    _add(root, image, f"turned.{suffix}", exif=exif, **SETTINGS.get(suffix, {}))
    expected = TURNED.get(orientation, TURNED[1])(_ramp(colour=True)[:4]).astype(int)
    found = pixels(root, f"turned.{suffix}")
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() <= 8


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_of_a_series_the_first_is_taken(suffix, root):
    first, *others = (Image.new("RGB", (8, 8), (value,) * 3) for value in (40, 120, 200))
    _add(root, first, f"series.{suffix}", save_all=True, append_images=others)
    assert np.abs(pixels(root, f"series.{suffix}") - 40).max() <= 2


def test_colours_of_another_space_are_converted(root):
    _add(root, Image.new("LAB", (8, 8), (200, 128, 128)), "lab.tif")  # L* of 78 %, no colour
    assert np.abs(pixels(root, "lab.tif") - 194).max() <= 2


def _bomb(path: Path) -> None:
    """A file of a few bytes that says it is 20,000 pixels wide and high."""
    Image.new("1", (1, 1)).save(path)
    whole = path.read_bytes()
    header = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + whole[24:29]
    path.write_bytes(whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:])


NO_IMAGES: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "text": lambda path: path.write_text("no image"),
    "HTML": lambda path: path.write_text("<html>404</html>"),
    "vectors": lambda path: path.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "a few bytes of PNG": lambda path: path.write_bytes(noise(30)),
    "half a PNG": lambda path: path.write_bytes(noise(6000)),
    "a header alone": lambda path: path.write_bytes(b"\xff\xd8\xff\xe0"),
    "400 megapixels": _bomb,
    "a link to nowhere": lambda path: path.symlink_to("nowhere.png"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("make", NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_image_is_named_or_left_out(make, root):
    path = root / "train" / "a" / "1.png"
    make(path)
    train, _ = image_folder(root)
    assert len(train) == 3
    with pytest.raises(DataError) as caught:
        EvalImages(train, (8, 8)).__getitems__([0, 1, 2])
    assert str(caught.value).startswith(f"{path} cannot be read (")
    assert "mend or remove the file" in str(caught.value)
    train, _ = image_folder(root, "skip")
    batch = EvalImages(train, (8, 8)).__getitems__([0, 1, 2])
    assert batch.skipped == (str(path),)
    assert batch.labels.tolist() == [0, 1]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about tags it passes over
@pytest.mark.area("image files", tries=NUM_DAMAGES)
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "bmp", "webp", "jp2", "avif"])
def test_damaged_images_are_read_or_named(suffix, root):
    if not HAS.get(suffix, True):
        pytest.skip(f"this Pillow writes no {suffix}")
    path, draws, found = root / "train" / "a" / f"1.{suffix}", random.Random(f"0 {suffix}"), {}
    noise = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    settings: dict[str, Any] = {} if suffix in ("gif", "bmp", "jp2") else {"exif": exif}
    Image.fromarray(noise).save(path, **settings)
    whole, (train, _) = path.read_bytes(), image_folder(root)
    for number in range(NUM_DAMAGES):
        damaged = bytearray(whole)
        at = draws.randrange(len(whole) if number % 2 else min(200, len(whole)))
        damaged[at : at + number % 5 + 1] = draws.randbytes(number % 5 + 1)
        path.write_bytes(damaged[: len(whole)] if number % 7 else damaged[:at])
        try:
            batch = EvalImages(train, (8, 8)).__getitems__([1])
        except DataError as error:
            if not str(error).startswith(f"{path} cannot be read ("):
                found[number] = str(error)
        except Exception as error:
            found[number] = f"{type(error).__name__}: {error}"
        else:
            if batch.pixels.shape != (1, 3, 8, 8) or not batch.pixels.abs().max() <= 1:
                found[number] = f"{batch.pixels.shape}"
    assert not found
