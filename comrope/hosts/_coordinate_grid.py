"""Coordinates of image and video patches, in the units that a host model uses for its positions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from comrope.errors import ConfigurationError


@dataclass(frozen=True)
class CoordinateGrid:
    """Maps patch indices (row, column, …) to coordinates, and places class and register tokens on the same grid.

    The defaults give `comrope.positions.grid`: patch centres on [0, 1]², prefix tokens in the middle. The other units are
    those of hosts with a RoPE of their own, whose frequencies are in radians per such a unit.
    """

    unit: str = "relative"
    """"relative": (i + ½) / n. "index": i. "centred": 2(i + ½) / n − 1. "spread": from −1 to 1, both included."""
    prefix: str = "middle"
    """Where prefix tokens are: in the "middle" of the grid; at the "first" patch; or at the "origin", which is not rotated."""
    offset: float = 0.0
    """Added to the index i."""
    reference_shape: tuple[float, float] | None = None
    """With "index": indices are rescaled to a grid of this shape, i · reference / n."""
    divisor: str = "own"
    """With "relative" and "centred": n is the axis's "own" number of patches, or the "min" or "max" over both axes."""
    shift: float | None = None
    """In training, each axis is shifted by a uniform draw from [−shift, shift], in the unit above."""
    jitter: float | None = None
    """In training, each axis is scaled by a log-uniform draw from [1/jitter, jitter]."""
    rescale: float | None = None
    """In training, both axes are scaled by the same log-uniform draw from [1/rescale, rescale]."""

    def __post_init__(self):
        if self.prefix not in ("middle", "first", "origin"):
            raise ConfigurationError(f"prefix={self.prefix!r}: expected 'middle' or 'first', of the patches.")

    def positions(
        self,
        shape: Sequence[int],
        num_prefix_tokens: int,
        num_suffix_tokens: int = 0,
        *,
        like: Tensor,
        training: bool = False,
    ) -> Tensor:
        """Returns the positions of all tokens on a grid of `shape`, (prefix + patches + suffix tokens, N).

        Patches are in row-major order, the last axis fastest. The result is on the device of `like`, in float64 or float32.
        """
        indices = [torch.arange(n, dtype=torch.float64, device=like.device) for n in shape]
        axes = [self._axis_coordinates(axis, each, shape) for axis, each in enumerate(indices)]
        patches = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
        return self._with_extra_tokens(patches, num_prefix_tokens, num_suffix_tokens, like, training)

    def positions_at(
        self, indices: Tensor, shape: Tensor, num_prefix_tokens: int, *, like: Tensor, training: bool = False
    ) -> Tensor:
        """Returns positions (B, prefix + patches, N) where each sample has its own grid.

        Args:
            indices: (B, patches, N), indices of the patches.
            shape: (B, N), shape of each sample's grid.
        """
        sizes = [n.unsqueeze(1) for n in shape.double().unbind(-1)]
        axes = enumerate(indices.double().unbind(-1))
        patches = torch.stack([self._axis_coordinates(axis, each, sizes) for axis, each in axes], dim=-1)
        return self._with_extra_tokens(patches, num_prefix_tokens, 0, like, training)

    def pitch(self, shape: Sequence[int]) -> tuple[float, ...]:
        """Returns how far apart neighbouring patches are on each axis of a grid of `shape`."""
        first, second = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        return tuple(
            (self._axis_coordinates(axis, second, shape) - self._axis_coordinates(axis, first, shape)).item()
            for axis in range(len(shape))
        )

    def _with_extra_tokens(
        self, patches: Tensor, num_prefix: int, num_suffix: int, like: Tensor, training: bool
    ) -> Tensor:
        """Returns the coordinates of patches (…, patches, N) with those of the prefix and suffix tokens around them."""
        if training:
            patches = self._augment(patches)
        if self.prefix == "origin":
            prefix = torch.zeros_like(patches[..., :1, :])
        elif self.prefix == "first":
            prefix = patches[..., :1, :]
        else:
            prefix = (patches.amin(-2, keepdim=True) + patches.amax(-2, keepdim=True)) / 2
        before, after = (prefix.expand(*patches.shape[:-2], count, -1) for count in (num_prefix, num_suffix))
        return torch.cat((before, patches, after), dim=-2).to(torch.promote_types(torch.float32, like.dtype))

    def _axis_coordinates(self, axis: int, indices: Tensor, shape: Sequence[Any]) -> Tensor:
        """Returns the coordinates of indices on one axis; `shape` has one number, or one tensor (B, 1), for each axis."""
        n = shape[axis]
        count = n if self.divisor == "own" else _extreme(shape, self.divisor)
        moved = indices + self.offset
        if self.unit == "relative":
            return (moved + 0.5) / count
        if self.unit == "centred":
            return 2 * (moved + 0.5) / count - 1
        if self.unit == "spread":
            moved = 2 * indices / (n - 1 if isinstance(n, Tensor) or n > 1 else 1) - 1
        return moved if self.reference_shape is None else moved * (self.reference_shape[axis] / n)

    def _augment(self, patches: Tensor) -> Tensor:
        single = patches.float()
        if self.shift is not None:
            patches = patches + single.new_empty(single.shape[-1]).uniform_(-self.shift, self.shift)
        for factor, num_draws in ((self.jitter, patches.shape[-1]), (self.rescale, 1)):
            if factor is not None:
                bound = math.log(factor)
                patches = patches * single.new_empty(num_draws).uniform_(-bound, bound).exp()
        return patches


def _extreme(shape: Sequence[Any], which: str) -> Any:
    """Returns the smallest ("min") or largest ("max") size of a grid."""
    if isinstance(shape[0], Tensor):
        return torch.stack(list(shape)).amin(0) if which == "min" else torch.stack(list(shape)).amax(0)
    return min(shape) if which == "min" else max(shape)
