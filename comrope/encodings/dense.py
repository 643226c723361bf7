"""Encodings that rotate by any matrix at each position, such as LieRE: no RoPE equation, and nothing that follows from it."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.functional import jvp

from comrope import reference
from comrope._linalg import can_synchronise
from comrope._planes import full_precision
from comrope._values import described, is_floating
from comrope.encodings.arguments import check_rotation_dtype
from comrope.encodings.base import Encoding
from comrope.errors import InputError
from comrope.rotation import compute_dtype


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


class DenseEncoding(Encoding):
    """An encoding that rotates a token at position x by a dense matrix R(x) in each head and block, with R(0) = I.

    R(x)ᵀR(y) = R(y − x) need not hold. Subclasses define `matrices`. Each position costs a product of its own for every token,
    in blocks b × b. Equal rows of positions (B, L, N) share their matrices on a CPU, unless positions require a gradient, the
    graph is compiled, or vmap maps over positions. On an accelerator they do not, because counting distinct rows would make
    the host wait.
    """

    @abstractmethod
    def matrices(self, positions: Tensor) -> Tensor:
        """Returns R(x), (..., H, m, b, b), float64, differentiable in positions (..., N), float64, and in the parameters."""

    def angle_matrices(self) -> Tensor:
        """Returns ∂R/∂x_i at the origin, (N, H, m, b, b), skew-symmetric, differentiable in the parameters."""
        axes = torch.eye(self.num_axes, dtype=torch.float64, device=self.device)
        keep = torch.is_grad_enabled()
        derivatives = [jvp(self.matrices, torch.zeros_like(axis), axis, create_graph=keep)[1] for axis in axes]
        return torch.stack(derivatives).to(self.dtype)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def rotation_matrices(self, positions: Tensor) -> Tensor:
        """Returns dense R(x), (..., L, H, m, b, b)."""
        return self.matrices(self._check_positions(positions, "positions").double()).to(self.dtype)

    def rotation(
        self, positions: Tensor, key_positions: Tensor | None = None, *, dtype: torch.dtype = torch.float32
    ) -> DenseRotation:
        check_rotation_dtype(dtype)
        x = self._check_positions(positions, "positions")
        y = x if key_positions is None else self._check_positions(key_positions, "key_positions")
        rotation = self._shared_matrices(x)
        return DenseRotation(rotation, rotation if y is x else self._shared_matrices(y))

    def _shared_matrices(self, positions: Tensor) -> Tensor:
        """Returns R(x), (..., L, H, m, b, b), computed once for each distinct row of `positions` if possible."""
        can_count = can_synchronise(positions.device) and not torch.compiler.is_compiling()
        if positions.ndim == 3 and can_count and not positions.requires_grad:
            try:
                rows, index = torch.unique(positions.flatten(0, 1), dim=0, return_inverse=True)
            except RuntimeError:  # under vmap, where the number of distinct rows may differ between samples
                return self.matrices(positions.double())
            return self.matrices(rows.double())[index.view(positions.shape[:2])]
        return self.matrices(positions.double())
