"""Data sets by their names, and how batches are read from them."""

import os
from pathlib import Path
from typing import TypeVar

import numpy as np

from comrope.errors import ConfigurationError
from comrope.lab.data.feed import AUGMENTATIONS as AUGMENTATIONS
from comrope.lab.data.feed import Batch as Batch
from comrope.lab.data.feed import Testing as Testing
from comrope.lab.data.feed import Training as Training
from comrope.lab.data.feed import as_is as as_is
from comrope.lab.data.feed import read_batches as read_batches
from comrope.lab.data.folder import Folder as Folder
from comrope.lab.data.folder import image_folder as image_folder
from comrope.lab.data.images import Images as Images
from comrope.lab.data.images import ImageSet as ImageSet
from comrope.lab.data.images import digits as digits
from comrope.lab.data.images import fashion_mnist as fashion_mnist
from comrope.lab.data.labelled import UNREADABLE as UNREADABLE
from comrope.lab.data.labelled import Labelled as Labelled

T = TypeVar("T", bound=Labelled)


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


def subset(samples: T, num: int | None, what: str) -> T:
    """The classes take turns, each giving its samples in a random order, till there are `num`."""
    if num is None:
        return samples
    if not 1 <= num <= len(samples):
        raise ConfigurationError(f"{what}: got {num}, expected 1 to {len(samples)}.")
    labels = samples.labels.numpy()
    shuffled = np.random.RandomState(0).permutation(len(labels))  # numpy keeps its legacy streams as they are
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    turn = np.arange(len(labels)) - np.searchsorted(labels[by_class], labels[by_class])  # rank within the class
    return samples.take(np.sort(by_class[np.argsort(turn, kind="stable")[:num]]).tolist())
