"""The data sets of image classification, by their names."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from comrope.errors import ConfigurationError
from comrope.lab.data.labelled import UNREADABLE, subset
from comrope.lab.images.config import ImageConfig
from comrope.lab.images.folder import image_folder
from comrope.lab.images.in_memory import ImageSet, digits, fashion_mnist


def datasets(config: ImageConfig, unreadable: str = "fail") -> tuple[ImageSet, ImageSet]:
    """The images to train on and those to evaluate on; what was read last is kept in memory."""
    return _kept(config.data, config.num_train, config.num_test, unreadable)


@lru_cache(maxsize=2)
def _kept(*arguments: Any) -> tuple[ImageSet, ImageSet]:
    *which, unreadable = arguments
    return load(*which, unreadable=unreadable)


def load(
    source: str, num_train: int | None = None, num_test: int | None = None, *, unreadable: str = "fail"
) -> tuple[ImageSet, ImageSet]:
    """A data set's images to train on and to test on.

    Args:
        source: "digits", "fashion-mnist", or a folder with train/<class>/* and val/<class>/*, as ImageNet-1K comes.
        num_train, num_test: so many of them, the same number of each class while it lasts, in the set's order; always the
            same ones. All if None.
        unreadable: whether an image file that cannot be read is to "fail", or be left out ("skip") of its batch.
    Raises:
        ConfigurationError: an unknown name, or numbers that the set does not have.
        DataError: the data are not there, or damaged.
    """
    if unreadable not in UNREADABLE:
        raise ConfigurationError(f"unreadable={unreadable!r}: expected one of {', '.join(UNREADABLE)}.")
    train, test = _whole(source, unreadable)
    return subset(train, num_train, f"num_train, {source}"), subset(test, num_test, f"num_test, {source}")


def _whole(source: str, unreadable: str) -> tuple[ImageSet, ImageSet]:
    if source == "digits":
        return digits()
    if source == "fashion-mnist":
        return fashion_mnist()
    if not os.path.isdir(source):  # also of what can be no name of a file, where Path's raises
        raise ConfigurationError(
            f"data={source!r}: expected digits, fashion-mnist, or a folder with train/<class>/* and val/<class>/*, and "
            f"{Path(source).absolute()} is none: --data says where it is."
        )
    return image_folder(Path(source), unreadable)
