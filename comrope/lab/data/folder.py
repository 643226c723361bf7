"""Images in folders named after their classes, as ImageNet-1K comes; read when they are asked for."""

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from comrope.errors import ConfigurationError, DataError

UNREADABLE = ("fail", "skip")
LAYOUT = "put images as train/<class>/* and val/<class>/*, with the same classes in both"
_DAMAGE = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Folder:
    """Image files with one label each, in the order of classes and names."""

    paths: np.ndarray
    """(n,), names as bytes: one buffer, so that workers need no copies of a million objects."""
    labels: Tensor
    """(n,), int64."""
    classes: tuple[str, ...]
    unreadable: str = "fail"
    """Whether an image that cannot be read is to "fail", or be left out ("skip")."""

    def __post_init__(self):
        if self.unreadable not in UNREADABLE:
            raise ConfigurationError(f"unreadable={self.unreadable!r}: expected one of {', '.join(UNREADABLE)}.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return 3

    @property
    def mirrors(self) -> bool:
        return True

    def name(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def pil(self, index: int) -> Image.Image | None:
        """An image, as RGB.

        Returns:
            The image; None where it cannot be read and unreadable="skip".
        Raises:
            DataError: it cannot be read and unreadable="fail".
        """
        try:
            with Image.open(self.name(index)) as image:
                return image.convert("RGB")
        except _DAMAGE as error:
            if self.unreadable == "skip":
                return None
            raise DataError(
                f"{self.name(index)} cannot be read ({error}): mend or remove the file, or leave out what cannot be read "
                'with unreadable="skip".'
            ) from error

    def take(self, indices: Sequence[int]) -> Self:
        return replace(self, paths=self.paths[indices], labels=self.labels[indices])


def image_folder(root: Path, unreadable: str = "fail") -> tuple[Folder, Folder]:
    """The images under `root`: train/<class>/* to train on, val/<class>/* to test.

    Args:
        root: the folder of both.
        unreadable: what is to come of an image that cannot be read: "fail", or "skip". It is found when it is read.
    Raises:
        DataError: a folder is missing or without images, or the classes of the two differ.
    """
    train, val = (_split(root / part, unreadable) for part in ("train", "val"))
    if train.classes != val.classes:
        different = sorted(set(train.classes) ^ set(val.classes))
        raise DataError(
            f"{root}: {len(different)} classes are in one of train and val only ({', '.join(different[:5])}, …): {LAYOUT}."
        )
    return train, val


def _split(folder: Path, unreadable: str) -> Folder:
    try:
        found = ImageFolder(str(folder))
    except OSError as error:
        raise DataError(f"{folder} is no folder of images by class ({error}): {LAYOUT}.") from error
    paths = np.array([os.fsencode(path) for path, _ in found.samples])
    return Folder(paths, torch.tensor(found.targets), tuple(found.classes), unreadable)
