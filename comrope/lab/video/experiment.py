"""What decides a video classifier, as plain values."""

from dataclasses import dataclass

from comrope.lab.experiment import Trial, pictures, require

MOST_FRAMES = 4096
"""Of a clip."""


@dataclass(frozen=True)
class VideoExperiment(Trial):
    """All that decides the weights of a video classifier."""

    kind = "video"
    module = "comrope.lab.video.problem"

    data: str = "motion"
    """"motion", written into runs/motion; "motion:<folder>", written there; or a folder, as UCF-101 is unpacked or with
    train/<class>/ and val/<class>/."""
    split: int = 1
    """Of UCF-101's three."""
    num_train: int | None = None
    """Training clips, the same number of each class; all if None."""
    num_test: int | None = None
    """Test clips, likewise."""
    model: str = "small"
    """"tiny", "small" or "paper"."""
    encoding: str = "comrope-ld"
    """Name of an encoding; "ape" is a code book of frames, rows and columns."""
    num_frames: int = 8
    """Frames of a clip, trained at: one of each of so many equal parts of the video."""
    image_size: tuple[int, int] = (32, 32)
    """(height, width) in pixels, trained at."""
    enlargement: float = 1.1
    """Frames are resized to so many times the size that is then cropped from them."""
    flip: bool | None = None
    """Mirror half of the clips in training; if None, of UCF-101 alone: elsewhere a class may be a direction."""
    perturbation: float = 1.0
    """σ, in patches, along rows and columns; drawn anew for every step (Eq. 11). Frames are held still."""

    def __post_init__(self):
        frames = {"num_frames": (f"1 to {MOST_FRAMES}", 1 <= self.num_frames <= MOST_FRAMES)}
        require(self, {**pictures(self), **frames, "split": ("1, 2 or 3", self.split in (1, 2, 3))})

    def _title(self) -> str:
        return f"{self.kind}-{super()._title()}-s{self.perturbation:g}"
