"""Spiral RoPE: fixed frequencies along a few evenly spaced directions."""

import math
from typing import Any, ClassVar

import torch

from comrope._values import is_whole
from comrope.encodings import FixedFrequencies, register
from comrope.encodings.arguments import check_positive
from comrope.errors import ConfigurationError
from comrope.rivals._frequencies import geometric_speeds


@register(
    "spiral-rope",
    label="Spiral RoPE",
    about="fixed frequencies along evenly spaced directions, each with a share of the speeds",
)
class SpiralRoPE(FixedFrequencies):
    """Spiral RoPE: of K directions u_k at the angles kπ/K, each rotates D/2K planes by ω⟨u_k, x⟩.

    Source: arXiv 2602.03227. It claims better accuracy than axial RoPE and, at larger images, than RoPE-Mixed; by its own
    ablation the directions give 0.08 points of it, and the faster ω_max = 1.5 the rest. A spectrum, on two axes. Nothing is
    learned or random, and all heads and layers are the same.

    The D/4 speeds ω_max·base^(−4t/D) are dealt in pairs, in turn, to the first K/2 directions; the planes of the first half
    have these, and those of the second half the perpendicular directions, with the same speeds. K = 2 is axial RoPE.

    The released code computes no ⟨u_k, x⟩: it turns the table of angles like an image, and at a corner of the image takes the
    nearest angle that there is. So its checkpoints break the RoPE equation in the corners, and cannot be converted to this.

    Args:
        num_directions: K, even, with head_dim a multiple of 4K. If None, head_dim/4, which is the 16 of the paper for 64.
        base: ratio of the fastest to (nearly) the slowest speed.
        max_frequency: the fastest |ω|, in radians per unit of position.
        sizes: as for `FixedFrequencies`.
    """

    published_speed: ClassVar[float] = 1.5

    def __init__(
        self,
        *,
        num_directions: int | None = None,
        base: float = 10000.0,
        max_frequency: float = published_speed,
        **sizes: Any,
    ):
        super().__init__(**sizes)
        if self.num_axes != 2:
            raise ConfigurationError(f"num_axes={self.num_axes}: spiral-rope has two; use golden-gate or nd-rope.")
        base, max_frequency = check_positive(base=base, max_frequency=max_frequency)
        fitting = [k for k in range(2, self.head_dim // 4 + 1, 2) if self.head_dim % (4 * k) == 0]
        num_directions = self.head_dim // 4 if num_directions is None else num_directions
        if not is_whole(num_directions) or num_directions not in fitting:
            remedy = f"Use one of {fitting}." if fitting else "head_dim must be a multiple of 8."
            raise ConfigurationError(
                f"num_directions={num_directions!r} with head_dim={self.head_dim}: expected an even number, four times "
                f"which divides head_dim. {remedy}"
            )
        speeds = geometric_speeds(max_frequency, base, self.head_dim // 4)
        direction = torch.arange(len(speeds), device="cpu") // 2 % (num_directions // 2)
        angles = direction.double() * math.pi / num_directions
        angles = torch.cat((angles, angles + math.pi / 2))
        self.set_frequencies(speeds.repeat(2) * torch.stack((angles.cos(), angles.sin())))
