"""Encodings that are plain RoPE after one linear map of the queries and another one of the keys, such as HARoPE."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from comrope._linalg import plane_generators
from comrope._planes import full_precision
from comrope._values import described, is_floating
from comrope.encodings.arguments import check_rotation_dtype
from comrope.encodings.base import Encoding, FoldedRope
from comrope.encodings.spectral import plane_phases
from comrope.errors import InputError
from comrope.rotation import Rotation, compute_dtype


class MappedRotation(NamedTuple):
    """Plain RoPE at given positions, after a linear map in each block of queries and of keys."""

    rope: Rotation
    query_map: Tensor
    """A_q, (H, m, b, b), float64."""
    key_map: Tensor
    """A_k, likewise."""

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns Rot(φ)A_q q and Rot(φ)A_k k, with shapes and dtypes unchanged."""
        return self.queries(q), self.keys(k)

    def queries(self, q: Tensor) -> Tensor:
        """Returns the mapped and rotated queries, (B, H·g, L, D)."""
        return self.rope.queries(_mapped(q, self.query_map)).to(q.dtype)

    def keys(self, k: Tensor) -> Tensor:
        """Returns the mapped and rotated keys, (B, H, L, D)."""
        return self.rope.keys(_mapped(k, self.key_map)).to(k.dtype)


def _mapped(x: Tensor, matrices: Tensor) -> Tensor:
    """Returns matrices (H, m, b, b) times the blocks of x (B, H·g, L, D), in float32 at least."""
    num_heads, num_blocks, block_size, _ = matrices.shape
    fits = is_floating(x) and x.ndim == 4 and not x.shape[1] % num_heads and x.shape[3] == num_blocks * block_size
    if not fits:
        raise InputError(
            f"got {described(x)}; expected floating-point numbers of 16 bits or more in a dense tensor, (B, heads, L, "
            f"{num_blocks * block_size}), with heads a multiple of {num_heads}."
        )
    dtype = compute_dtype(x)
    with full_precision(x.device):
        blocks = x.to(dtype).unflatten(1, (num_heads, -1)).unflatten(-1, (num_blocks, block_size))
        return torch.einsum("hmcd,bhglmd->bhglmc", matrices.to(dtype), blocks).flatten(-2).flatten(1, 2)


class MappedEncoding(Encoding):
    """An encoding with the scores ⟨Rot(ωᵀx)A_q q, Rot(ωᵀy)A_k k⟩: invertible maps A_q and A_k, and plain RoPE.

    The RoPE equation holds for all maps, so scores depend on differences of positions only. `fold` multiplies the maps into the
    projections. At position 0 the scores are those of A_q q and A_k k, and those without an encoding if A_qᵀA_k = I. If both
    maps are one orthogonal Qᵀ, it is a `SpectralEncoding`, which is faster. Subclasses define `folded`.
    """

    @abstractmethod
    def folded(self) -> FoldedRope:
        """Returns A_q and A_k, (H, m, b, b), and ω, (N, H, m, b/2), differentiable in the parameters."""

    def angle_matrices(self) -> Tensor:
        """Returns the angle matrices of Rot(ωᵀx), (N, H, m, b, b), which has the features of A_q q."""
        return plane_generators(self.folded().frequencies.double()).to(self.dtype)

    def rotation(
        self, positions: Tensor, key_positions: Tensor | None = None, *, dtype: torch.dtype = torch.float32
    ) -> MappedRotation:
        check_rotation_dtype(dtype)
        x = self._check_positions(positions, "positions")
        query_map, key_map, frequencies = self.folded()
        phases = key_phases = plane_phases(frequencies, x)
        if key_positions is not None:
            key_phases = plane_phases(frequencies, self._check_positions(key_positions, "key_positions"))
        return MappedRotation(Rotation.at((phases, key_phases), dtype), query_map.double(), key_map.double())
