"""Loads the data set that an image configuration names."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from comrope.errors import ConfigurationError
from comrope.lab.data.hugging_face import PREFIX, Source
from comrope.lab.data.labelled import UNREADABLE, subset
from comrope.lab.images.config import ImageConfig
from comrope.lab.images.folder import image_folder
from comrope.lab.images.in_memory import ImageSet, digits, fashion_mnist
from comrope.lab.images.rows import ImageStream, image_rows


def datasets(config: ImageConfig, unreadable: str = "fail") -> tuple[ImageSet | ImageStream, ImageSet]:
    """Returns the images to train on and those to evaluate on; the sets read last are cached."""
    return _cached(config.data, config.num_train, config.num_test, unreadable)


@lru_cache(maxsize=2)
def _cached(*arguments: Any) -> tuple[ImageSet | ImageStream, ImageSet]:
    *which, unreadable = arguments
    return load(*which, unreadable=unreadable)


def load(
    source: str, num_train: int | None = None, num_test: int | None = None, *, unreadable: str = "fail"
) -> tuple[ImageSet | ImageStream, ImageSet]:
    """Returns a data set's images to train on and those to test on.

    Args:
        source: "digits", "fashion-mnist", a folder with train/<class>/* and val/<class>/*, as ImageNet-1K comes, or
            "hf:…", as `comrope.lab.data.hugging_face.Source` has it.
        num_train, num_test: the numbers of images, as evenly over the classes as possible, always the same images. All
            if None. Of a stream `num_train` images are an epoch.
        unreadable: whether reading a damaged image file raises an error ("fail") or leaves it out of its batch
            ("skip").
    Raises:
        ConfigurationError: the name is unknown, or the set has fewer images.
        DataError: the data are missing or damaged.
    """
    if unreadable not in UNREADABLE:
        raise ConfigurationError(f"unreadable={unreadable!r}: expected one of {', '.join(UNREADABLE)}.")
    train, test = _whole(source, num_train, unreadable)
    if not isinstance(train, ImageStream):
        train = subset(train, num_train, f"num_train, {source}")
    return train, subset(test, num_test, f"num_test, {source}")


def _whole(source: str, num_train: int | None, unreadable: str) -> tuple[ImageSet | ImageStream, ImageSet]:
    if source == "digits":
        return digits()
    if source == "fashion-mnist":
        return fashion_mnist()
    if source.startswith(PREFIX):
        return image_rows(Source.parse(source), num_train, unreadable)
    if not os.path.isdir(source):  # Path.is_dir raises for strings that cannot be file names
        raise ConfigurationError(
            f"data={source!r}: expected digits, fashion-mnist, or a folder with train/<class>/* and val/<class>/*, and "
            f"{Path(source).absolute()} is none: --data says where it is. Before what `datasets` reads comes {PREFIX}"
        )
    return image_folder(Path(source), unreadable)
