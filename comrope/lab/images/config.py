"""The configuration of an image classifier."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comrope.lab.experiment import ExperimentConfig, image_settings, require
from comrope.lab.options import ClassifierOptions

if TYPE_CHECKING:
    from comrope.lab.classification import Condition
    from comrope.lab.images.in_memory import ImageSet
    from comrope.lab.images.rows import ImageStream
    from comrope.lab.problem import Problem


@dataclass(frozen=True)
class ImageConfig(ExperimentConfig):
    """All settings that determine the weights of an image classifier."""

    kind = "images"
    about = (
        "Train an image classifier with any encoding. One process, or many: `torchrun --nproc-per-node 8 -m comrope train "
        "images …`, or `accelerate launch -m comrope …`."
    )
    Options = ClassifierOptions

    data: str = "digits"
    """"digits", "fashion-mnist", a folder with train/<class>/ and val/<class>/, or "hf:" and what `datasets` reads."""
    num_train: int | None = None
    """Number of training images, balanced over the classes; all if None. Of streamed images, those in an epoch."""
    num_test: int | None = None
    """Number of test images, likewise."""
    model: str = "small"
    """"tiny", "demo", "small", "vit-s/16", "vit-b/16", or "timm:<name>" to attach the encoding to a model of timm."""
    encoding: str = "comrope-ld"
    """Name of the encoding. With "ape" a model of timm stays as it is."""
    start: str | None = None
    """Weights that a model of timm starts from: "pretrained" (downloaded by timm), or the name of a run beside this one."""
    image_size: tuple[int, int] = (28, 28)
    """Height and width of training images in pixels."""
    augment: str = "basic"
    """"basic": resize, crop, flip (where a mirrored image is of the same class). "deit": DeiT's, with mixup and CutMix."""
    resize_ratio: float = 1.1
    """Ratio of the size that images are resized to before cropping, to the size of the crop."""
    perturbation: float = 1.0
    """Standard deviation σ of the perturbation of positions in training, in patches (Eq. 11); drawn anew for every step."""

    absolute: bool = False
    """Whether tokens get APE's code book in addition to a rotary encoding."""
    shared_angles: bool = False
    """Whether all layers share one set of angles."""

    def __post_init__(self):
        require(self, image_settings(self))

    @property
    def problem(self) -> "Problem[ImageConfig, ClassifierOptions, ImageSet | ImageStream, ImageSet, Condition]":
        from comrope.lab.images import problem

        return problem

    def _title(self) -> str:
        return f"{super()._title()}-s{self.perturbation:g}"
