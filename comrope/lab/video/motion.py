"""Videos whose class is how things in them move, written on the spot: what is in the frames says nothing about the class.

Two handwritten digits (scikit-learn's) pass over a still photograph (one of scikit-learn's two), one in the upper and one in
the lower part of the frame, each to the right or to the left. Both to the right, both to the left, or round one another: that
is the class. A digit's way to the left is its way to the right played backward, and in between there is a strip that no digit
enters. So, as long as a patch is no higher than that strip, the four classes of a scene are made of the very same patches in
other places, and a model that sees patches without their positions answers one in four. The files hold up what is meant: each
frame is coded by itself with one and the same quantiser, so that a patch's bits do not depend on when it is shown.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from comrope.errors import ConfigurationError, DataError
from comrope.lab.images.in_memory import Images, digits
from comrope.lab.results import atomic_file
from comrope.lab.video import frames
from comrope.lab.video.clips import Clips

CLASSES = ("right", "left", "clockwise", "anticlockwise")
FOLDER = Path("runs/motion")
NUM_TRAIN, NUM_TEST = 2000, 500
EDGE, LANE, NUM_FRAMES, RATE = 48, 16, 24, 24
"""Pixels of a frame's edge, and of the upper and lower parts' height, 16 between them; frames of a video, and in a second."""
_FORWARD = {"right": (True, True), "left": (False, False), "clockwise": (True, False), "anticlockwise": (False, True)}
"""Whether the upper and the lower digit move to the right."""
_PARTS = ("train", "val")
_VERSION = 1  # of what is drawn: files of another one are not taken


def motion(
    folder: Path | None = None, num_train: int | None = None, num_test: int | None = None, unreadable: str = "fail"
) -> tuple[Clips, Clips]:
    """The videos to train on, and to test on; those that are not in the folder yet are written, each whole or not at all.

    Digits and photographs of the two are different ones. Classes take turns; a longer set begins with a shorter one.

    Args:
        folder: where the files are, as train/<class>/*.mp4 and val/<class>/*.mp4 in a folder of this version; runs/motion if
            None.
        num_train, num_test: how many; 2000 and 500 if None.
        unreadable: "fail" or "skip".
    Raises:
        ConfigurationError: fewer than one video.
        DataError: the files cannot be written.
    """
    root = (FOLDER if folder is None else folder) / f"v{_VERSION}"
    counts = (NUM_TRAIN if num_train is None else num_train, NUM_TEST if num_test is None else num_test)
    if min(counts) < 1:
        raise ConfigurationError(f"num_train={num_train}, num_test={num_test}: expected at least one clip of each.")
    train, test = (_clips(root, part, count, unreadable) for part, count in zip(_PARTS, counts, strict=True))
    return train, test


def images(part: str, index: int, motion: str | None = None) -> np.ndarray:
    """The frames of a video: (frames, height, width, 3), uint8.

    Args:
        part: "train" or "val".
        index: of the scene.
        motion: its class; the one that the set gives the scene if None.
    """
    seed = int(np.random.SeedSequence((_PARTS.index(part), index)).generate_state(1)[0])
    draws = np.random.RandomState(seed)  # numpy keeps its legacy streams as they are
    video = np.repeat(_background(part, draws)[None], NUM_FRAMES, axis=0)
    for top, forward in zip((0, EDGE - LANE), _FORWARD[motion or CLASSES[index % len(CLASSES)]], strict=True):
        digit = _digit(part, draws)  # (size, size, 1), in [0, 1]
        colour = draws.uniform(192, 255, size=3)
        size = len(digit)
        row = top + draws.randint(LANE - size + 1)
        begin, end = draws.uniform(0, 0.3), draws.uniform(0.7, 1)
        columns = np.rint(np.linspace(begin, end, NUM_FRAMES) * (EDGE - size)).astype(int)
        for image, column in zip(video, columns if forward else columns[::-1], strict=True):
            window = image[row : row + size, column : column + size]
            window[:] = np.rint(window * (1 - digit) + colour * digit)
    return video


def _digit(part: str, draws: np.random.RandomState) -> np.ndarray:
    """A digit, 11 to 16 pixels high, as how much it covers: (size, size, 1), in [0, 1]."""
    known = _digits()[_PARTS.index(part)]
    pixels = (known.pixels[draws.randint(len(known)), 0].numpy() + 1) / 2
    size = draws.randint(11, 17)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))[..., None]


def _background(part: str, draws: np.random.RandomState) -> np.ndarray:
    """A dimmed square of a photograph: of its left half to train on, of its right half to test."""
    photograph = _photographs()[draws.randint(2)]
    height, width, _ = photograph.shape
    edge = draws.randint(EDGE, min(height, width // 2) + 1)
    row, column = draws.randint(height - edge + 1), draws.randint(width // 2 - edge + 1)
    column += _PARTS.index(part) * (width - width // 2)
    square = Image.fromarray(photograph[row : row + edge, column : column + edge])
    return np.asarray(square.resize((EDGE, EDGE), Image.Resampling.BILINEAR)) // 3


@lru_cache(maxsize=1)
def _digits() -> tuple[Images, Images]:
    return digits()


@lru_cache(maxsize=1)
def _photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    found: Any = load_sample_images()
    return found.images


def _clips(root: Path, part: str, count: int, unreadable: str) -> Clips:
    names = [CLASSES[i % len(CLASSES)] for i in range(count)]
    paths = [root / part / name / f"{i:06}.mp4" for i, name in enumerate(names)]
    for i, path in enumerate(paths):
        if not path.exists():
            _write(path, images(part, i))
    labels = torch.arange(count) % len(CLASSES)
    return Clips(np.array([os.fsencode(p) for p in paths]), labels, CLASSES, unreadable=unreadable)


def _write(path: Path, video: np.ndarray) -> None:
    try:
        with atomic_file(path) as draft:
            frames.write(draft, list(video), rate=RATE, codec="mpeg4", g="1", qmin="4", qmax="4")
    except DataError:
        raise
    except frames.DAMAGE as error:
        raise DataError(
            f"{path} cannot be written ({error}): name another folder, as data='motion:<folder>'."
        ) from error
