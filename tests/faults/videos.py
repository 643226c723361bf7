"""Small videos of every kind that can be written here, and what is seen of them."""

import os
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from comrope.errors import DataError
from comrope.lab.video import frames
from comrope.lab.video.clips import Clips
from comrope.lab.video.loading import EvalClips
from tests.lab.video.helpers import STEP, numbers

SEED = 0
COUNT, SIZE = 10, (32, 48)
"""Frames of a video, and their (height, width)."""
ASKED, FEED = 4, (16, 16)
MIDDLES = [(i + 0.5) / ASKED for i in range(ASKED)]
SHOWN = [1, 3, 6, 8]
"""The frames that are shown at these shares of the duration."""
FINE = {"qmin": "1", "qmax": "2"}  # so that a frame's grey tells its number
KINDS: dict[str, dict[str, Any]] = {
    "mpeg4.mp4": {"codec": "mpeg4", "g": "4", "bf": "1", **FINE},
    "mpeg4.avi": {"codec": "mpeg4", "g": "4", "bf": "1", **FINE},
    "mpeg4.mkv": {"codec": "mpeg4", "g": "4", **FINE},
    "mjpeg.avi": {"codec": "mjpeg", "strict": "unofficial", **FINE},
    "mpeg2.mpg": {"codec": "mpeg2video", "g": "4", **FINE},
    "h264.mp4": {"codec": "libx264", "g": "4", "crf": "1"},
    "h264.mkv": {"codec": "libx264", "g": "4", "crf": "1"},
    "h264.mov": {"codec": "libx264", "g": "4", "bf": "0", "crf": "1"},
    "vp8.webm": {"codec": "libvpx", "g": "4", "crf": "4", "b": "1000000"},
    "vp9.webm": {"codec": "libvpx-vp9", "g": "4", "lossless": "1", "cpu-used": "8"},
}
KINDS = {name: settings for name, settings in KINDS.items() if settings["codec"] in av.codecs_available}
"""What the FFmpeg at hand can write; the first five it always can."""


def grey(size: tuple[int, int] = SIZE, count: int = COUNT) -> list[np.ndarray]:
    """Frame n is grey of level STEP · (n + 1), and rough."""
    rough = np.random.default_rng(SEED).integers(-8, 9, (*size, 1))
    rough -= round(rough.mean())
    return [(STEP * (n + 1) + rough).clip(0, 255).repeat(3, -1).astype(np.uint8) for n in range(count)]


def written(path: Path, name: str = "mpeg4.mp4", **changes: Any) -> Path:
    settings = {"rate": 25, "images": grey(), **KINDS[name], **changes}
    frames.write(path, **settings)
    return path


def clip(path: str | Path, unreadable: str = "fail") -> Clips:
    return Clips(np.array([os.fsencode(path)]), torch.tensor([0]), ("a",), unreadable=unreadable)


def shown(path: str | Path) -> list[int]:
    seen = clip(path).frames(0, MIDDLES)
    assert seen is not None
    return numbers(seen)


def wrong(path: Path) -> str | None:
    """What is wrong with how a file is read; None where it is right, be it read or refused."""
    begun = time.monotonic()
    try:
        batch = EvalClips(clip(path), ASKED, FEED).__getitems__([0])
    except DataError as error:
        if not str(error).startswith(f"{path} cannot be read (") or 'unreadable="skip"' not in str(error):
            return f"does not say what to do: {error}"
        left = EvalClips(clip(path, "skip"), ASKED, FEED).__getitems__([0])
        return None if left.skipped == (str(path),) and len(left.labels) == 0 else f"not left out: {left}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if batch.pixels.shape != (1, 3, ASKED, *FEED) or batch.pixels.dtype != torch.float32 or batch.skipped:
        return f"{batch.pixels.shape}, {batch.pixels.dtype}, skipped {batch.skipped}"
    if not (batch.pixels.isfinite().all() and batch.pixels.abs().max() <= 1):
        return "pixels that are no colours"
    return None if time.monotonic() - begun < 5 else "took longer than five seconds"


def refused(path: str | Path, match: str = "") -> None:
    with pytest.raises(DataError, match=rf"cannot be read \((?s:.*){match}(?s:.*)mend or remove the file.*skip"):
        clip(path).frames(0, MIDDLES)
