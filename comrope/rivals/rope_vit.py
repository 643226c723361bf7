"""RoPE for vision transformers by Heo et al.: axial, and RoPE-Mixed with the start that they give it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from comrope.encodings import FixedFrequencies, RopeMixed, register
from comrope.encodings.arguments import check_even_planes, check_positive
from comrope.rivals._frequencies import along_axes, geometric_speeds, random_rotations


@register(
    "rope-vit-axial",
    label="RoPE-Axial",
    about="fixed frequencies, one half of the planes along columns and the other along rows, base 100",
)
class RoPEViTAxial(FixedFrequencies):
    """Axial RoPE as in rope-vit: the first half of the planes rotates along columns, the second half along rows, at ω_j.

    ω_j = ω_max·base^(−4j/D), j = 0 … D/4 − 1; on N axes each has D/2N planes, the last axis first. Source: arXiv 2403.13298
    (ECCV 2024), naver-ai/rope-vit. It claims better accuracy at larger images than an absolute embedding. A spectrum.
    Nothing is learned or random. The code counts patches from the first, where it also has the class token; only
    differences matter. `rope` has the same planes in another order, and base 10000.

    Args:
        base: ratio of the fastest to (nearly) the slowest speed.
        max_frequency: ω_max, in radians per unit of position.
        sizes: as for `FixedFrequencies`.
    """

    published_speed: ClassVar[float] = 1.0

    def __init__(self, *, base: float = 100.0, max_frequency: float = published_speed, **sizes: Any):
        super().__init__(**sizes)
        base, max_frequency = check_positive(base=base, max_frequency=max_frequency)
        num_planes = check_even_planes("axial RoPE", self.head_dim, self.num_axes)
        speeds = geometric_speeds(max_frequency, base, num_planes)
        self.set_frequencies(along_axes(speeds, self.num_axes).flip(0))


@register(
    "rope-vit-mixed",
    label="RoPE-Mixed (rope-vit's start)",
    about="RoPE-Mixed that starts as axial RoPE, turned by a random angle in each head and layer",
)
class RoPEViTMixed(RopeMixed):
    """RoPE-Mixed with rope-vit's start, init="normal": axial RoPE, turned by one random angle in each head and layer.

    With ψ uniform in [0, 2π), the first half of the planes starts at ω_j(cos ψ, sin ψ), the second at ω_j(−sin ψ, cos ψ),
    as (column, row), where ω_j = max_frequency·base^(−4j/D). On N axes it is a rotation uniform in SO(N). Source: arXiv
    2403.13298 (ECCV 2024), naver-ai/rope-vit; the same in timm. It claims better accuracy at larger images than axial RoPE.
    A spectrum, all of which is learned: parameter `frequencies`, (N, H, m, b/2), without weight decay. `rope-mixed` differs
    in the start only, which is normally distributed there.

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
        num_planes = check_even_planes(type(self).__name__, self.head_dim, self.num_axes)
        axial = along_axes(geometric_speeds(self.max_frequency, self.base, num_planes), self.num_axes)
        turned = random_rotations(self.num_heads, self.num_axes) @ axial  # (H, N, D/2), the last axis first
        self.frequencies.copy_(turned.flip(1).transpose(0, 1).reshape(self.frequencies.shape))
