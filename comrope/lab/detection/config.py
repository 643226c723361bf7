"""The configuration of a detector, and the options of its evaluation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comrope.lab.experiment import MOST_PIXELS, ExperimentConfig, require
from comrope.lab.options import parse_size

if TYPE_CHECKING:
    from comrope.lab.detection.coco import CocoSet
    from comrope.lab.detection.problem import Edges
    from comrope.lab.problem import Problem


@dataclass(frozen=True)
class DetectionOptions:
    """The average precision of a detector is measured at each of these sizes."""

    resolutions: tuple[str, ...] = ()
    """Sizes in pixels: 96x160 for a shorter edge of 96 and a longer one of 160 at most. For 96 alone, the longest edge
    is scaled with the shorter one. The default is the size trained at."""

    def sizes(self) -> list[tuple[int, int]]:
        """Returns the resolutions as pairs of numbers of pixels."""
        return [parse_size(text) for text in self.resolutions]


@dataclass(frozen=True)
class DetectionConfig(ExperimentConfig):
    """All settings that determine the weights of a detector.

    The backbone is a plain ViT with ViTDet's simple feature pyramid (arXiv:2203.16527), where the paper has ViT-CoMer.
    It keeps its absolute positions with every encoding.
    """

    kind = "detection"
    about = "Train an object detector on COCO, on a folder laid out as it is, or on made-up scenes."
    Options = DetectionOptions

    data: str = "scenes"
    """"scenes", generated in runs/data/scenes; "scenes:<folder>", generated in that folder; or a folder in COCO's
    layout: annotations/instances_{train,val}2017.json, images in images/{train,val}2017 or {train,val}2017."""
    num_train: int | None = None
    """Number of training images, the first ones; all if None (400 scenes)."""
    num_test: int | None = None
    """Number of test images, likewise (100 scenes)."""
    model: str = "small"
    """"tiny", "small", "vit-s/16", or "timm:<name>" for a VisionTransformer of timm as the backbone."""
    head: str = "boxes"
    """"boxes": Faster R-CNN. "masks": Mask R-CNN, which needs segmentations."""
    encoding: str = "comrope-ld"
    """Name of the encoding, added to the backbone's own absolute positions. "ape" is the backbone alone."""
    init: str | None = "identity"
    """How learned angles start. With "identity" all rotations are the identity at first, so a backbone is unchanged."""
    start: str | None = None
    """Weights that the backbone starts from: "pretrained" (downloaded by timm), a file of weights of a VisionTransformer, or
    the name of a run beside this one, of images or of detection. None: from scratch."""
    short_edges: tuple[int, ...] = (96,)
    """Pixels that the shorter side is resized to: one of these at random in training, the last of them in evaluation."""
    long_edge: int = 128
    """Pixels that the longer side may have at most after that."""
    drop_path: float = 0.0
    """Rate of stochastic depth in the backbone."""

    def __post_init__(self):
        pixels = f"1 to {MOST_PIXELS} pixels"
        edges = bool(self.short_edges) and all(1 <= edge <= MOST_PIXELS for edge in self.short_edges)
        require(
            self,
            {
                "short_edges": (f"{pixels}, one edge at least", edges),
                "long_edge": (pixels, 1 <= self.long_edge <= MOST_PIXELS),
                "drop_path": ("a share, 0 or more and less than 1", 0 <= self.drop_path < 1),
            },
        )

    @property
    def problem(self) -> "Problem[DetectionConfig, DetectionOptions, CocoSet, CocoSet, Edges]":
        from comrope.lab.detection import problem

        return problem

    def _title(self) -> str:
        return f"{self.kind}-{super()._title()}"
