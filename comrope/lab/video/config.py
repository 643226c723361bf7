"""The configuration of a video classifier, and the options of its evaluation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comrope.lab.experiment import ExperimentConfig, image_settings, require
from comrope.lab.options import ClassifierOptions

if TYPE_CHECKING:
    from comrope.lab.problem import Problem
    from comrope.lab.video.clips import Clips
    from comrope.lab.video.problem import Condition

MOST_FRAMES = 4096
"""The largest number of frames in a clip."""


@dataclass(frozen=True)
class VideoOptions(ClassifierOptions):
    """A video classifier is evaluated at every combination of these sizes, numbers of frames, offsets, perturbations
    and scalings."""

    frames: tuple[int, ...] = ()
    """Numbers of frames in a clip; the number trained with by default."""


@dataclass(frozen=True)
class VideoConfig(ExperimentConfig):
    """All settings that determine the weights of a video classifier."""

    kind = "video"
    about = "Train a video classifier, on UCF-101, any folder of videos, or made-up clips whose class is their motion."
    Options = VideoOptions

    data: str = "motion"
    """"motion", generated in runs/motion; "motion:<folder>", generated in that folder; or a folder of videos: UCF-101
    as it is unpacked, or train/<class>/ and val/<class>/."""
    split: int = 1
    """Which of UCF-101's three splits."""
    num_train: int | None = None
    """Number of training clips, balanced over the classes; all if None."""
    num_test: int | None = None
    """Number of test clips, likewise."""
    model: str = "small"
    """"tiny", "small" or "paper"."""
    encoding: str = "comrope-ld"
    """Name of the encoding; "ape" learns a code book over frames, rows and columns."""
    num_frames: int = 8
    """Number of frames in a training clip: one from each of as many equal parts of the video."""
    image_size: tuple[int, int] = (32, 32)
    """Height and width of training clips in pixels."""
    resize_ratio: float = 1.1
    """Ratio of the size that frames are resized to before cropping, to the size of the crop."""
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
