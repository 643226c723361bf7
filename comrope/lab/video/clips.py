"""Video files with one label each: UCF-101 as it is unpacked, or folders named after their classes."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from comrope.errors import DataError
from comrope.lab.data.labelled import LabelledFiles, by_class
from comrope.lab.video import frames

SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v")
LAYOUT = (
    "put videos as train/<class>/* and val/<class>/*, or UCF-101 as it is unpacked, UCF-101/<class>/*.avi beside "
    "ucfTrainTestlist/trainlist01.txt (UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip, both from "
    "https://www.crcv.ucf.edu/data/UCF101.php)"
)


@dataclass(frozen=True)
class Clips(LabelledFiles):
    """Video files with one label each."""

    mirrors: bool = False

    def frames(self, index: int, shares: Sequence[float]) -> Tensor | None:
        """Returns the frames of a video at these shares of its duration: (frames, 3, height, width), uint8.

        Returns:
            The frames; None if the video cannot be read and unreadable="skip".
        Raises:
            DataError: the video cannot be read and unreadable="fail".
        """
        return self._read(index, lambda file: frames.read(file, shares), frames.DAMAGE)


def video_folder(root: Path, split: int = 1, unreadable: str = "fail") -> tuple[Clips, Clips]:
    """Returns the videos under `root` to train on and those to test on.

    If `root`, or its folder ucfTrainTestlist, has classInd.txt, it holds UCF-101: the lists trainlist01.txt,
    testlist01.txt and so on are beside classInd.txt, the videos in `root` or its folder UCF-101. Otherwise the videos
    are train/<class>/* and val/<class>/*.

    Args:
        root: the folder that holds everything.
        split: which of UCF-101's three splits.
        unreadable: whether reading a damaged video raises an error ("fail") or skips it ("skip").
    Raises:
        DataError: files are missing, or contradict one another.
    """
    for lists in (root / "ucfTrainTestlist", root):
        if (lists / "classInd.txt").is_file():
            return _ucf101(root, lists, split, unreadable)
    train, val = (Clips(**part, unreadable=unreadable) for part in by_class(root, SUFFIXES, LAYOUT))
    return train, val


def _ucf101(root: Path, lists: Path, split: int, unreadable: str) -> tuple[Clips, Clips]:
    videos = root / "UCF-101" if (root / "UCF-101").is_dir() else root
    classes = _classes(lists / "classInd.txt")
    files = [lists / f"{part}list{split:02}.txt" for part in ("train", "test")]
    train, test = (_listed(videos, file, classes) for file in files)
    paths = [path for path, _ in (*train, *test)]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} videos are listed twice in {files[0]} and {files[1]} (the first: {twice[0]}), expected each once, "
            f"to train on or to test on: {LAYOUT}."
        )
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} videos of UCF-101 are missing (the first: {missing[0]}): {LAYOUT}."
        )
    train, test = (
        Clips(
            np.array([os.fsencode(p) for p, _ in part]), torch.tensor([c for _, c in part]), classes, True, unreadable
        )
        for part in (train, test)
    )
    return train, test


def _classes(file: Path) -> tuple[str, ...]:
    """Returns the names of the classes, from the lines "1 ApplyEyeMakeup", "2 ApplyLipstick", …."""
    names: list[str] = []
    for line in _lines(file):
        number, *rest = line.split(maxsplit=1)
        if number != str(len(names) + 1) or not rest or rest[0] in names:
            raise DataError(
                f"{file}: got the line {line!r}, expected '{len(names) + 1} <class>', numbered from 1 on, and no class twice: "
                f"{LAYOUT}."
            )
        names += rest
    return tuple(names)


def _listed(videos: Path, file: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Returns the videos of a list with their classes.

    A line is "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1"; test lists leave out the number.
    """
    found = []
    for line in _lines(file):
        match = re.fullmatch(r"(?P<name>.+?)(\s+(?P<number>\d+))?", line)
        assert match is not None  # lines are not empty
        name, number = match["name"], match["number"]
        label = classes.index(Path(name).parent.name) if Path(name).parent.name in classes else None
        if label is None or number not in (None, str(label + 1)):
            raise DataError(f"{file}: {line!r} does not fit the classes of {file.with_name('classInd.txt')}: {LAYOUT}.")
        found.append((videos / name, label))
    return found


def _lines(file: Path) -> list[str]:
    try:
        if not os.path.isfile(file):
            raise FileNotFoundError("there is no such file")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}): {LAYOUT}.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{file} is empty: {LAYOUT}.")
    return lines
