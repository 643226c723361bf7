"""Turning queries and keys: the spectral engine that all commuting encodings share.

R(x) = Q · Rot(ωᵀx) · Qᵀ. Attention sees only ⟨R(x)q, R(y)k⟩, where the outer Q cancels, so what is returned is
Rot(ωᵀx)·Qᵀq: plain RoPE after a change of basis. No matrix exponential, and nothing per token but one small product.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from comrope._turn import Turn, full_precision


class Spectrum(NamedTuple):
    """What a commuting family is made of: A_i = Q · diag(ω_i1 J, …, ω_ih J) · Qᵀ in each head and block."""

    basis: Tensor
    """Q, (H, m, b, b), orthogonal; columns 2k and 2k+1 span plane k."""
    frequencies: Tensor
    """ω, (N, H, m, b/2), radians per unit of position."""


class Tilt(NamedTuple):
    """What carries the gradient that the basis of a decomposed matrix cannot (see comrope._linalg)."""

    matrix: Tensor
    """(H, m, b, b), zero, in the dtype in which tokens are turned."""
    moments: Tensor
    """(H, m, 2), zero: how heavy the tokens are, and how far."""
    frequencies: Tensor
    """μ of the matrix, (H, m, b/2)."""
    times: tuple[Tensor, Tensor]
    """τ of exp(τS) for the queries and for the keys, each (L, H, m) or (B, L, H, m)."""


class Rotation(NamedTuple):
    """Everything needed to turn queries and keys at given positions; made by `SpectralEncoding.rotation`, used once."""

    phases: tuple[Tensor, Tensor]
    """φ = ωᵀx of the queries and of the keys, each (L, H, D/2) or (B, L, H, D/2) in radians, float64. The same tensor twice is
    worked out once."""
    tables: tuple[Tensor, Tensor]
    """cos φ and sin φ of both, (B or 1, H, 1, L, D/2, 2), in the dtype in which tokens are turned."""
    basis: Tensor | None = None
    """Q, (H, m, b, b), or None for the identity."""
    tilt: Tilt | None = None
    """Where the basis comes from decomposing a matrix."""

    @classmethod
    def at(
        cls, phases: tuple[Tensor, Tensor], dtype: torch.dtype, basis: Tensor | None = None, tilt: Tilt | None = None
    ) -> "Rotation":
        """With the tables of `phases` in `dtype`."""
        table = key_table = _phase_table(phases[0], dtype)
        if phases[1] is not phases[0]:
            key_table = _phase_table(phases[1], dtype)
        return cls(phases, (table, key_table), basis, tilt)

    def split(self, num_heads: Sequence[int]) -> list["Rotation"]:
        """One rotation for each number of neighbouring heads: what several layers have worked out together."""
        if len(num_heads) == 1:
            return [self]

        def parts(tensor: Tensor | None, dim: int) -> Sequence[Tensor | None]:
            return [None] * len(num_heads) if tensor is None else tensor.split(list(num_heads), dim)

        def pairs(pair: tuple[Tensor, Tensor], dim: int) -> list:
            first = parts(pair[0], dim)
            return list(zip(first, first if pair[1] is pair[0] else parts(pair[1], dim), strict=True))

        tilts = [None] * len(num_heads)
        if self.tilt is not None:
            matrix, moments, frequencies, times = self.tilt
            each = (parts(matrix, 0), parts(moments, 0), parts(frequencies, 0), pairs(times, -2))
            tilts = [Tilt(*of_layer) for of_layer in zip(*each, strict=True)]  # pyright: ignore[reportArgumentType]
        each = (pairs(self.phases, -2), pairs(self.tables, 1), parts(self.basis, 0), tilts)
        return [Rotation(*of_layer) for of_layer in zip(*each, strict=True)]

    def turn(self, q: Tensor, k: Tensor, *, in_basis: bool = False) -> tuple[Tensor, Tensor]:
        """Rot(φ)·Qᵀq and Rot(φ)·Qᵀk for every token, head and block.

        Args:
            q: (B, H·g, L, D); g > 1 where query heads share a key head.
            k: (B, H, L, D).
            in_basis: whether q and k are Qᵀq and Qᵀk already, because `into_basis` made the weights they come from.
        Returns:
            Same shapes and dtypes. Inner products between tokens are those of R(x)q and R(y)k; without a basis the
            results are R(x)q and R(y)k themselves.

        Gradients are exact to first order for losses that depend on q and k through their scores; asking for second
        derivatives raises SecondDerivativeError.
        """
        dtype = torch.promote_types(compute_dtype(q), k.dtype)
        if dtype != self.tables[0].dtype:
            self = Rotation.at(self.phases, dtype, self.basis, self.tilt)
        (phases, key_phases), (table, key_table) = _apart(self.phases), _apart(self.tables)
        basis = None if in_basis else self.basis
        matrix = moments = frequencies = time = key_time = None
        if self.tilt is not None:
            matrix, moments, frequencies, times = self.tilt
            time, key_time = _apart(times)
        inputs = (phases, key_phases, basis, matrix, moments, frequencies, time, key_time, table, key_table)
        return Turn.apply(q, k, *inputs)  # pyright: ignore[reportReturnType]

    def into_basis(self, weight: Tensor) -> Tensor:
        """Qᵀ multiplied into a projection that makes queries or keys: one small product a step instead of one a token.

        Args:
            weight: (rows, ...) with H·D rows, or a multiple of them: the weight or bias of several projections stacked, or
                of grouped queries with the heads of a group together.
        Returns:
            Same shape: head by head, block by block, Qᵀ times its rows. The weight itself where there is no basis.
        """
        if self.basis is None:
            return weight
        num_heads, num_blocks, b, _ = self.basis.shape
        with full_precision(weight.device):
            rows = weight.reshape(-1, num_heads, num_blocks, b, weight[0].numel())
            return (self.basis.mT.to(weight.dtype) @ rows).reshape(weight.shape)


def _apart(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Of the queries and of the keys, None where they share it."""
    return pair[0], None if pair[1] is pair[0] else pair[1]


def _phase_table(phases: Tensor, dtype: torch.dtype) -> Tensor:
    """cos φ and sin φ in `dtype`, accurate however large the phases: whole turns are taken off in float64.

    (B or none, L, H, D/2) in, (B or 1, H, 1, L, D/2, 2) out: laid out beside the planes of queries (B, H, g, L, D).
    """
    phases = phases.detach()
    if dtype != torch.float64:
        phases = (phases - (2 * math.pi) * torch.round(phases / (2 * math.pi))).to(dtype)
    if phases.ndim == 3:
        phases = phases.unsqueeze(0)
    phases = phases.transpose(1, 2).unsqueeze(2)
    return torch.stack((phases.cos(), phases.sin()), dim=-1)


def compute_dtype(x: Tensor) -> torch.dtype:
    """In which tokens of x's dtype are turned: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)
