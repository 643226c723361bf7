"""LieRE: angle matrices that are learned freely, and so do not commute."""

from typing import NamedTuple

import torch
from torch import Tensor

from comrope import reference
from comrope._exponential import exp_skew
from comrope._linalg import may_ask, plane_generators, skew
from comrope._planes import full_precision
from comrope._values import described, is_floating
from comrope.encodings.arguments import check_turning_dtype
from comrope.encodings.base import LearnedEncoding
from comrope.errors import InputError, NoSpectrumError
from comrope.rotation import Spectrum, compute_dtype


class DenseRotation(NamedTuple):
    """R(x) of the queries and R(y) of the keys, each (..., L, H, m, b, b), float64: one matrix a token, head and block."""

    matrices: Tensor
    key_matrices: Tensor

    def turn(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """R(x)q and R(y)k, shapes and dtypes unchanged."""
        return self.queries(q), self.keys(k)

    def queries(self, q: Tensor) -> Tensor:
        """R(x)q alone."""
        return self._turned(q, self.matrices)

    def keys(self, k: Tensor) -> Tensor:
        """R(y)k alone."""
        return self._turned(k, self.key_matrices)

    @staticmethod
    def _turned(x: Tensor, matrices: Tensor) -> Tensor:
        if not is_floating(x):
            raise InputError(f"got {described(x)} to turn; expected floating-point numbers of 16 bits or more, dense.")
        with full_precision(x.device):
            return reference.apply(matrices.to(compute_dtype(x)), x).to(x.dtype)


class LieRE(LearnedEncoding):
    """LieRE: B_ij = P_ij − P_ijᵀ, all free. Commutes with probability 0, so R(x)ᵀR(y) = R(y − x) fails.

    Every distinct position costs an exponential, taken in float64: L of them for positions (L, N), whatever the batch; for
    (B, L, N) as many as there are different rows on a CPU, and B·L where positions need a gradient, a graph is compiled, they
    differ within a vmap, or an accelerator would have to be waited for to know how many differ.

    Parameter: `base_matrices` P, (N, H, m, b, b).
    """

    def __init__(
        self,
        num_heads,
        head_dim,
        num_axes,
        block_size: int = 8,
        *,
        init: str = "normal",
        std: float | None = None,
        base: float | None = None,
        max_frequency: float | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)
        self._configure_init(init, std, base, max_frequency)
        self.base_matrices = self._blocks(num_axes)
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
        check_turning_dtype(dtype)
        x = self._check_positions(positions, "positions")
        y = x if key_positions is None else self._check_positions(key_positions, "key_positions")
        rotation = self._rotation(x)
        return DenseRotation(rotation, rotation if y is x else self._rotation(y))

    def _rotation(self, positions: Tensor) -> Tensor:
        """R(x) once for each distinct row of `positions`, handed out to the tokens: (..., L, H, m, b, b), float64."""
        angles = skew(self.base_matrices.double())
        known = may_ask(positions.device) and not torch.compiler.is_compiling()
        if positions.ndim == 3 and known and not positions.requires_grad:
            try:
                rows, which = torch.unique(positions.flatten(0, 1), dim=0, return_inverse=True)
            except RuntimeError:  # under vmap, where each sample may have another number of them
                return self._exponential(angles, positions)
            return self._exponential(angles, rows)[which.view(positions.shape[:2])]
        return self._exponential(angles, positions)

    @staticmethod
    def _exponential(angles: Tensor, positions: Tensor) -> Tensor:
        return exp_skew(torch.einsum("...ln,nhmcd->...lhmcd", positions.double(), angles))
