"""Images in folders named after their classes, as ImageNet-1K comes; read when they are asked for."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from comrope.lab.data.image_files import DAMAGE, upright
from comrope.lab.data.labelled import LabelledFiles, by_class

SUFFIXES = (*IMG_EXTENSIONS, ".avif", ".gif", ".jfif", ".jp2")
LAYOUT = "put images as train/<class>/* and val/<class>/*, with the same classes in both"


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
        return self._read(index, upright, DAMAGE)


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
