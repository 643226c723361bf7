"""Images in folders named after their classes, as ImageNet-1K comes; read when they are asked for."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from comrope.lab.data.labelled import LabelledFiles, by_class

SUFFIXES = (*IMG_EXTENSIONS, ".avif", ".gif", ".jfif", ".jp2")
LAYOUT = "put images as train/<class>/* and val/<class>/*, with the same classes in both"
DAMAGE = (
    *(ArithmeticError, EOFError, OSError, RuntimeError, SyntaxError, ValueError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises of files that are no images, or damaged."""


@dataclass(frozen=True)
class Folder(LabelledFiles):
    """Image files with one label each."""

    mirrors: bool = True

    @property
    def channels(self) -> int:
        return 3

    def pil(self, index: int) -> Image.Image | None:
        """An image, as RGB.

        Returns:
            The image; None where it cannot be read and unreadable="skip".
        Raises:
            DataError: it cannot be read and unreadable="fail".
        """
        return self._read(index, _rgb, DAMAGE)


def image_folder(root: Path, unreadable: str = "fail") -> tuple[Folder, Folder]:
    """The images under `root`: train/<class>/* to train on, val/<class>/* to test.

    Args:
        root: the folder of both.
        unreadable: what is to come of an image that cannot be read: "fail", or "skip". It is found when it is read.
    Raises:
        DataError: a folder is missing or without images, or the classes of the two differ.
    """
    train, val = (Folder(**part, unreadable=unreadable) for part in by_class(root, SUFFIXES, LAYOUT))
    return train, val


def _rgb(file: str) -> Image.Image:
    """An image file as RGB of 8 bits, upright, transparent pixels on white."""
    with Image.open(file) as image:
        return rgb(ImageOps.exif_transpose(image), image.format)


def rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    """An image as RGB of 8 bits: Pillow's own conversion would clip some, and show colours that nobody sees.

    Raises:
        ValueError: its numbers are of a scale that is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)
        grey = np.where(values == image.info.get("transparency"), 255, values >> 8)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        raise ValueError("integers of 32 bits a pixel, whose largest is not known: convert it to 8 or 16 bits")
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("floating-point numbers that are not all between 0 and 1: convert it to 8 or 16 bits")
        return Image.fromarray((values * 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
