"""The settings that decide the weights of a video classifier, and what it can be evaluated under."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comrope.lab.experiment import ExperimentConfig, image_settings, require
from comrope.lab.options import ClassifierOptions

if TYPE_CHECKING:
    from comrope.lab.problem import Problem
    from comrope.lab.video.clips import Clips
    from comrope.lab.video.problem import Condition

MOST_FRAMES = 4096
"""The most frames of a clip."""


@dataclass(frozen=True)
class VideoOptions(ClassifierOptions):
    """The measurements of a video classifier: at every combination of sizes, frames, offsets and perturbations."""

    frames: tuple[int, ...] = ()
    """Numbers of frames of a clip; as many as in training by default."""


@dataclass(frozen=True)
class VideoConfig(ExperimentConfig):
    """All that decides the weights of a video classifier."""

    kind = "video"
    about = "Train a video classifier, on UCF-101, any folder of videos, or made-up clips whose class is their motion."
    Options = VideoOptions

    data: str = "motion"
    """"motion", written into runs/motion; "motion:<folder>", written there; or a folder, as UCF-101 is unpacked or with
    train/<class>/ and val/<class>/."""
    split: int = 1
    """Which of UCF-101's three splits."""
    num_train: int | None = None
    """Number of training clips, as many of each class; all if None."""
    num_test: int | None = None
    """Number of test clips, likewise."""
    model: str = "small"
    """"tiny", "small" or "paper"."""
    encoding: str = "comrope-ld"
    """Name of the encoding; "ape" is a code book of frames, rows and columns."""
    num_frames: int = 8
    """Frames of a training clip: one from each of so many equal parts of the video."""
    image_size: tuple[int, int] = (32, 32)
    """Height and width of training clips in pixels."""
    resize_ratio: float = 1.1
    """Ratio of the size that frames are resized to, to the size that is then cropped from them."""
    flip: bool | None = None
    """Whether half of the training clips are mirrored. If None, only UCF-101's are: elsewhere a class may be a direction."""
    perturbation: float = 1.0
    """Standard deviation σ of the perturbation of rows and columns, not of frames, in patches (Eq. 11)."""

    def __post_init__(self):
        frames = {"num_frames": (f"1 to {MOST_FRAMES}", 1 <= self.num_frames <= MOST_FRAMES)}
        require(self, {**image_settings(self), **frames, "split": ("1, 2 or 3", self.split in (1, 2, 3))})

    @property
    def problem(self) -> "Problem[VideoConfig, VideoOptions, Clips, Clips, Condition]":
        from comrope.lab.video import problem

        return problem

    def _title(self) -> str:
        return f"{self.kind}-{super()._title()}-s{self.perturbation:g}"
