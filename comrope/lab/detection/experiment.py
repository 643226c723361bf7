"""What decides a detection run, as plain values."""

from dataclasses import dataclass

from comrope.lab.experiment import MOST_PIXELS, Trial, require


@dataclass(frozen=True)
class DetectionExperiment(Trial):
    """All that decides the weights of a detector.

    The backbone is a plain ViT with its absolute positions, kept by all encodings, under ViTDet's simple feature pyramid
    (arXiv:2203.16527), not the ViT-CoMer of the paper.
    """

    kind = "detection"
    module = "comrope.lab.detection.problem"

    data: str = "scenes"
    """"scenes", composed on the spot into runs/data/scenes, "scenes:<folder>" to have them there, or a folder laid out as COCO:
    annotations/instances_{train,val}2017.json with images in images/{train,val}2017 or {train,val}2017."""
    num_train: int | None = None
    """Training images, the first ones; all if None (of scenes: 400)."""
    num_test: int | None = None
    """Test images, likewise (of scenes: 100)."""
    model: str = "small"
    """"tiny", "small", "vit-s/16", or "timm:<name>" for a VisionTransformer of timm as the backbone."""
    head: str = "boxes"
    """"boxes": Faster R-CNN. "masks": Mask R-CNN, which needs segmentations."""
    encoding: str = "comrope-ld"
    """Name of an encoding, added to the backbone's own absolute positions. "ape" is the backbone as it is."""
    init: str | None = "identity"
    """How learned angles start: "identity" turns nothing, so that a pretrained backbone starts as it was."""
    start: str | None = None
    """Weights that the backbone starts from: "pretrained" (downloaded by timm), a file of weights of a VisionTransformer, or
    the name of a run beside this one, of images or of detection. None: from scratch."""
    short_edges: tuple[int, ...] = (96,)
    """Pixels that the shorter side is resized to: one of these at random in training, the last of them in testing."""
    long_edge: int = 128
    """Pixels that the longer side may have at most after that."""
    drop_path: float = 0.0
    """Stochastic depth of the backbone."""

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

    def _title(self) -> str:
        return f"{self.kind}-{super()._title()}"
