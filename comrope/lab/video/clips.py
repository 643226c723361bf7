"""Videos in files, one label each: UCF-101 as it is unpacked, or folders named after their classes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import DatasetFolder

from comrope.errors import ConfigurationError, DataError
from comrope.lab.data import UNREADABLE
from comrope.lab.video import frames

SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v")
LAYOUT = (
    "put videos as train/<class>/* and val/<class>/*, or UCF-101 as it is unpacked, UCF-101/<class>/*.avi beside "
    "ucfTrainTestlist/trainlist01.txt (UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip, both from "
    "https://www.crcv.ucf.edu/data/UCF101.php)"
)


@dataclass(frozen=True)
class Clips:
    """Video files with one label each."""

    paths: np.ndarray
    """(n,), names as bytes: one buffer, so that workers need no copies of a million objects."""
    labels: Tensor
    """(n,), int64."""
    classes: tuple[str, ...]
    mirrors: bool = False
    """Whether a mirrored clip is of the same class, so that training may flip it."""
    unreadable: str = "fail"
    """Whether a video that cannot be read is to "fail", or be left out ("skip")."""

    def __post_init__(self):
        if self.unreadable not in UNREADABLE:
            raise ConfigurationError(f"unreadable={self.unreadable!r}: expected one of {', '.join(UNREADABLE)}.")

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The file."""
        return os.fsdecode(self.paths[index])

    def frames(self, index: int, shares: Sequence[float]) -> Tensor | None:
        """The frames of a video at these shares of its duration: (frames, 3, height, width), uint8.

        Returns:
            The frames; None where it cannot be read and unreadable="skip".
        Raises:
            DataError: it cannot be read and unreadable="fail".
        """
        try:
            return frames.read(self.name(index), shares)
        except frames.DAMAGE as error:
            if self.unreadable == "skip":
                return None
            raise DataError(
                f"{self.name(index)} cannot be read ({error}): mend or remove the file, or leave out what cannot be read "
                'with unreadable="skip".'
            ) from error

    def take(self, indices: Sequence[int]) -> Self:
        """The clips at `indices` alone."""
        return replace(self, paths=self.paths[indices], labels=self.labels[indices])


def video_folder(root: Path, split: int = 1, unreadable: str = "fail") -> tuple[Clips, Clips]:
    """The videos under `root` to train on, and to test on.

    UCF-101 where `root`, or its folder ucfTrainTestlist, has trainlist01.txt, testlist01.txt and classInd.txt; the videos are
    in `root` or its folder UCF-101. Otherwise train/<class>/* and val/<class>/*.

    Args:
        root: the folder of all.
        split: of UCF-101's three.
        unreadable: what is to come of a video that cannot be read: "fail", or "skip". It is found when it is read.
    Raises:
        DataError: files are missing, or do not fit together.
    """
    for lists in (root / "ucfTrainTestlist", root):
        if (lists / "classInd.txt").is_file():
            return _ucf101(root, lists, split, unreadable)
    train, val = (_by_class(root / part, unreadable) for part in ("train", "val"))
    if train.classes != val.classes:
        different = sorted(set(train.classes) ^ set(val.classes))
        raise DataError(
            f"{root}: {len(different)} classes are in one of train and val only ({', '.join(different[:5])}, …): {LAYOUT}."
        )
    return train, val


def _by_class(folder: Path, unreadable: str) -> Clips:
    try:
        found = DatasetFolder(str(folder), loader=frames.read, extensions=SUFFIXES)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise DataError(f"{folder} is no folder of videos by class ({error}): {LAYOUT}.") from error
    paths = np.array([os.fsencode(path) for path, _ in found.samples])
    return Clips(paths, torch.tensor(found.targets), tuple(found.classes), unreadable=unreadable)


def _ucf101(root: Path, lists: Path, split: int, unreadable: str) -> tuple[Clips, Clips]:
    videos = root / "UCF-101" if (root / "UCF-101").is_dir() else root
    classes = tuple(line.split()[-1] for line in _lines(lists / "classInd.txt"))
    train, test = (_listed(videos, lists / f"{part}list{split:02}.txt", classes) for part in ("train", "test"))
    missing = [path for path, _ in (*train, *test) if not path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(train) + len(test)} videos of UCF-101 are missing (the first: {missing[0]}): {LAYOUT}."
        )
    train, test = (
        Clips(
            np.array([os.fsencode(p) for p, _ in part]), torch.tensor([c for _, c in part]), classes, True, unreadable
        )
        for part in (train, test)
    )
    return train, test


def _listed(videos: Path, file: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Videos and their classes: "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1", the number left out in a test list."""
    found = []
    for line in _lines(file):
        name, *number = line.split()
        label = classes.index(Path(name).parent.name) if Path(name).parent.name in classes else None
        if label is None or number not in ([], [str(label + 1)]):
            raise DataError(f"{file}: {line!r} does not fit the classes of {file.with_name('classInd.txt')}: {LAYOUT}.")
        found.append((videos / name, label))
    return found


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}): {LAYOUT}.") from error
    if not lines:
        raise DataError(f"{file} is empty: {LAYOUT}.")
    return lines
