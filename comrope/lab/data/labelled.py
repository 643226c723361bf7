"""Files with one label each: code that folders of images and of videos share."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from comrope.errors import ConfigurationError, DataError

UNREADABLE = ("fail", "skip")
T = TypeVar("T")
Samples = TypeVar("Samples", bound="Labelled")


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
        """Returns the sample's name, for messages; no two are the same."""
        ...

    def take(self, indices: Sequence[int]) -> Self:
        """Returns the samples at `indices` alone."""
        ...


def about(samples: Any) -> dict[str, Any]:
    """Returns what identifies a data set: number, classes, and a checksum.

    The checksum is the data set's own or, if it has none, that of labels and file names without their folders.
    """
    found: dict[str, Any] = {"count": len(samples), "classes": list(getattr(samples, "classes", ()))}
    if hasattr(samples, "checksum"):
        found["sum"] = samples.checksum()
    elif hasattr(samples, "labels"):
        names = "\n".join(os.path.basename(samples.name(index)) for index in range(len(samples)))
        found["sum"] = hashlib.sha256(samples.labels.numpy().tobytes() + os.fsencode(names)).hexdigest()
    return found


def subset(samples: Samples, num: int | None, what: str) -> Samples:
    """Returns `num` samples, always the same ones, as evenly over the classes as possible; all if None.

    Args:
        samples: those to choose from.
        num: how many.
        what: the name of the setting, for messages.
    """
    if num is None:
        return samples
    if not 1 <= num <= len(samples):
        raise ConfigurationError(f"{what}: got {num}, expected 1 to {len(samples)}.")
    labels = samples.labels.numpy()
    # RandomState's numbers, unlike Generator's, are the same in every version of numpy.
    shuffled = np.random.RandomState(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - np.searchsorted(labels[by_class], labels[by_class])  # within the class
    return samples.take(np.sort(by_class[np.argsort(rank, kind="stable")[:num]]).tolist())


@dataclass(frozen=True)
class LabelledFiles:
    """Files with one label each, in the order of classes and names."""

    paths: np.ndarray
    """(n,), file names as bytes: one buffer, since workers would copy a million separate objects."""
    labels: Tensor
    """(n,), int64."""
    classes: tuple[str, ...]
    mirrors: bool
    """Whether a mirrored sample is of the same class, so that training may flip it."""
    unreadable: str = "fail"
    """Whether a file that cannot be read raises an error ("fail") or is left out ("skip")."""

    def __post_init__(self):
        if self.unreadable not in UNREADABLE:
            raise ConfigurationError(f"unreadable={self.unreadable!r}: expected one of {', '.join(UNREADABLE)}.")

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Returns the name of the file."""
        return os.fsdecode(self.paths[index])

    def take(self, indices: Sequence[int]) -> Self:
        """Returns the files at `indices` alone."""
        return replace(self, paths=self.paths[indices], labels=self.labels[indices])

    def _read(self, index: int, read: Callable[[str], T], damage: tuple[type[BaseException], ...]) -> T | None:
        """Returns `read(file)`; None if that raises one of `damage` and unreadable="skip".

        Raises:
            DataError: the file cannot be read and unreadable="fail".
        """
        try:
            return read(self.name(index))
        except damage as error:
            return leave_out(self.name(index), error, self.unreadable)


def leave_out(name: str, error: BaseException, unreadable: str) -> None:
    """Logs a warning that a file is skipped.

    Raises:
        DataError: unreadable is not "skip".
    """
    if unreadable != "skip":
        raise DataError(
            f"{name} cannot be read ({error}): mend or remove the file, or leave out what cannot be read: "
            'unreadable="skip", --unreadable skip.'
        ) from error
    logging.getLogger("comrope").warning("skipped %s, which cannot be read (%s)", name, error)


def by_class(root: Path, suffixes: Sequence[str], layout: str) -> list[dict[str, Any]]:
    """Returns paths, labels and classes of the files in train/<class>/ and in val/<class>/, as arguments of `LabelledFiles`.

    Args:
        root: the folder that train and val are in.
        suffixes: the suffixes of the files that count, such as ".png", in lower case; those of files may be in any.
        layout: the expected layout, for messages.
    Raises:
        DataError: a folder is missing, a class has no such file, or the classes of the two differ.
    """
    parts = []
    for folder in (root / "train", root / "val"):
        try:
            classes = sorted(e.name for e in os.scandir(folder) if _is_folder(e) and not e.name.startswith("."))
            above = (os.path.realpath(folder),)
            there = [list(files_below(str(folder / name), above)) for name in classes]
        except OSError as error:
            raise DataError(f"{folder} is no folder of files by class ({error}): {layout}.") from error
        files = [[path for path in found if path.lower().endswith(tuple(suffixes))] for found in there]
        others = [path for found in there for path in found if not path.lower().endswith(tuple(suffixes))]
        if others:
            logging.getLogger("comrope").warning(
                "%s: %d files do not count, such as %s: only %s do", folder, len(others), others[0], ", ".join(suffixes)
            )
        empty = [name for name, found in zip(classes, files, strict=True) if not found]
        if empty or not classes:
            what = f"in {', '.join(empty[:5])}" if empty else "by class"
            raise DataError(f"{folder} has no files {what} ({', '.join(suffixes)} count): {layout}.")
        paths = np.array([os.fsencode(path) for found in files for path in found])
        labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(found) for found in files]))
        parts.append({"paths": paths, "labels": labels, "classes": tuple(classes)})
    train, val = (set(part["classes"]) for part in parts)
    if train != val:
        different = sorted(train ^ val)
        raise DataError(
            f"{root}: {len(different)} classes are in one of train and val only ({', '.join(different[:5])}, …): {layout}."
        )
    return parts


def files_below(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yields the files below a folder in the order of their names, its own before those of folders in it.

    Hidden files, hidden folders, pipes and other special files are left out. A broken link is yielded, so that the
    error of reading it names it. A link back to one of the folders `above` is not followed; a warning is logged.

    Raises:
        OSError: a folder cannot be read.
    """
    real = os.path.realpath(folder)
    if any(path == real or path.startswith(f"{real}{os.sep}") for path in above):
        logging.getLogger("comrope").warning("%s leads back to a folder that it is in: not followed", folder)
        return
    entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda entry: entry.name)
    yield from (entry.path for entry in entries if _is_file(entry))
    for entry in entries:
        if _is_folder(entry):
            yield from files_below(entry.path, (*above, real))


def _is_file(entry: os.DirEntry) -> bool:
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder. For links os.path decides, since the entry raises OSError for one that leads to itself."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
