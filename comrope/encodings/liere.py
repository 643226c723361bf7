"""LieRE: angle matrices that are learned without constraint, and so do not commute."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from comrope import reference
from comrope._exponential import exp_skew
from comrope._linalg import can_synchronise, plane_generators, skew
from comrope._planes import full_precision
from comrope._values import described, is_floating
from comrope.encodings.arguments import check_rotation_dtype
from comrope.encodings.learned import LearnedEncoding
from comrope.errors import InputError, NoSpectrumError
from comrope.rotation import Spectrum, compute_dtype


class DenseRotation(NamedTuple):
    """Dense rotations of queries and keys: one float64 matrix per token, head and block, (..., L, H, m, b, b) each."""

    matrices: Tensor
    key_matrices: Tensor

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns R(x)q and R(y)k, with shapes and dtypes unchanged."""
        return self.queries(q), self.keys(k)

    def queries(self, q: Tensor) -> Tensor:
        """Returns R(x)q."""
        return self._rotate(q, self.matrices)

    def keys(self, k: Tensor) -> Tensor:
        """Returns R(y)k."""
        return self._rotate(k, self.key_matrices)

    @staticmethod
    def _rotate(x: Tensor, matrices: Tensor) -> Tensor:
        if not is_floating(x):
            raise InputError(
                f"got {described(x)} to rotate; expected floating-point numbers of 16 bits or more, dense."
            )
        with full_precision(x.device):
            return reference.apply(matrices.to(compute_dtype(x)), x).to(x.dtype)


class LieRE(LearnedEncoding):
    """LieRE: B_ij = P_ij − P_ijᵀ, all free. They almost never commute, so R(x)ᵀR(y) = R(y − x) does not hold.

    Each position needs a matrix exponential, in float64: L of them for positions (L, N), whatever the batch size, and B·L for
    (B, L, N). On a CPU equal rows of (B, L, N) share one, unless positions require a gradient, the graph is compiled, or vmap
    maps over positions. On an accelerator they do not, because counting distinct rows would make the host wait.

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

    def rotation(
        self, positions: Tensor, key_positions: Tensor | None = None, *, dtype: torch.dtype = torch.float32
    ) -> "DenseRotation":
        check_rotation_dtype(dtype)
        x = self._check_positions(positions, "positions")
        y = x if key_positions is None else self._check_positions(key_positions, "key_positions")
        rotation = self._rotation(x)
        return DenseRotation(rotation, rotation if y is x else self._rotation(y))

    def _rotation(self, positions: Tensor) -> Tensor:
        """Returns R(x), (..., L, H, m, b, b), float64, computed once for each distinct row of `positions` if possible."""
        angles = skew(self.base_matrices.double())
        can_count = can_synchronise(positions.device) and not torch.compiler.is_compiling()
        if positions.ndim == 3 and can_count and not positions.requires_grad:
            try:
                rows, index = torch.unique(positions.flatten(0, 1), dim=0, return_inverse=True)
            except RuntimeError:  # under vmap, where the number of distinct rows may differ between samples
                return self._exponential(angles, positions)
            return self._exponential(angles, rows)[index.view(positions.shape[:2])]
        return self._exponential(angles, positions)

    @staticmethod
    def _exponential(angles: Tensor, positions: Tensor) -> Tensor:
        return exp_skew(torch.einsum("...ln,nhmcd->...lhmcd", positions.double(), angles))
