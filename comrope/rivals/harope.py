"""HARoPE: axial RoPE after learned linear maps of queries and keys."""

import math
from typing import ClassVar

import torch
from torch import nn

from comrope._linalg import skew
from comrope.encodings import FoldedRope, MappedEncoding, register
from comrope.encodings.arguments import check_even_planes, check_flag, check_positive
from comrope.rivals._frequencies import along_axes, geometric_speeds

SMALLEST = 1e-6
"""Added to the singular values, as in the released code."""


@register(
    "harope",
    label="HARoPE",
    about="axial RoPE after learned linear maps of queries and keys, which fold into the projections",
)
class HARoPE(MappedEncoding):
    """HARoPE: axial RoPE of Mq and M⁻ᵀk, with a learned matrix M = U diag(s) Vᵀ in each head.

    U = exp(½(A − Aᵀ)), V likewise, s = softplus(σ) + 10⁻⁶. It starts at M = 1, which is axial RoPE: each axis has D/2N
    planes, the first axis first, at ω_j = ω_max·base^(−2Nj/D). Source: arXiv 2510.10489 (CVPR 2026), Studentxll/HARoPE. It
    claims more accuracy than RoPE-Mixed and STRING on ImageNet, at three image sizes. No spectrum, but the RoPE equation
    holds, and M folds into the projections. What remains is plain axial RoPE: so the maps add no function to it, only
    another way to train it.

    This is the code. The paper writes q ↦ Mq, k ↦ Mk, where tokens at one position have the scores qᵀMᵀMk, and not qᵀk;
    `same_map=True` is that. With s = 1 both are the same: an orthogonal basis, as `string` learns it. ω is not learned.

    Parameters: `left_generator` and `right_generator` A, (H, D, D), and `scale` σ, (H, D).

    Args:
        base: ratio of the fastest to (nearly) the slowest speed.
        max_frequency: ω_max, in radians per unit of position.
        same_map: whether keys have the map of queries.
    """

    published_speed: ClassVar[float] = 1.0

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        *,
        base: float = 10000.0,
        max_frequency: float = published_speed,
        same_map: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_heads, head_dim, num_axes, head_dim, device=device, dtype=dtype)
        self.base: float
        self.max_frequency: float
        self.base, self.max_frequency = check_positive(base=base, max_frequency=max_frequency)
        check_even_planes("axial RoPE", head_dim, num_axes)
        check_flag(same_map=same_map)
        self.same_map = same_map
        self.left_generator: nn.Parameter = nn.Parameter(
            torch.empty(num_heads, head_dim, head_dim, **self.factory_kwargs)
        )
        self.right_generator: nn.Parameter = nn.Parameter(torch.empty_like(self.left_generator))
        self.scale: nn.Parameter = nn.Parameter(torch.empty(num_heads, head_dim, **self.factory_kwargs))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets M = 1."""
        self.left_generator.zero_()
        self.right_generator.zero_()
        self.scale.fill_(math.log(math.expm1(1 - SMALLEST)))  # softplus⁻¹

    def folded(self) -> FoldedRope:
        left, right = (
            torch.linalg.matrix_exp(skew(each.double()) / 2) for each in (self.left_generator, self.right_generator)
        )
        scale = (nn.functional.softplus(self.scale.double()) + SMALLEST).unsqueeze(-2)
        query_map = (left * scale) @ right.mT
        key_map = query_map if self.same_map else (left / scale) @ right.mT  # M⁻ᵀ
        count = self.head_dim // (2 * self.num_axes)
        axial = along_axes(geometric_speeds(self.max_frequency, self.base, count), self.num_axes).to(self.device)
        frequencies = axial[:, None, None].expand(-1, self.num_heads, -1, -1)
        return FoldedRope(query_map.unsqueeze(1), key_map.unsqueeze(1), frequencies)
