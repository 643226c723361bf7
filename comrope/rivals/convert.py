"""Frequencies to and from the tensors in which others keep them.

A class here is a format. `read` returns frequencies ω (L, N, H, D/2) in radians per patch: layers, axes, heads, planes. Axes
are (row, column), or (frame, row, column), and L and H are 1 where the format has one set for all layers or heads. `write` is
the inverse; it raises ConfigurationError where the format cannot hold ω. The features of plane p are 2p and 2p + 1, which many
models have as p and p + D/2: `to_neighbours` reorders their projections. Scores are the same where ω is, up to where the tokens
without a patch are: those that a model does not rotate are at its origin of positions.

>>> import torch, comrope
>>> from comrope.rivals import convert
>>> mixed = torch.randn(2, 12, 6, 32)  # `freqs` of a timm model: (column, row), layers, heads, planes
>>> frequencies = convert.TimmMixedFreqs().read(mixed)
>>> pe = comrope.encoding("rope-mixed", num_heads=6, head_dim=64, num_axes=2)  # for positions that count patches
>>> pe.set_spectrum(None, frequencies[0].unsqueeze(-1))
>>> torch.equal(convert.TimmMixedFreqs().write(frequencies), mixed)
True
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from comrope._planes import half_layout
from comrope._values import described, is_floating, is_whole
from comrope.errors import ConfigurationError, InputError
from comrope.rivals.m_rope import plane_axes

TOLERANCE = 1e-6
"""Largest difference, relative to the largest frequency, between values of which a format has only one."""


class Format(ABC):
    """How others keep frequencies."""

    @abstractmethod
    def read(self, tensor: Tensor) -> Tensor:
        """Returns ω (L, N, H, D/2), in radians per patch.

        Raises:
            InputError: a tensor of another shape.
        """

    @abstractmethod
    def write(self, frequencies: Tensor) -> Tensor:
        """Returns the tensor of ω (L, N, H, D/2).

        Raises:
            InputError: frequencies of another shape.
            ConfigurationError: frequencies that the format cannot hold; the message says why.
        """


@dataclass(frozen=True)
class TimmMixedFreqs(Format):
    """`freqs` of timm's RotaryEmbeddingMixed, (2, L, H, D/2), axes (column, row)."""

    def read(self, tensor: Tensor) -> Tensor:
        _check(tensor, "freqs", (2, None, None, None))
        return tensor.flip(0).transpose(0, 1)

    def write(self, frequencies: Tensor) -> Tensor:
        _check(frequencies, "frequencies", (None, 2, None, None))
        return frequencies.transpose(0, 1).flip(0)


@dataclass(frozen=True)
class RoPEViTFreqs(Format):
    """`freqs` in checkpoints of rope-vit's mixed models, (2, L, H·D/2), axes (column, row)."""

    num_heads: int

    def read(self, tensor: Tensor) -> Tensor:
        _check(tensor, "freqs", (2, None, None))
        if tensor.shape[2] % self.num_heads:
            raise InputError(
                f"freqs: got {tuple(tensor.shape)}; expected as many planes in each of {self.num_heads} heads."
            )
        return TimmMixedFreqs().read(tensor.unflatten(2, (self.num_heads, -1)))

    def write(self, frequencies: Tensor) -> Tensor:
        _check(frequencies, "frequencies", (None, 2, self.num_heads, None))
        return TimmMixedFreqs().write(frequencies).flatten(2)


@dataclass(frozen=True)
class MochiPosFrequencies(Format):
    """`pos_frequencies` of Mochi 1, (3, H, D/2), axes (frame, row, column), on a grid of (rows, columns).

    Mochi scales rows and columns so that each grid has the area 192²: ω in radians per patch is that of one grid.
    """

    grid: tuple[int, int]

    def __post_init__(self) -> None:
        _check_grid(self.grid)

    def read(self, tensor: Tensor) -> Tensor:
        _check(tensor, "pos_frequencies", (3, None, None))
        return (tensor * self._scale(tensor)).unsqueeze(0)

    def write(self, frequencies: Tensor) -> Tensor:
        _check(frequencies, "frequencies", (None, 3, None, None))
        return _single(frequencies, 0, "layers") / self._scale(frequencies)

    def _scale(self, like: Tensor) -> Tensor:
        spacing = 192 / math.sqrt(math.prod(self.grid))
        return like.new_tensor([1.0, spacing, spacing]).view(3, 1, 1)


