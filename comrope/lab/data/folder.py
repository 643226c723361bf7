"""Images in folders named after their classes, as ImageNet-1K comes; read when they are asked for."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from comrope.lab.data.labelled import LabelledFiles, by_class

LAYOUT = "put images as train/<class>/* and val/<class>/*, with the same classes in both"
DAMAGE = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)
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
    train, val = (Folder(**part, unreadable=unreadable) for part in by_class(root, IMG_EXTENSIONS, LAYOUT))
    return train, val


def _rgb(file: str) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")
