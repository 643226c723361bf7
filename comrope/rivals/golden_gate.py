"""Golden gate RoPE: fixed frequencies along quasi-random directions."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from comrope._values import is_number
from comrope.encodings import FixedFrequencies, register
from comrope.encodings.arguments import check_positive
from comrope.encodings.directions import golden_ratio
from comrope.errors import ConfigurationError


@register(
    "golden-gate",
    label="Golden gate RoPE",
    about="fixed frequencies, every plane of every head along a direction of its own, at multiples of the golden angle",
)
class GoldenGateRoPE(FixedFrequencies):
    """Golden gate RoPE: plane f of head h rotates by ω_f⟨u_hf, x⟩, with directions u that a golden ratio spreads evenly.

    Source: J. Xiong, jerryxio.ng/posts/nd-rope (2025); also in tiiuae/Falcon-Perception. It claims that a ViT-B/16 keeps
    its accuracy at larger images better than with learned frequencies. A spectrum. Nothing is learned or random.

    Heads share the speeds ω, which rise geometrically from the slowest to the fastest, after planes that do not rotate.
    Plane i = h·D/2 + f rotates along (column, row) = (cos ψ, sin ψ), ψ = iπ(√5 − 1)/2. On other than two axes, i + 1 times
    the powers 1/g, 1/g², … with g^(N+1) = 1 + g, modulo 1, are mapped to a normal distribution and normalised; on one axis
    that is ±1.

    In the post the outermost patch centres of a square image are at ±1, and ω goes from 0.2 to 20 radians per unit. The
    default is that in radians per patch, on 14 × 14 patches; the post interpolates on other grids, as relative positions
    do.

    Args:
        max_frequency: the fastest |ω|, in radians per unit of position.
        min_frequency: the slowest that is not zero; a hundredth of the fastest if None.
        zero_fraction: the share of planes that do not rotate. A quarter is reported to be better.
        sizes: as for `FixedFrequencies`.
    """

    published_speed: ClassVar[float] = 40 / 13

    def __init__(
        self,
        *,
        max_frequency: float = published_speed,
        min_frequency: float | None = None,
        zero_fraction: float = 0.0,
        **sizes: Any,
    ):
        super().__init__(**sizes)
        (fastest,) = check_positive(max_frequency=max_frequency)
        (slowest,) = check_positive(min_frequency=fastest / 100 if min_frequency is None else min_frequency)
        if not is_number(zero_fraction, 0, 1):
            raise ConfigurationError(f"zero_fraction={zero_fraction!r}: expected a share of the planes, 0 to 1.")
        num_planes = self.head_dim // 2
        num_zeros = round(zero_fraction * num_planes)
        exponents = torch.linspace(0, 1, num_planes - num_zeros, dtype=torch.float64, device="cpu")
        speeds = slowest * (fastest / slowest) ** exponents
        speeds = torch.cat((speeds.new_zeros(num_zeros), speeds))
        directions = golden_directions(self.num_heads * num_planes, self.num_axes).view(self.num_heads, num_planes, -1)
        self.set_frequencies((speeds.unsqueeze(-1) * directions).permute(2, 0, 1))


def golden_directions(count: int, num_axes: int) -> Tensor:
    """Returns the unit vectors of golden gate RoPE, (count, N), float64 on the CPU; two axes are (row, column)."""
    index = torch.arange(count, dtype=torch.float64, device="cpu").unsqueeze(-1)
    if num_axes == 2:
        angle = index * (math.pi * (math.sqrt(5) - 1) / 2)
        return torch.cat((angle.sin(), angle.cos()), dim=-1)
    powers = golden_ratio(num_axes + 1) ** -torch.arange(1, num_axes + 1, dtype=torch.float64, device="cpu")
    normal = torch.erfinv(2 * ((index + 1) * powers % 1) - 1)
    return normal / normal.norm(dim=-1, keepdim=True)
