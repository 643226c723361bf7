"""The scales of experiments: seconds on digits, hours on Fashion-MNIST, or the paper's protocol on ImageNet-1K."""

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from comrope.encodings import ENCODINGS, kind_of
from comrope.errors import ConfigurationError
from comrope.lab.classification import Condition, plain
from comrope.lab.experiment import ExperimentConfig, Recipe
from comrope.lab.images.config import ImageConfig
from comrope.lab.images.model import MODELS
from comrope.lab.reproduce import paper

BLOCK_SIZE = 8
"""The paper's block size, and the default of the encodings that have blocks."""
BLOCKED = ("liere", "comrope-ap", "comrope-ld", "comrope-mt")
"""Encodings whose block size is varied."""


Config = TypeVar("Config", bound=ExperimentConfig)


@dataclass(frozen=True)
class Scale:
    """Data, model, training and measurements that all recipes of one scale share."""

    name: str
    data: str
    model: str
    image_size: tuple[int, int]
    """(height, width) of the training images."""
    edges: tuple[int, ...]
    """Edges of the square test images in pixels."""
    recipe: Recipe
    num_train: int | None = None
    num_test: int | None = None
    seeds: tuple[int, ...] = (0,)
    """Seeds of table 1, and of the recipes that use its runs."""
    few_seeds: tuple[int, ...] = (0,)
    """Seeds of all other runs."""
    block_sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """Block sizes of figure 6; a model uses those that divide its heads."""
    rounds: int = 11
    """Number of rounds in which each encoding is timed."""
    encodings: tuple[str, ...] = tuple(ENCODINGS)
    """Encodings to compare; a recipe uses those of its own that are among them."""
    asked: dict[str, Any] = field(default_factory=dict)
    """The changes made by `changed`, for recipes of other problems, which have scales of their own."""

    def lengthened(self, recipe: Recipe) -> Recipe:
        """Returns a recipe with the epochs and the batch size that were asked for."""
        return replace(recipe, **{k: self.asked[k] for k in ("epochs", "batch_size") if k in self.asked})

    def applied(self, config: Config) -> Config:
        """Returns the configuration of another problem with the data, samples, epochs and batch size asked for."""
        data = {k: self.asked[k] for k in ("data", "num_train", "num_test") if k in self.asked}
        return replace(config, **data, recipe=self.lengthened(config.recipe))

    @property
    def num_heads(self) -> int:
        return MODELS[self.model]["num_heads"]

    @property
    def head_dim(self) -> int:
        return MODELS[self.model]["embed_dim"] // self.num_heads

    @property
    def patches(self) -> float:
        """Patches along a side of the images trained at."""
        return self.image_size[0] / MODELS[self.model]["patch_size"]

    @property
    def few_edges(self) -> tuple[int, ...]:
        """Edges of the smallest test images, of those of the trained size, and of the largest."""
        return tuple(dict.fromkeys((self.edges[0], self.image_size[0], self.edges[-1])))

    @property
    def differs(self) -> str:
        """A note on how data and model differ from the paper's; empty at the paper's scale."""
        if self.name == "paper":
            return ""
        return (
            f"Rows marked “paper” are the paper's own numbers, of {paper.WHERE}, one run each. Ours are of another data set "
            f"and model ({self.data}, “{self.model}”): compare orders and differences, not values."
        )

    def of(self, *encodings: str) -> list[str]:
        """Returns those of `encodings` that are to be compared; raises ConfigurationError if there are none."""
        found = self.among(*encodings)
        if not found:
            raise ConfigurationError(
                f"encodings: got {', '.join(self.encodings)}, but this recipe is about {', '.join(encodings)}."
            )
        return found

    def among(self, *encodings: str) -> list[str]:
        """Returns those of `encodings` that are to be compared, which may be none."""
        return [name for name in encodings if name in self.encodings]

    def block_sizes_of(self, encoding: str) -> list[int]:
        """Returns the block sizes that heads of this model can have; ComRoPE-AP needs an even number of blocks."""
        axes = 2 if encoding == "comrope-ap" else 1
        return [b for b in self.block_sizes if self.head_dim % (b * axes) == 0]

    def experiment(
        self, encoding: str, seed: int, *, perturbation: float = 1.0, block_size: int | None = None, **changes
    ) -> ImageConfig:
        """Returns the configuration of a run from scratch. Equal settings give equal configurations, so recipes share runs."""
        recipe = changes.pop("recipe", self.recipe)
        rate = changes.pop("angle_learning_rate", None)
        settings = {"data": self.data, "num_train": self.num_train, "num_test": self.num_test, "model": self.model}
        return ImageConfig(
            **{**settings, "image_size": self.image_size, **changes},
            encoding=encoding,
            block_size=None if block_size == BLOCK_SIZE else block_size,
            perturbation=float(perturbation),
            recipe=replace(recipe, seed=seed, angle_learning_rate=rate),
        )

    def squares(self, edges: tuple[int, ...] | None = None) -> tuple[Condition, ...]:
        """Returns the conditions of square test images, of all edges by default."""
        return tuple(plain([(edge, edge) for edge in edges or self.edges]))

    def changed(
        self,
        *,
        data: str | None = None,
        num_train: int | None = None,
        num_test: int | None = None,
        seeds: tuple[int, ...] = (),
        encodings: tuple[str, ...] = (),
        epochs: int | None = None,
        batch_size: int | None = None,
    ) -> "Scale":
        """Returns the scale with the given changes: data, seeds, encodings, epochs and batch size of every training.

        All samples of other data are used, unless `num_train` and `num_test` give their numbers.

        Raises:
            ConfigurationError: an encoding or a seed is invalid, or given twice.
        """
        for name in encodings:
            kind_of(name)
        if len(set(encodings)) < len(encodings):
            raise ConfigurationError(f"encodings: got {list(encodings)}, expected different ones.")
        if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**63 for seed in seeds):
            raise ConfigurationError(f"seeds: got {list(seeds)}, expected different ones, 0 or more, of 63 bits.")
        if data == "":
            raise ConfigurationError("data='': expected the name of a data set, or a folder.")
        asked: dict[str, Any] = {"data": data, "seeds": seeds, "few_seeds": seeds, "encodings": encodings}
        asked = {name: value for name, value in asked.items() if value}
        samples = {"num_train": num_train, "num_test": num_test}
        asked |= {name: value for name, value in samples.items() if value is not None or data}
        length = {"epochs": epochs, "batch_size": batch_size}
        length = {name: value for name, value in length.items() if value is not None}
        here = replace(self, **asked, asked=self.asked | asked | length)
        return replace(here, recipe=here.lengthened(self.recipe))


