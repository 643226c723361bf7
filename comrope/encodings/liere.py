"""LieRE: angle matrices that are learned without constraint, and so do not commute."""

import torch
from torch import Tensor, nn

from comrope._exponential import exp_skew
from comrope._linalg import plane_generators, skew
from comrope.encodings.base import Encoding
from comrope.encodings.dense import DenseEncoding
from comrope.encodings.learned import LearnedEncoding
from comrope.errors import NoSpectrumError
from comrope.rotation import Spectrum


class LieRE(LearnedEncoding, DenseEncoding):
    """LieRE: B_ij = P_ij − P_ijᵀ, all free. They almost never commute, so R(x)ᵀR(y) = R(y − x) does not hold.

    Each position needs a matrix exponential, in float64: L of them for positions (L, N), whatever the batch size, and up to B·L
    for (B, L, N).

    Parameter: `base_matrices` P, (N, H, m, b, b).
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        block_size: int = 8,
        *,
        init: str = "normal",
        std: float | None = None,
        base: float | None = None,
        max_frequency: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)
        self._configure_init(init, std, base, max_frequency)
        self.base_matrices: nn.Parameter = self._block_parameter(num_axes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.init == "normal":
            self.base_matrices.normal_(0, self.std)
        elif self.init == "identity":
            self.base_matrices.zero_()
        else:
            self.base_matrices.copy_(plane_generators(self._rope_frequencies(self.base, self.max_frequency)) / 2)

    def _set_spectrum(self, basis, frequencies):
        self.base_matrices.copy_(basis @ plane_generators(frequencies) @ basis.mT / 2)

    def angle_matrices(self) -> Tensor:
        return skew(self.base_matrices)

    def spectrum(self) -> Spectrum:
        raise NoSpectrumError(
            "LieRE's angle matrices do not commute: no one basis brings them to planes, so there is no spectrum and "
            "nothing to fold. Use comrope-ld, -ap or -mt, or look at angle_matrices() and rotation_matrices(positions)."
        )

    def matrices(self, positions: Tensor) -> Tensor:
        angles = skew(self.base_matrices.double())
        return exp_skew(torch.einsum("...n,nhmcd->...hmcd", positions, angles))

    def rotation_matrices(self, positions: Tensor) -> Tensor:
        return Encoding.rotation_matrices(self, positions)  # by torch.matrix_exp, which is independent of `matrices`
