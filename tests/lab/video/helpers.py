"""What the video tests share: files whose frames say their own number, and a small experiment."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from comrope.lab.experiment import Recipe
from comrope.lab.video import frames
from comrope.lab.video.config import VideoConfig

STEP = 10  # grey levels from a frame to the next


def numbered(path: Path, count: int, size: tuple[int, int] = (32, 48), codec: str = "mpeg4", **options: str) -> Path:
    """A video whose frame n is grey of level STEP · (n + 1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [np.full((*size, 3), STEP * (n + 1), dtype=np.uint8) for n in range(count)]
    frames.write(path, images, rate=10, codec=codec, **{"qmin": "1", "qmax": "2", **options})
    return path


def at_times(path: Path, times: list[int], codec: str = "mpeg4") -> Path:
    """The same, frame n shown from times[n], in hundredths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=100, options={"g": "1", "qmin": "2", "qmax": "2"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for n, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), STEP * (n + 1), dtype=np.uint8), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(clip: torch.Tensor) -> list[int]:
    """Which frames a clip, (frames, 3, height, width), is made of."""
    return [round(float(frame.float().mean()) / STEP) - 1 for frame in clip]


def ucf101(root: Path, lists: str = "ucfTrainTestlist", videos: str = "UCF-101", count: int = 6) -> Path:
    """A folder as UCF-101 is unpacked: two classes, AVI files, one split; every third video is a test one."""
    listed = {"train": "", "test": ""}
    for label, name in enumerate(("Archery", "Biking"), start=1):
        for i in range(count):
            file = f"{name}/v_{name}_g{i:02}_c01.avi"
            numbered(root / videos / file, 10 + i, g="5")
            listed["test" if i % 3 == 2 else "train"] += f"{file}\r\n" if i % 3 == 2 else f"{file} {label}\r\n"
    (root / lists).mkdir(parents=True, exist_ok=True)
    (root / lists / "classInd.txt").write_text("1 Archery\n2 Biking\n")
    for part, text in listed.items():
        (root / lists / f"{part}list01.txt").write_text(text)
    return root


def quick(folder: Path, **changes) -> VideoConfig:
    """One epoch of three steps on motion clips in `folder`: a second or two."""
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=3e-3)
    settings = {"num_train": 24, "num_test": 10, "model": "tiny", "num_frames": 4, "recipe": recipe}
    return VideoConfig(data=f"motion:{folder}", **(settings | changes))
