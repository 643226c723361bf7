"""Options of `comrope evaluate` that several problems share."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, get_args

from comrope.errors import ConfigurationError
from comrope.lab.experiment import MOST_PIXELS

Scaling = Literal["none", "extrapolate", "linear", "ntk", "ntk-by-parts", "yarn", "riflex", "entropy"]
"""`comrope.scaling.METHODS` and "none". That module takes long to import for a command line."""


class _Scaled(Protocol):
    @property
    def scaling(self) -> str: ...


Condition = TypeVar("Condition", bound=_Scaled)


@dataclass(frozen=True)
class ClassifierOptions:
    """A classifier is evaluated at every combination of these sizes, offsets, perturbations and scalings."""

    resolutions: tuple[str, ...] = ()
    """Sizes of test images in pixels: 224, or 224x320 for height x width; the size trained at by default."""
    offsets: tuple[float, ...] = ()
    """Offsets ρ in canvas widths, by which all coordinates of an image are moved together."""
    direction: Literal["random", "first-axis", "last-axis", "steepest"] | None = None
    """Direction of the offsets: each image by its own N(0, ρ²I), or all by ρ along an axis or the fastest plane's direction."""
    perturbations: tuple[float, ...] = ()
    """Standard deviations σ, in patches, by which each patch is moved by itself."""
    seed: int | None = None
    """Seed of offsets and perturbations."""
    scalings: tuple[Scaling, ...] = ()
    """How frequencies are scaled at sizes beyond the trained one."""

    def sizes(self) -> list[tuple[int, int]]:
        """Returns the resolutions as (height, width)."""
        return [parse_size(text) for text in self.resolutions]

    def displacements(self) -> Iterator[tuple[float, str, float, int]]:
        """Yields every combination of offsets and perturbations: (offset, its direction, perturbation, seed).

        Raises:
            ConfigurationError: a direction without offsets, or a seed without anything random.
        """
        if self.direction is not None and not any(self.offsets):
            raise ConfigurationError(
                f"--direction {self.direction} says where --offsets go: give some that are not 0, or leave it out."
            )
        if self.seed is not None and not any((*self.offsets, *self.perturbations)):
            raise ConfigurationError(
                f"--seed {self.seed} is for --offsets and --perturbations: give some that are not 0, or leave it out."
            )

        for offset, sigma in itertools.product(self.offsets or (0.0,), self.perturbations or (0.0,)):
            direction = self.direction or "random" if offset else "random"
            yield offset, direction, sigma, (self.seed or 0) if offset or sigma else 0


def check_scaling(name: str) -> None:
    """Raises ConfigurationError unless frequencies can be scaled so."""
    if name not in get_args(Scaling):
        raise ConfigurationError(f"scaling={name!r}: expected one of {', '.join(get_args(Scaling))}.")


def among_larger(conditions: Sequence[Condition], is_larger: Callable[[Condition], bool]) -> list[Condition]:
    """Returns the conditions without scaling, and of the others those of a size beyond the trained one.

    Raises:
        ConfigurationError: none remain.
    """
    found = [c for c in conditions if c.scaling == "none" or is_larger(c)]
    if not found:
        raise ConfigurationError(
            f"scalings {', '.join(dict.fromkeys(c.scaling for c in conditions))}: they are for more than trained at: give "
            "larger sizes, more frames or greater lengths as well."
        )
    return found


def parse_size(text: str) -> tuple[int, int]:
    """Returns (height, width) from "224" or "224x320"; raises ConfigurationError for anything else."""
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigurationError(f"resolution {text!r}: expected pixels, as 224, or height x width, as 224x320.")
    size = int(parts[0]), int(parts[-1])
    if max(size) > MOST_PIXELS:
        raise ConfigurationError(f"resolution {text!r}: expected at most {MOST_PIXELS} pixels a side.")
    return size
