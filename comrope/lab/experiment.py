"""The settings that decide a run: how a model is trained, and what the configurations of all problems have in common."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from comrope.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from comrope.lab.problem import Problem

WEIGHTS = "weights.safetensors"
"""File name of the trained weights in a run's folder; other runs may start from them."""
PRECISIONS = ("no", "bf16", "fp16")
MOST_PIXELS = 8192
"""The longest side of an image: larger ones would need more memory than there is."""
MOST_REPEATS = 1000
"""The most copies of an image in an epoch."""
ENCODING_SETTINGS = ("block_size", "init", "std", "max_frequency", "base", "directions")
"""Settings of an encoding that a command line can give; None is the encoding's own default."""
RENAMED = {"enlargement": "resize_ratio"}
"""Names that settings had in earlier versions, in results on disk, and those they have now."""
FARTHEST = 1e15
"""The largest displacement of positions, as in `comrope.positions`, which would take long to import for a command line."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW, cosine schedule with linear warm-up (paper, section 4)."""

    epochs: int = 12
    batch_size: int = 64
    """Samples in a step, over all processes and accumulated micro-batches."""
    learning_rate: float = 1e-3
    angle_learning_rate: float | None = None
    """Learning rate of the encoding's parameters; that of the weights by default."""
    weight_decay: float = 0.01
    """Weight decay of the weights. Biases, norms and angles have none."""
    warmup: float = 0.02
    """Share of all steps in which the learning rate rises from 0."""
    repeats: int = 1
    """Differently augmented copies of an image in an epoch of unchanged length (repeated augmentation; DeiT: 3)."""
    precision: str = "no"
    """Precision of the forward pass: "no" (float32), "bf16" or "fp16", as in Accelerate."""
    seed: int = 0
    """Seed of the weights, the order of samples, augmentation and perturbation."""

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
    """Raises ConfigurationError for the first setting that is not as expected: name → (what is expected, whether it holds)."""
    for name, (what, holds) in expected.items():
        if not holds:
            raise ConfigurationError(f"{name}={getattr(settings, name)!r}: expected {what}.")


def _parsed(option: str) -> tuple[str, Any]:
    """Returns the name and the value of a setting given as name=value; a value that is no JSON is a string."""
    name, equals, value = option.partition("=")
    if not name.isidentifier() or not equals:
        raise ConfigurationError(f"encoding_options: got {option!r}, expected name=value.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def image_settings(experiment: Any) -> dict[str, tuple[str, bool]]:
    """Returns the ranges of the settings that configurations of images and of videos share, as `require` takes them."""
    sides = f"1 to {MOST_PIXELS} pixels a side"
    return {
        "image_size": (sides, all(1 <= side <= MOST_PIXELS for side in experiment.image_size)),
        "resize_ratio": ("1 to 16", 1 <= experiment.resize_ratio <= 16),
        "perturbation": (f"a number, 0 or more, up to {FARTHEST:g}", 0 <= experiment.perturbation <= FARTHEST),
    }


@dataclass(frozen=True)
class ExperimentConfig(ABC):
    """The settings that the experiments of all problems have in common; each problem has a subclass with its own."""

    kind: ClassVar[str]
    """The name of the problem: `comrope train <kind>`."""
    about: ClassVar[str]
    """One or two sentences on what is trained, for `comrope train --help`."""
    Options: ClassVar[type]
    """The options of `comrope evaluate <kind>`: a dataclass whose fields all have defaults."""

    recipe: Recipe = field(default_factory=Recipe)
    encoding: str = "comrope-ld"
    """Name of the encoding."""
    block_size: int | None = None
    """Block size of the encoding; its own default if None."""
    init: str | None = None
    """How the angles start: "normal", "identity" or "rope"; the encoding's own default if None."""
    std: float | None = None
    """Standard deviation of the angles with init="normal"."""
    max_frequency: float | None = None
    """Frequency of the fastest planes of "rope", and of init="rope", in radians per unit of position; 1 if None."""
    base: float | None = None
    """Ratio of the fastest to the slowest frequencies of "rope", and of init="rope"; 10000 if None."""
    directions: str | None = None
    """Directions of the planes of "rope", and of init="rope": "axes" or "spread"; "axes" if None."""
    encoding_options: tuple[str, ...] = ()
    """Further settings of the encoding, as name=value, such as num_directions=4: for those that other packages register."""
    frozen: bool = False
    """Whether the encoding's learned angles stay as they start."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Returns the configuration that `to_json` wrote, also in an earlier version; what it does not name has its default."""
        try:
            values = {RENAMED.get(key, key): tuple(v) if isinstance(v, list) else v for key, v in values.items()}
            return cls(**{**values, "recipe": Recipe(**values["recipe"])})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"this is no experiment of this version of comrope: {error}.") from error

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON has them."""
        return json.loads(json.dumps(asdict(self)))

    @property
    @abstractmethod
    def problem(self) -> "Problem":
        """The functions that read the data, build the model, train and evaluate it; imported only when they are needed."""

    @property
    def name(self) -> str:
        """The name of the run's folder, different for each configuration.

        It is made of the settings that do not have their defaults, so that a new setting renames no earlier run.
        """
        default = type(self)(recipe=Recipe()).to_json()
        own = {key: value for key, value in self.to_json().items() if value != default[key]}
        own["recipe"] = {key: value for key, value in asdict(self.recipe).items() if value != default["recipe"][key]}
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
        return f"{self._title()}-seed{self.recipe.seed}-{digest[:8]}"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the encoding that are not its own defaults."""
        named = {name: value for name in ENCODING_SETTINGS if (value := getattr(self, name)) is not None}
        return named | dict(_parsed(option) for option in self.encoding_options)

    def _title(self) -> str:
        """Returns the first part of the run's name: the encoding and its block size."""
        return self.encoding + ("" if self.block_size is None else f"-b{self.block_size}")
