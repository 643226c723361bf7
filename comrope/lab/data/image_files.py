"""Reads image files of any format, on disk or in memory, as RGB of 8 bits."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

DAMAGE = (
    *(ArithmeticError, EOFError, OSError, RuntimeError, SyntaxError, ValueError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""The errors that Pillow raises for files that are damaged or no images."""


def upright(file: str | io.BytesIO) -> Image.Image:
    """Returns an image file as RGB of 8 bits, upright, with transparent pixels on white.

    Args:
        file: the name of the file, or its bytes.
    """
    with Image.open(file) as image:
        return rgb(ImageOps.exif_transpose(image), image.format)


def rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    """Returns an image as RGB of 8 bits. Pillow's own conversion clips 16 bits, and shows the colours of transparent pixels.

    Raises:
        ValueError: the scale of the pixel values is not known.
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
