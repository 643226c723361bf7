"""Partial RoPE of GPT-NeoX: only the first features of each head rotate."""

from typing import Any, ClassVar

import torch

from comrope._values import is_number
from comrope.encodings import FixedFrequencies, register
from comrope.encodings.arguments import check_even_planes, check_positive
from comrope.errors import ConfigurationError
from comrope.rivals._frequencies import along_axes, geometric_speeds


@register(
    "partial-rope",
    label="Partial RoPE",
    about="fixed frequencies, all speeds in a share of the planes, and the other planes do not rotate",
)
class PartialRoPE(FixedFrequencies):
    """Partial RoPE: the first r = fraction·D features have RoPE as a head of r features would, and the others do not rotate.

    ω_i = ω_max·base^(−2i/r), i < r/2: the whole range of speeds, in fewer planes; N axes have r/2N planes each, one axis after
    the other. Source: GPT-NeoX, arXiv 2204.06745, `partial_rotary_factor` of transformers. It claims nearly the loss of full
    RoPE for less work. A spectrum. Nothing is learned or random. Planes are neighbouring features here, p and p + r/2 there.
    `p-rope` keeps the spacing of the speeds instead and drops the slow ones.

    Args:
        fraction: the share of features that rotate.
        base: ratio of the fastest to (nearly) the slowest speed.
        max_frequency: ω_max, in radians per unit of position.
        sizes: as for `FixedFrequencies`.
    """

    published_speed: ClassVar[float] = 1.0

    def __init__(
        self,
        *,
        fraction: float = 0.25,
        base: float = 10000.0,
        max_frequency: float = published_speed,
        **sizes: Any,
    ):
        super().__init__(**sizes)
        if not is_number(fraction, 0, 1):
            raise ConfigurationError(f"fraction={fraction!r}: expected a share of the features, 0 to 1.")
        base, max_frequency = check_positive(base=base, max_frequency=max_frequency)
        num_rotated = int(self.head_dim * fraction)
        count = check_even_planes(f"the rotated part, {fraction} of {self.head_dim},", num_rotated, self.num_axes)
        frequencies = along_axes(geometric_speeds(max_frequency, base, count), self.num_axes)
        self.set_frequencies(torch.nn.functional.pad(frequencies, (0, self.head_dim // 2 - frequencies.shape[1])))
