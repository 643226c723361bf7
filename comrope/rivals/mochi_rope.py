"""The RoPE of Mochi 1, a video model: learned frequencies on three axes."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from comrope.encodings import RopeMixed, register
from comrope.rivals._frequencies import random_rotations


@register(
    "mochi-rope",
    label="Mochi's RoPE",
    about="learned frequencies of every plane on all axes of a video, which start as axial RoPE turned at random",
)
class MochiRoPE(RopeMixed):
    """The RoPE of Mochi 1: every plane of every head rotates by ⟨ω, (t, row, column)⟩, with learned ω.

    Source: genmoai/mochi and `MochiRoPE` of diffusers; no paper, and no number of what it gains. A spectrum, all of which
    is learned: parameter `frequencies`, (N, H, m, b/2). So it is `rope-mixed`; what differs is the start, and what is
    shared.

    The start of Mochi's training is unpublished. That of init="normal" here is rope-vit's: axial RoPE, plane p on axis p
    mod N at max_frequency·base^(−2N·(p div N)/D), turned by one random rotation in each head and layer. No multiple of 2N
    is asked for, since 6 does not divide Mochi's 128 features. Mochi has one set of frequencies for all layers; here each
    layer has its own. Mochi scales rows and columns so that every video has the area 192²;
    `rivals.convert.MochiPosFrequencies` knows that scale. Its text tokens are not rotated.

    Args:
        init: as for `LearnedEncoding`. "normal" is the start above, and takes no `std`.
        base: of "normal", 10 by default; of "rope", 10000 by default.
        max_frequency: of both, in radians per unit of position; 1 by default.
    """

    published_speed: ClassVar[float] = 1.0
    normal_settings: ClassVar[Mapping[str, float]] = {"base": 10.0, "max_frequency": published_speed}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.init != "normal":
            super().reset_parameters()
            return
        planes = torch.arange(self.head_dim // 2, device="cpu")
        step = 2 * self.num_axes * (planes // self.num_axes).double() / self.head_dim
        speeds = self.max_frequency * self.base**-step
        directions = random_rotations(self.num_heads, self.num_axes)[:, :, planes % self.num_axes]  # (H, N, D/2)
        self.frequencies.copy_((speeds * directions).transpose(0, 1).reshape(self.frequencies.shape))