_QUICK = Recipe(epochs=2, batch_size=24, learning_rate=3e-3)
_SMALL = Recipe(epochs=4, batch_size=32, learning_rate=1e-3)
_PAPER = Recipe(epochs=200, batch_size=6144, learning_rate=1e-3, weight_decay=0.01, warmup=0.02, precision="bf16")

SCALES: dict[str, Scale] = {
    "demo": Scale(
        name="demo",
        data="digits",
        model="tiny",
        image_size=(16, 16),
        edges=(8, 16, 32),
        recipe=_QUICK,
        num_train=150,
        num_test=50,
        seeds=(0, 1),
        block_sizes=(2, 8),
        rounds=2,
    ),
    "small": Scale(
        name="small",
        data="fashion-mnist",
        model="small",
        image_size=(24, 24),
        edges=(12, 16, 20, 24, 28, 32, 40, 48, 56),
        recipe=_SMALL,
        num_train=20_000,
        num_test=2_000,
        seeds=(0, 1, 2, 3, 4),
        few_seeds=(0, 1, 2),
    ),
    "paper": Scale(
        name="paper",
        data="imagenet-1k",
        model="vit-b/16",
        image_size=(224, 224),
        edges=paper.SIZES,
        recipe=_PAPER,
    ),
}
"""They take seconds, hours on two cores, and days on a cluster."""
