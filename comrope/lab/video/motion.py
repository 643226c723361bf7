"""Generated videos whose class is the motion of the objects in them. The content of the frames says nothing about the class.

Two handwritten digits (scikit-learn's) move across a still photograph (one of scikit-learn's two), one in the upper and
one in the lower part of the frame, each to the right or to the left. The class is the pair of directions: both to the
right, both to the left, clockwise or anticlockwise. A digit that moves to the left takes the positions of its motion to
the right in reverse order, and no digit enters the strip between the two parts. So, if patches are no higher than that
strip, the four classes of a scene consist of the same patches at other positions, and a model that does not see
positions is right one time in four. The encoding of the files keeps this true: each frame is coded by itself with a
constant quantiser, so that the pixels of a patch do not depend on the time at which it is shown.
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
"""Edge of a frame, and height of its upper and lower part, in pixels (16 remain between); frames in a video, and per second."""
_FORWARD = {"right": (True, True), "left": (False, False), "clockwise": (True, False), "anticlockwise": (False, True)}
"""Whether the upper and the lower digit move to the right."""
_PARTS = ("train", "val")
_VERSION = 1  # of the drawing; files of other versions are not used


def motion(
    folder: Path | None = None, num_train: int | None = None, num_test: int | None = None, unreadable: str = "fail"
) -> tuple[Clips, Clips]:
    """Returns the videos to train on and those to test on. Videos that do not exist yet are written, each atomically.

    Training and test videos have different digits and different parts of the photographs. Classes alternate, and a
    longer set begins with the videos of a shorter one.

    Args:
        folder: the folder of the files, which are train/<class>/*.mp4 and val/<class>/*.mp4 in a subfolder for this
            version; runs/motion if None.
        num_train, num_test: the numbers of videos; 2000 and 500 if None.
        unreadable: whether reading a damaged video raises an error ("fail") or skips it ("skip").
    Raises:
        ConfigurationError: a number of videos is less than 1.
        DataError: a file cannot be written.
    """
    root = (FOLDER if folder is None else folder) / f"v{_VERSION}"
    counts = (NUM_TRAIN if num_train is None else num_train, NUM_TEST if num_test is None else num_test)
    if min(counts) < 1:
        raise ConfigurationError(f"num_train={num_train}, num_test={num_test}: expected at least one clip of each.")
    train, test = (_clips(root, part, count, unreadable) for part, count in zip(_PARTS, counts, strict=True))
    return train, test


def images(part: str, index: int, motion: str | None = None) -> np.ndarray:
    """Returns the frames of a video: (frames, height, width, 3), uint8.

    Args:
        part: "train" or "val".
        index: the index of the scene.
        motion: the class; if None, the class of this scene in the data set.
    """
    seed = int(np.random.SeedSequence((_PARTS.index(part), index)).generate_state(1)[0])
    rng = np.random.RandomState(seed)  # unlike Generator's, its numbers are the same in every version of numpy
    video = np.repeat(_background(part, rng)[None], NUM_FRAMES, axis=0)
    for top, forward in zip((0, EDGE - LANE), _FORWARD[motion or CLASSES[index % len(CLASSES)]], strict=True):
        digit = _digit(part, rng)  # (size, size, 1), in [0, 1]
        colour = rng.uniform(192, 255, size=3)
        size = len(digit)
        row = top + rng.randint(LANE - size + 1)
        begin, end = rng.uniform(0, 0.3), rng.uniform(0.7, 1)
        columns = np.rint(np.linspace(begin, end, NUM_FRAMES) * (EDGE - size)).astype(int)
        for image, column in zip(video, columns if forward else columns[::-1], strict=True):
            window = image[row : row + size, column : column + size]
            window[:] = np.rint(window * (1 - digit) + colour * digit)
    return video


def _digit(part: str, rng: np.random.RandomState) -> np.ndarray:
    """Returns the opacity of a digit of 11 to 16 pixels: (size, size, 1), in [0, 1]."""
    known = _digits()[_PARTS.index(part)]
    pixels = (known.pixels[rng.randint(len(known)), 0].numpy() + 1) / 2
    size = rng.randint(11, 17)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))[..., None]


def _background(part: str, rng: np.random.RandomState) -> np.ndarray:
    """Returns a darkened square of a photograph: from its left half for training, from its right half for testing."""
    photograph = _photographs()[rng.randint(2)]
    height, width, _ = photograph.shape
    edge = rng.randint(EDGE, min(height, width // 2) + 1)
    row, column = rng.randint(height - edge + 1), rng.randint(width // 2 - edge + 1)
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