@dataclass(frozen=True)
class GoldenGateFreqs(Format):
    """`freqs_hFP` of golden gate RoPE, (H, D/2, 2), on a grid of (rows, columns).

    `axes` is "xy", (column, row), in the post that it is from, and "hw", (row, column), in Falcon-Perception. The outermost
    patch centres have the coordinates ±√(columns/rows), ±√(rows/columns): ω in radians per patch is that of one grid.
    """

    grid: tuple[int, int]
    axes: str = "xy"

    def __post_init__(self) -> None:
        _check_grid(self.grid, least=2)
        if self.axes not in ("xy", "hw"):
            raise ConfigurationError(f"axes={self.axes!r}: expected 'xy' or 'hw'.")

    def read(self, tensor: Tensor) -> Tensor:
        _check(tensor, "freqs_hFP", (None, None, 2))
        ordered = tensor.flip(-1) if self.axes == "xy" else tensor
        return (ordered * self._spacing(tensor)).permute(2, 0, 1).unsqueeze(0)

    def write(self, frequencies: Tensor) -> Tensor:
        _check(frequencies, "frequencies", (None, 2, None, None))
        ordered = _single(frequencies, 0, "layers").permute(1, 2, 0) / self._spacing(frequencies)
        return ordered.flip(-1) if self.axes == "xy" else ordered

    def _spacing(self, like: Tensor) -> Tensor:
        rows, columns = self.grid
        aspect = math.sqrt(rows / columns)
        return like.new_tensor([2 * aspect / (rows - 1), 2 / aspect / (columns - 1)])


@dataclass(frozen=True)
class AxialInvFreq(Format):
    """`inv_freq` (n,) of axial RoPE: n planes along the first of `num_axes` axes, the same along the second, and so on."""

    num_axes: int = 2

    def read(self, tensor: Tensor) -> Tensor:
        _check(tensor, "inv_freq", (None,))
        axial = torch.block_diag(*[tensor.unsqueeze(0)] * self.num_axes)
        return axial.view(1, self.num_axes, 1, -1)

    def write(self, frequencies: Tensor) -> Tensor:
        _check(frequencies, "frequencies", (None, self.num_axes, None, None))
        shared = _single(_single(frequencies, 0, "layers"), 1, "heads")  # (N, D/2)
        count, rest = divmod(shared.shape[1], self.num_axes)
        if rest:
            raise ConfigurationError(
                f"{shared.shape[1]} planes cannot be shared out evenly among {self.num_axes} axes."
            )
        inverse = torch.stack([row[i * count : (i + 1) * count] for i, row in enumerate(shared)])
        _check_zero(
            shared - torch.block_diag(*inverse.split(1)), shared, "each plane rotates along one axis, in their order"
        )
        return _single(inverse, 0, "axes")


@dataclass(frozen=True)
class DINOv3Periods(Format):
    """`periods` (D/4,) of DINOv3, on a grid of (rows, columns), with coordinates in [−1, 1] on both axes."""

    grid: tuple[int, int]

    def __post_init__(self) -> None:
        _check_grid(self.grid)

    def read(self, tensor: Tensor) -> Tensor:
        return AxialInvFreq().read(4 * math.pi / tensor) / self._sizes(tensor)

    def write(self, frequencies: Tensor) -> Tensor:
        _check(frequencies, "frequencies", (None, 2, None, None))
        periods = 4 * math.pi / AxialInvFreq().write(frequencies * self._sizes(frequencies))
        if not (periods.isfinite() & (periods > 0)).all():
            raise ConfigurationError("planes that do not rotate, or rotate backwards, have no period.")
        return periods

    def _sizes(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.grid).view(2, 1, 1)


