"""An image as a model takes it, and as a page shows it."""

import base64
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comrope._values import described, is_floating
from comrope.errors import ConfigurationError, DataError


def data_url(pixels: Tensor) -> str:
    """Returns a PNG of pixels (height, width, 3), uint8, as a URL that holds all of it."""
    height, width, _ = pixels.shape
    rows = torch.cat((torch.zeros(height, 1, dtype=torch.uint8), pixels.cpu().reshape(height, -1)), dim=1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(rows.flatten().tolist()), 9)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def visible(image: Tensor) -> Tensor:
    """Returns an image (1 or 3, height, width) of any range as pixels (height, width, 3), uint8: black to white."""
    low, high = image.amin(), image.amax()
    grey = (255 * (image - low) / (high - low).clamp(min=1e-12)).round().to(torch.uint8)
    return grey.expand(3, -1, -1).permute(1, 2, 0)


def read(path: Path | str, like: Tensor, normal: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    """Returns an image file as a model takes it, (1, C, height, width), and as pixels (height, width, 3).

    It is upright, on white if it is transparent, resized to cover the size and cropped at the centre.

    Args:
        path: the file, in any format of Pillow.
        like: a tensor (1, C, height, width) with the size, dtype and device of the result; C is 1 or 3.
        normal: mean and standard deviation of each channel, for pixels on [0, 1].
    Raises:
        DataError: the file is missing, or no image.
    """
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError:
        raise ConfigurationError(
            "Pillow reads image files: pip install pillow, or give the image as a tensor."
        ) from None
    _, channels, height, width = like.shape
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGBA")
            white = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
            fitted = ImageOps.fit(white, (width, height), Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow raises errors of many kinds for files that are damaged
        raise DataError(
            f"{path} cannot be read as an image ({type(error).__name__}: {error}): give a PNG or JPEG file."
        ) from error
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8).view(height, width, 3)
    values = pixels.permute(2, 0, 1).float() / 255
    if channels == 1:
        values = (values * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    mean, std = (torch.as_tensor(part, dtype=torch.float32).view(-1, 1, 1) for part in normal)
    return ((values - mean) / std).unsqueeze(0).to(like), pixels


def prepared(image: Any, example: Any, model: Any) -> tuple[Any, Tensor]:
    """Returns the arguments of a forward pass with an image, and its pixels to show.

    Args:
        image: the name of a file, or a tensor (C, height, width) or (1, C, height, width) as the model takes it.
        example: the arguments of a small forward pass; None if they do not tell the size of images.
        model: whose `pretrained_cfg`, if it has one, tells the mean and standard deviation of its images (½ each otherwise).
    """
    like, name = example, None
    if isinstance(example, Mapping):
        name, like = next(((n, t) for n, t in example.items() if isinstance(t, Tensor) and t.ndim == 4), (None, None))
    if isinstance(image, Tensor):
        batch = image.unsqueeze(0) if image.ndim == 3 else image
        if not is_floating(image) or batch.ndim != 4 or len(batch) != 1 or batch.shape[1] not in (1, 3):
            raise ConfigurationError(
                f"image: got {described(image)}; expected one image, (C, height, width), of 1 or 3 channels, normalised as the "
                "model takes it, or the name of a file."
            )
        found, pixels = batch, visible(batch[0].detach().cpu().float())
    elif isinstance(image, (str, Path)):
        if not isinstance(like, Tensor) or like.ndim != 4 or like.shape[1] not in (1, 3):
            raise ConfigurationError(
                f"image={str(image)!r}: {type(model).__name__} does not say of what size its images are: give a tensor, "
                "(C, height, width), as the model takes it."
            )
        config = getattr(model, "pretrained_cfg", None) or {}
        found, pixels = read(image, like, (config.get("mean", 0.5), config.get("std", 0.5)))
    else:
        raise ConfigurationError(f"image: got {type(image).__name__}; expected the name of a file, or a tensor.")
    if isinstance(like, Tensor):
        found = found.to(like)
    return ({**example, name: found} if name else found), pixels
