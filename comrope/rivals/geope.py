"""GeoPE: rotations of space about the mean of one rotation vector for each axis."""

from typing import ClassVar

import torch
from torch import Tensor

from comrope.encodings import DenseEncoding, register
from comrope.encodings.arguments import check_positive
from comrope.errors import ConfigurationError
from comrope.rivals._frequencies import geometric_speeds
from comrope.rivals._triples import head_matrices


@register(
    "geope",
    label="GeoPE",
    about="rotations of triples of features about one axis of space, which is the mean of those of row and column",
)
class GeoPE(DenseEncoding):
    """GeoPE: triple j of the features rotates by R(x) = exp([v]×), v = (ω_j/N)(x₁, …, x_N, 0 …): about v, by |v| radians.

    v is the mean of a rotation vector for each axis, along an axis of space of its own, which makes it symmetric in the
    axes. ω_j = ω_max·base^(−j/(D div 3)). Source: arXiv 2512.04963, whose body was not read: the equation is that of an
    implementation by others and of reviews, and the base is theirs. It claims better accuracy than other RoPEs on images.
    No spectrum, and nothing to fold: R(x)ᵀR(y) = R(y − x) holds only if x and y are multiples of one another. The paper's
    "linear" variant, one matrix for each pair of tokens, is not here: no rotation of single queries and keys gives it.
    Nothing is learned or random.

    Features that are left over when 3 does not divide head_dim are not rotated: one of 64.

    Args:
        base: ratio of the fastest to (nearly) the slowest speed.
        max_frequency: ω_max, in radians per unit of position, before the division by N.
    """

    published_speed: ClassVar[float] = 1.0

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        *,
        base: float = 100.0,
        max_frequency: float = published_speed,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_heads, head_dim, num_axes, head_dim, device=device, dtype=dtype)
        if num_axes > 3 or head_dim < 3:
            raise ConfigurationError(
                f"num_axes={num_axes}, head_dim={head_dim}: geope has an axis of space for each axis, so one to three, and "
                "triples of features. Use liere for more axes."
            )
        self.base: float
        self.max_frequency: float
        self.base, self.max_frequency = check_positive(base=base, max_frequency=max_frequency)

    def matrices(self, positions: Tensor) -> Tensor:
        count = self.head_dim // 3
        speeds = geometric_speeds(self.max_frequency, self.base, count).to(positions.device)
        vectors = positions.unsqueeze(-2) * speeds.unsqueeze(-1) / self.num_axes  # (..., D div 3, N)
        vectors = torch.nn.functional.pad(vectors, (0, 3 - self.num_axes))
        matrices = head_matrices(_exponential(vectors), self.head_dim).unsqueeze(-4)
        return matrices.expand(*matrices.shape[:-4], self.num_heads, 1, -1, -1)


def _exponential(vectors: Tensor) -> Tensor:
    """Returns the rotations (..., 3, 3) about vectors (..., 3), by as many radians as they are long (Rodrigues)."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    rows = ((zero, -z, y), (z, zero, -x), (-y, x, zero))
    cross = torch.stack([torch.stack(row, -1) for row in rows], -2)
    square = vectors.square().sum(-1)[..., None, None]
    small = square < 1e-8
    angle = torch.where(small, 1.0, square).sqrt()
    sine = torch.where(small, 1 - square / 6, angle.sin() / angle)
    versine = torch.where(small, 0.5 - square / 24, (1 - angle.cos()) / angle**2)
    return torch.eye(3).to(vectors) + sine * cross + versine * (cross @ cross)
