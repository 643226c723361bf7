"""Files with one label each: what folders of images and of videos have in common."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import DatasetFolder

from comrope.errors import ConfigurationError, DataError

UNREADABLE = ("fail", "skip")
T = TypeVar("T")


class Labelled(Protocol):
    """Samples with one label each, in a fixed order."""

    @property
    def labels(self) -> Tensor:
        """(n,), int64."""
        ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a sample is called in messages; no two have the same name."""
        ...

    def take(self, indices: Sequence[int]) -> Self:
        """The samples at `indices` alone."""
        ...


@dataclass(frozen=True)
class LabelledFiles:
    """Files with one label each, in the order of classes and names."""

    paths: np.ndarray
    """(n,), names as bytes: one buffer, so that workers need no copies of a million objects."""
    labels: Tensor
    """(n,), int64."""
    classes: tuple[str, ...]
    mirrors: bool
    """Whether a mirrored sample is of the same class, so that training may flip it."""
    unreadable: str = "fail"
    """Whether a file that cannot be read is to "fail", or be left out ("skip")."""

    def __post_init__(self):
        if self.unreadable not in UNREADABLE:
            raise ConfigurationError(f"unreadable={self.unreadable!r}: expected one of {', '.join(UNREADABLE)}.")

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The file."""
        return os.fsdecode(self.paths[index])

    def take(self, indices: Sequence[int]) -> Self:
        """The files at `indices` alone."""
        return replace(self, paths=self.paths[indices], labels=self.labels[indices])

    def _read(self, index: int, read: Callable[[str], T], damage: tuple[type[BaseException], ...]) -> T | None:
        """What `read` makes of a file; None where it raises `damage` and unreadable="skip".

        Raises:
            DataError: it cannot be read and unreadable="fail".
        """
        try:
            return read(self.name(index))
        except damage as error:
            return leave_out(self.name(index), error, self.unreadable)


def leave_out(name: str, error: BaseException, unreadable: str) -> None:
    """Logs, as a warning, that a file is skipped.

    Raises:
        DataError: it is not to be, for unreadable is not "skip".
    """
    if unreadable != "skip":
        raise DataError(
            f"{name} cannot be read ({error}): mend or remove the file, or leave out what cannot be read: "
            'unreadable="skip", --unreadable skip.'
        ) from error
    logging.getLogger("comrope").warning("skipped %s, which cannot be read (%s)", name, error)


def by_class(root: Path, suffixes: Sequence[str], layout: str) -> list[dict[str, Any]]:
    """Paths, labels and classes of the files in train/<class>/ and in val/<class>/, as `LabelledFiles` takes them.

    Args:
        root: the folder of both.
        suffixes: of the files that count, such as ".png"; in any case.
        layout: what to do about it, for messages.
    Raises:
        DataError: a folder is missing, a class has no such file, or the classes of the two differ.
    """
    parts = []
    for folder in (root / "train", root / "val"):
        try:
            found = DatasetFolder(str(folder), loader=Path, extensions=tuple(suffixes))
        except OSError as error:
            raise DataError(f"{folder} is no folder of files by class ({error}): {layout}.") from error
        paths = np.array([os.fsencode(path) for path, _ in found.samples])
        parts.append({"paths": paths, "labels": torch.tensor(found.targets), "classes": tuple(found.classes)})
    train, val = (set(part["classes"]) for part in parts)
    if train != val:
        different = sorted(train ^ val)
        raise DataError(
            f"{root}: {len(different)} classes are in one of train and val only ({', '.join(different[:5])}, …): {layout}."
        )
    return parts
