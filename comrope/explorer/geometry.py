"""The patches of a model: how many along each axis, and how far apart in the units of the model's positions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from comrope._values import is_whole
from comrope.encodings import Encoding
from comrope.errors import ConfigurationError
from comrope.hosts._attachment import AttachedBackbone
from comrope.hosts._custom_model import CustomBackbone
from comrope.hosts._position_hooks import GridPositionHook, PatchPositionHook, PositionEmbeddingHook, PositionIdsHook
from comrope.hosts._proof import deterministic_eval

AXES = {1: ("token",), 2: ("row", "column"), 3: ("frame", "row", "column")}
MOST_TOKENS = 256
"""The displacements of text are shown up to this many tokens, unless a grid is given."""
MOST_PATCHES = 2**16
"""A larger grid than this many patches is a mistake."""


@dataclass(frozen=True)
class Geometry:
    """The patches of a model."""

    grid: tuple[int, ...]
    """Patches along each axis; tokens, for text."""
    step: tuple[float, ...]
    """The distance of neighbours on each axis, in the unit of the model's positions."""
    first: tuple[float, ...]
    """The position of the first patch."""

    @classmethod
    def relative(cls, grid: tuple[int, ...]) -> "Geometry":
        """Returns patches whose centres lie on [0, 1]ᴺ, as those of `comrope.positions.grid`."""
        return cls(grid, tuple(1 / n for n in grid), tuple(0.5 / n for n in grid))

    @classmethod
    def counted(cls, grid: tuple[int, ...]) -> "Geometry":
        """Returns patches, or tokens, whose positions are their numbers from 0 on."""
        return cls(grid, (1.0,) * len(grid), (0.0,) * len(grid))

    @property
    def axes(self) -> tuple[str, ...]:
        return AXES[len(self.grid)]

    @property
    def positions(self) -> Tensor:
        """The positions of the patches, (Π grid, N), float64, in row-major order."""
        each = zip(self.grid, self.step, self.first, strict=True)
        axes = [first + torch.arange(n, dtype=torch.float64) * step for n, step, first in each]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)

    def in_patches(self, positions: Tensor) -> Tensor:
        """Returns positions in patches."""
        return positions.double().cpu() / torch.tensor(self.step, dtype=torch.float64)


def check_grid(grid: Any, num_axes: int) -> tuple[int, ...] | None:
    """Returns `grid` as a tuple, or raises ConfigurationError unless it has `num_axes` whole numbers."""
    if num_axes not in AXES:
        raise ConfigurationError(f"this encoding has {num_axes} axes, and a page can show 1, 2 or 3.")
    if grid is None:
        return None
    counts = tuple(grid) if isinstance(grid, Sequence) and not isinstance(grid, str) else (grid,)
    if len(counts) != num_axes or not all(is_whole(n, 1) for n in counts):
        raise ConfigurationError(
            f"grid={grid!r}: expected {num_axes} whole number{'s' * (num_axes > 1)}, the patches along each axis "
            f"({', '.join(AXES[num_axes])}), such as {(256,) if num_axes == 1 else (8, 14, 14)[-num_axes:]}."
        )
    numbers = tuple(int(n) for n in counts)
    if not 2 <= math.prod(numbers) <= MOST_PATCHES:
        raise ConfigurationError(f"grid={grid!r} has {math.prod(numbers)} patches: expected 2 to {MOST_PATCHES}.")
    return numbers


def of_encoding(encoding: Encoding, grid: Any) -> Geometry:
    """Returns the patches of an encoding alone: relative positions on [0, 1]ᴺ, or whole numbers of tokens on one axis."""
    counts = check_grid(grid, encoding.num_axes)
    if encoding.num_axes == 1:
        return Geometry.counted(counts or (MOST_TOKENS,))
    if counts is None:
        raise ConfigurationError(
            f"{type(encoding).__name__} alone does not say how many patches there are: give "
            f"{_an_example(encoding.num_axes)}, the patches along each axis."
        )
    return Geometry.relative(counts)


def of_backbone(attached: AttachedBackbone, grid: Any) -> Geometry:
    """Returns the patches of a model with an encoding: those of its own input size, unless `grid` says otherwise."""
    backbone = attached.backbone
    attention: Any = attached.layers[0].attention
    counts = check_grid(grid, attention.encoding.num_axes)
    hooks = [hook.call for hook in attached.hooks]
    patches = next((hook for hook in hooks if isinstance(hook, PatchPositionHook)), None)
    if patches is not None:
        counts = counts or _native_grid(backbone, patches)
        places = patches.coordinate_grid.positions(counts, 0, like=torch.zeros((), dtype=torch.float64))
        axes = [axis.unique() for axis in places.unbind(-1)]
        step = tuple(float(axis[1] - axis[0]) if len(axis) > 1 else 1.0 for axis in axes)
        return Geometry(counts, step, tuple(float(axis[0]) for axis in axes))
    if any(isinstance(hook, (PositionIdsHook, PositionEmbeddingHook)) for hook in hooks):
        config = getattr(backbone.module, "config", None)
        longest = getattr(config, "max_position_embeddings", None) or MOST_TOKENS
        return Geometry.counted(counts or (min(longest, MOST_TOKENS),))
    if counts is None:
        raise ConfigurationError(
            f"{type(backbone.module).__name__} does not say how many patches there are: give "
            f"{_an_example(attention.encoding.num_axes)}, the patches along each axis of the samples that you think of."
        )
    absolute = isinstance(backbone, CustomBackbone) and not _is_relative(backbone)
    counted = absolute or any(isinstance(hook, GridPositionHook) for hook in hooks)
    return Geometry.counted(counts) if counted else Geometry.relative(counts)


def _an_example(num_axes: int) -> str:
    grid = (8, 14, 14)[-num_axes:]
    return f"grid={grid} (--grid {' '.join(map(str, grid))})"


def _native_grid(backbone: Any, hook: PatchPositionHook) -> tuple[int, ...]:
    """Returns the patches along each axis of the model's own example."""
    with deterministic_eval(backbone.module):
        backbone.run_example()
    positions = backbone.position_context.latest().positions
    positions = positions if positions.ndim == 2 else positions[0]
    patches = positions[hook.num_prefix_tokens : len(positions) - hook.num_suffix_tokens]
    return tuple(len(axis.unique()) for axis in patches.unbind(-1))


def _is_relative(backbone: Any) -> bool:
    """Returns whether the positions of the model's example lie within [0, 1]."""
    with deterministic_eval(backbone.module):
        backbone.run_example()
    positions = backbone.position_context.latest().positions
    return bool(((positions >= 0) & (positions <= 1)).all())