@dataclass(frozen=True)
class MRoPEInvFreq(Format):
    """`inv_freq` (D/2,) of M-RoPE, for axes (frame, row, column), and the `layout` and `sections` of `MRoPE`."""

    layout: str = "chunked"
    sections: Sequence[int] | None = None

    def read(self, tensor: Tensor) -> Tensor:
        _check(tensor, "inv_freq", (None,))
        return (tensor * self._mask(tensor)).view(1, 3, 1, -1)

    def write(self, frequencies: Tensor) -> Tensor:
        _check(frequencies, "frequencies", (None, 3, None, None))
        shared = _single(_single(frequencies, 0, "layers"), 1, "heads")
        mask = self._mask(shared)
        _check_zero(shared * (1 - mask), shared, "each plane rotates along the one axis that its section says")
        return (shared * mask).sum(0)

    def _mask(self, like: Tensor) -> Tensor:
        axis = plane_axes(like.shape[-1], self.layout, self.sections)
        return torch.nn.functional.one_hot(axis, 3).T.to(like)


def to_neighbours(rows: Tensor, head_dim: int, num_rotated: int | None = None) -> Tensor:
    """Returns the rows of a projection in the order in which the features of a plane are neighbours.

    Args:
        rows: a weight or bias of queries or keys, (heads · D, …), or the weight of a norm of them, (D,), of a model in
            which the features of plane p are p and p + r/2.
        head_dim: D.
        num_rotated: r, the leading features of a head that rotate; D if None.
    Returns:
        The same shape.
    Raises:
        InputError: rows that are not of whole heads.
    """
    return _reordered(rows, half_layout(head_dim, num_rotated))


def to_halves(rows: Tensor, head_dim: int, num_rotated: int | None = None) -> Tensor:
    """Returns the rows of a projection in the order of models in which the features of plane p are p and p + r/2.

    It is the inverse of `to_neighbours`.

    Args:
        rows: as for `to_neighbours`, of a model in which the features of a plane are neighbours.
        head_dim: D.
        num_rotated: r, the leading features of a head that rotate; D if None.
    Returns:
        The same shape.
    Raises:
        InputError: rows that are not of whole heads.
    """
    return _reordered(rows, half_layout(head_dim, num_rotated).argsort())


def _reordered(rows: Tensor, order: Tensor) -> Tensor:
    if not isinstance(rows, Tensor) or not rows.ndim or rows.shape[0] % len(order):
        raise InputError(f"rows: got {described(rows)}; expected (heads · {len(order)}, …).")
    return rows.unflatten(0, (-1, len(order)))[:, order.to(rows.device)].flatten(0, 1)


def _check_grid(grid: tuple[int, int], least: int = 1) -> None:
    if not isinstance(grid, Sequence) or len(grid) != 2 or not all(is_whole(n, least) for n in grid):
        raise ConfigurationError(
            f"grid={grid!r}: expected two whole numbers, {least} or more: rows and columns of patches."
        )


def _check(tensor: Tensor, name: str, shape: tuple[int | None, ...]) -> None:
    """Raises InputError unless the tensor has the shape, in which None is any size."""
    fits = is_floating(tensor) and tensor.ndim == len(shape)
    if not fits or any(n is not None and n != m for n, m in zip(shape, tensor.shape, strict=True)):
        expected = ", ".join("any" if n is None else str(n) for n in shape)
        raise InputError(f"{name}: got {described(tensor)}; expected floating-point numbers ({expected}).")


def _single(frequencies: Tensor, dim: int, what: str) -> Tensor:
    """Returns what is the same along a dimension; ConfigurationError if it is not."""
    first = frequencies.select(dim, 0)
    _check_zero(frequencies - first.unsqueeze(dim), frequencies, f"all {what} have the same frequencies")
    return first


def _check_zero(difference: Tensor, frequencies: Tensor, condition: str) -> None:
    error, size = difference.abs().max().item(), frequencies.abs().max().item()
    if error > TOLERANCE * size:
        raise ConfigurationError(
            f"this format is for frequencies where {condition}; these are off by {error:.1e}, of at most {size:.1e} radians "
            "per patch. TimmMixedFreqs holds any on two axes."
        )
