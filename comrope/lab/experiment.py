"""What decides a run: the experiment and its training recipe, as plain values."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

from comrope.errors import ConfigurationError, DataError

WEIGHTS = "weights.safetensors"
"""The trained model, in the folder of its run; other runs may start from it."""
PRECISIONS = ("no", "bf16", "fp16")
MOST_PIXELS = 8192
"""On a side of an image: larger ones would need more memory than there is."""
MOST_REPEATS = 1000
"""Of an image in an epoch."""
FARTHEST = 1e15
"""Of what positions are moved by: as for `comrope.positions`, which this module does not import for the command line's sake."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW, cosine schedule with linear warm-up (paper, section 4)."""

    epochs: int = 12
    batch_size: int = 64
    """Samples in a step, over all processes and accumulated micro-batches."""
    learning_rate: float = 1e-3
    angle_learning_rate: float | None = None
    """Of the encoding's parameters, where it is another one."""
    weight_decay: float = 0.01
    """Of the weights; biases, norms and angles have none."""
    warmup: float = 0.02
    """Share of all steps."""
    repeats: int = 1
    """How often an image comes in an epoch, differently augmented; an epoch stays as long as it is (DeiT: 3)."""
    precision: str = "no"
    """"no" (float32), "bf16" or "fp16": of the forward pass, as Accelerate has it."""
    seed: int = 0

    def __post_init__(self):
        expected = {
            "epochs": ("1 or more", self.epochs >= 1),
            "batch_size": ("1 or more", self.batch_size >= 1),
            "learning_rate": ("a number, 0 or more", 0 <= self.learning_rate < math.inf),
            "angle_learning_rate": ("a number, 0 or more", 0 <= (self.angle_learning_rate or 0) < math.inf),
            "weight_decay": ("a number, 0 or more", 0 <= self.weight_decay < math.inf),
            "warmup": ("a share, 0 to 1", 0 <= self.warmup <= 1),
            "repeats": (f"1 to {MOST_REPEATS}", 1 <= self.repeats <= MOST_REPEATS),
            "precision": (f"one of {', '.join(PRECISIONS)}", self.precision in PRECISIONS),
            "seed": ("0 or more, of 63 bits", 0 <= self.seed < 2**63),
        }
        require(self, expected)


def require(settings: Any, expected: dict[str, tuple[str, bool]]) -> None:
    """Raises ConfigurationError for the first of the settings that is not as expected: name → (what, whether it is)."""
    for name, (what, holds) in expected.items():
        if not holds:
            raise ConfigurationError(f"{name}={getattr(settings, name)!r}: expected {what}.")


def pictures(experiment: Any) -> dict[str, tuple[str, bool]]:
    """What is expected of experiments on images and on videos alike."""
    sides = f"1 to {MOST_PIXELS} pixels a side"
    return {
        "image_size": (sides, all(1 <= side <= MOST_PIXELS for side in experiment.image_size)),
        "enlargement": ("1 to 16", 1 <= experiment.enlargement <= 16),
        "perturbation": (f"a number, 0 or more, up to {FARTHEST:g}", 0 <= experiment.perturbation <= FARTHEST),
    }


@dataclass(frozen=True)
class Trial:
    """What the experiments of all problems have in common."""

    kind: ClassVar[str]
    """The problem, of `comrope.lab.run_folder.KINDS`."""
    module: ClassVar[str]
    """Where it is written down: `data`, `build`, `task` and `measure` (see `comrope.lab.runs`)."""

    recipe: Recipe = field(default_factory=Recipe)
    encoding: str = "comrope-ld"
    """Name of an encoding."""
    block_size: int | None = None
    """Of the encoding; its own default if None."""
    init: str | None = None
    """How the angles start: "normal", "identity" or "rope"; the encoding's own default if None."""
    std: float | None = None
    """Of the angles with init="normal"."""
    max_frequency: float | None = None
    """Radians per unit of position that the fastest planes of "rope", and of init="rope", turn; 1 if None."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """What `to_json` made of one; settings that it does not name are as they are by default."""
        try:
            lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
            return cls(**{**values, **lists, "recipe": Recipe(**values["recipe"])})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"this is no experiment of this version of comrope: {error}.") from error

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def name(self) -> str:
        """A name that no other experiment has, and that says the most important.

        Made of what is not as it is by default, so that a setting that is new to the laboratory renames no earlier run.
        """
        default = type(self)(recipe=Recipe()).to_json()
        own = {key: value for key, value in self.to_json().items() if value != default[key]}
        own["recipe"] = {key: value for key, value in asdict(self.recipe).items() if value != default["recipe"][key]}
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
        return f"{self._title()}-seed{self.recipe.seed}-{digest[:8]}"

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the encoding that are not its own defaults."""
        names = ("block_size", "init", "std", "max_frequency")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _title(self) -> str:
        """The encoding, with the size of its blocks."""
        return self.encoding + ("" if self.block_size is None else f"-b{self.block_size}")


@dataclass(frozen=True)
class Experiment(Trial):
    """All that decides the weights of an image classifier."""

    kind = "images"
    module = "comrope.lab.classify"

    data: str = "digits"
    """"digits", "fashion-mnist", or a folder with train/<class>/ and val/<class>/, as ImageNet-1K comes."""
    num_train: int | None = None
    """Training images, the same number of each class; all if None."""
    num_test: int | None = None
    """Test images, likewise."""
    model: str = "small"
    """"tiny", "demo", "small", "vit-s/16", "vit-b/16", or "timm:<name>" to attach the encoding to a model of timm."""
    encoding: str = "comrope-ld"
    """Name of an encoding. "ape" on a model of timm leaves it as it is."""
    start: str | None = None
    """Weights to start from, of a model of timm: "pretrained" (downloaded by timm), or the name of a run beside this one."""
    image_size: tuple[int, int] = (28, 28)
    """(height, width) in pixels, trained at."""
    augment: str = "basic"
    """"basic": resize, crop, flip (where a mirrored image is of the same class). "deit": DeiT's, with mixup and CutMix."""
    enlargement: float = 1.1
    """Images are resized to so many times the size that is then cropped from them."""
    perturbation: float = 1.0
    """σ, in patches; drawn anew for every step (Eq. 11)."""

    def __post_init__(self):
        require(self, pictures(self))

    def _title(self) -> str:
        return f"{super()._title()}-s{self.perturbation:g}"
