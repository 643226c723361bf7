"""GRAPE-M on several axes: a product of exponentials of rank-2 generators, whose learned planes differ between axes."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from comrope._linalg import cayley, skew
from comrope.encodings import DenseEncoding, register
from comrope.encodings.arguments import check_even_planes, check_positive
from comrope.rivals._frequencies import geometric_speeds

LOG_SCALE = 16.0
"""The parameter is this multiple of ln ω, as in the released code: with Adam, a step of ln ω is a sixteenth of the rate."""


@register(
    "grape-m",
    label="GRAPE-M",
    about="learned rotations, one after the other axis, each in planes of its own, which need not commute",
)
class MultiplicativeGRAPE(DenseEncoding):
    """GRAPE-M on N axes: R(x) = Π_i Π_f exp(x_i ω_if L_if), with rank-2 generators L = b aᵀ − a bᵀ of learned planes (a, b).

    Each axis i has D/2N planes, which are orthogonal to one another: columns 2p and 2p + 1, p ≡ i (mod N), of a learned
    basis E_i = (1 − S)(1 + S)⁻¹, S = G_i − G_iᵀ. An exponential has the closed form 1 + sin z L + (1 − cos z)L², z = x_i
    ω_if. Planes of different axes need not be orthogonal. Then their generators do not commute, and the RoPE equation fails
    on two axes and more. It starts at G = 0 as vanilla RoPE, ω = ω_max·base^(−2N·(p div N)/D), where it holds.

    Source: arXiv 2512.07805 (ICLR 2026), section 3 and appendix G, which has no experiment on more than one axis; on one
    the paper's mean of seven tasks is 51.79 against RoPE's 51.73. No spectrum, and nothing to fold. If all axes share one
    basis, the generators commute: that is `comrope-mt` with frequencies above 0, and `string`. The released code learns no
    planes at all, only ω on one axis, which is `rope-mixed`. Here each layer and head has its own ω.

    Parameters: `basis_generator` G, (N, H, D, D), and `log_frequencies` 16 ln ω, (N, H, D/2N).

    Args:
        base: ratio of the fastest to (nearly) the slowest speed at the start.
        max_frequency: ω_max at the start, in radians per unit of position.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_heads, head_dim, num_axes, head_dim, device=device, dtype=dtype)
        self.base: float
        self.max_frequency: float
        self.base, self.max_frequency = check_positive(base=base, max_frequency=max_frequency)
        num_planes = check_even_planes("GRAPE-M", head_dim, num_axes)
        shape = (num_axes, num_heads, head_dim, head_dim)
        self.basis_generator: nn.Parameter = nn.Parameter(torch.empty(shape, **self.factory_kwargs))
        self.log_frequencies: nn.Parameter = nn.Parameter(
            torch.empty(num_axes, num_heads, num_planes, **self.factory_kwargs)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the parameters to vanilla RoPE."""
        self.basis_generator.zero_()
        speeds = geometric_speeds(self.max_frequency, self.base, self.log_frequencies.shape[-1])
        self.log_frequencies.copy_((LOG_SCALE * speeds.log()).expand_as(self.log_frequencies))

    def matrices(self, positions: Tensor) -> Tensor:
        eye = torch.eye(self.head_dim, dtype=torch.float64, device=self.device)
        product = eye
        for axis in range(self.num_axes):
            a, b = self.planes(axis)
            phases = positions[..., axis, None, None] * self.frequencies(axis)  # (..., H, D/2N)
            sin, versine = phases.sin().unsqueeze(-2), 2 * (phases / 2).sin().square().unsqueeze(-2)
            turned = (sin * b) @ a.mT - (sin * a) @ b.mT  # Σ_f sin z L
            product = product @ (eye + turned - (versine * a) @ a.mT - (versine * b) @ b.mT)
        return product.unsqueeze(-3)

    def planes(self, axis: int) -> tuple[Tensor, Tensor]:
        """Returns the orthonormal vectors a and b of the planes of an axis, (H, D, D/2N) each, float64."""
        basis = cayley(skew(self.basis_generator[axis].double()))
        return basis[..., 2 * axis :: 2 * self.num_axes], basis[..., 2 * axis + 1 :: 2 * self.num_axes]

    def frequencies(self, axis: int) -> Tensor:
        """Returns ω of the planes of an axis, (H, D/2N), float64."""
        return (self.log_frequencies[axis].double() / LOG_SCALE).exp()
