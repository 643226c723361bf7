"""Spherical RoPE: rotations of space by two Euler angles, one for each axis of the image."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from comrope.encodings import DenseEncoding, register
from comrope.encodings.arguments import check_flag, check_positive
from comrope.errors import ConfigurationError
from comrope.rivals._triples import head_matrices


@register(
    "spherical-rope",
    label="Spherical RoPE",
    about="rotations of triples of features, by the row about one axis of space and by the column about another",
)
class SphericalRoPE(DenseEncoding):
    """Spherical RoPE: triple j of the features rotates by R(x) = Yaw(ω_j·column) Roll(ω_j·row).

    Roll rotates features 2 and 3 of the triple, then Yaw features 1 and 2, at ω_j = ω_max·base^(−2j/D). Source: arXiv
    2511.08368 and a class of others; the text was read, its display formulas were not. It asks whether the RoPE equation is
    needed: with learned ω it reports the accuracy of RoPE-Mixed on ImageNet, without it. No spectrum, and nothing to fold.
    Only scores between tokens of one column depend on differences alone, so it matters where positions are counted from. The
    paper has 0 in the middle of the image and ±π at the border of the training grid; `attach` counts relative positions
    from the top left corner.

    Features that are left over when 3 does not divide head_dim are not rotated: one of 64.

    Parameter, if learned: `frequencies` ω, (2, H, D div 3), of rows and columns.

    Args:
        base: determines the slowest speed, which is nearly base^(−2/3) of the fastest.
        max_frequency: ω_max, in radians per unit of position. The default is that of the paper on 14 × 14 patches, where it
            does not say whether ±π are the borders, as here, or the outermost patch centres, which is 14/13 of it.
        learn_frequencies: whether ω is learned, for each head, layer and axis, from that start.
    """

    published_speed: ClassVar[float] = 2 * math.pi / 14

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        *,
        base: float = 100.0,
        max_frequency: float = published_speed,
        learn_frequencies: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_heads, head_dim, num_axes, head_dim, device=device, dtype=dtype)
        if num_axes != 2 or head_dim < 3:
            raise ConfigurationError(
                f"num_axes={num_axes}, head_dim={head_dim}: spherical-rope has two axes, and triples of features. geope takes "
                "one to three axes."
            )
        self.base: float
        self.max_frequency: float
        self.base, self.max_frequency = check_positive(base=base, max_frequency=max_frequency)
        check_flag(learn_frequencies=learn_frequencies)
        self.frequencies: nn.Parameter | None = (
            nn.Parameter(self._fixed_frequencies().to(**self.factory_kwargs)) if learn_frequencies else None
        )

    def _fixed_frequencies(self) -> Tensor:
        """Returns the ω that are fixed, or where learning starts, (2, H, D div 3), float64 on the CPU."""
        triple = torch.arange(self.head_dim // 3, dtype=torch.float64, device="cpu")
        speeds = self.max_frequency * self.base ** (-2 * triple / self.head_dim)
        return speeds.repeat(2, self.num_heads, 1)

    def matrices(self, positions: Tensor) -> Tensor:
        frequencies = self._fixed_frequencies() if self.frequencies is None else self.frequencies
        frequencies = frequencies.to(positions)
        roll, yaw = (positions[..., i, None, None] * frequencies[i] for i in range(2))  # (..., H, D div 3)
        (cr, sr), (cy, sy) = ((angle.cos(), angle.sin()) for angle in (roll, yaw))
        zero = torch.zeros_like(cr)
        rows = ((cy, -sy * cr, sy * sr), (sy, cy * cr, -cy * sr), (zero, sr, cr))
        return head_matrices(torch.stack([torch.stack(row, -1) for row in rows], -2), self.head_dim)
