"""Images in folders named after their classes, as ImageNet-1K comes. A file is read when its image is needed."""

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
        """Returns an image as RGB.

        Returns:
            The image; None if it cannot be read and unreadable="skip".
        Raises:
            DataError: the image cannot be read and unreadable="fail".
        """
        return self._read(index, upright, DAMAGE)


def image_folder(root: Path, unreadable: str = "fail") -> tuple[Folder, Folder]:
    """Returns the images under `root`: train/<class>/* to train on, val/<class>/* to test on.

    Args:
        root: the folder that train and val are in.
        unreadable: whether reading a damaged image raises an error ("fail") or skips it ("skip").
    Raises:
        DataError: a folder is missing or without images, or the classes of the two differ.
    """
    train, val = (Folder(**part, unreadable=unreadable) for part in by_class(root, SUFFIXES, LAYOUT))
    return train, val
