"""Turning queries and keys: the spectral engine that all commuting encodings share.

R(x) = Q · Rot(ωᵀx) · Qᵀ. Attention sees only ⟨R(x)q, R(y)k⟩, where the outer Q cancels, so what is returned is
Rot(ωᵀx)·Qᵀq: plain RoPE after a change of basis. No matrix exponential, and nothing per token but one small product.
"""

import math
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
    """τ of exp(τS) for the queries and for the keys, each (L, H or 1, m) or (B, L, H or 1, m)."""


class Rotation(NamedTuple):
    """Everything needed to turn queries and keys at given positions; made by `SpectralEncoding.rotation`, used once."""

    phases: tuple[Tensor, Tensor]
    """φ = ωᵀx of the queries and of the keys, each (L, H, D/2) or (B, L, H, D/2) in radians, float64; H may be 1 for phases
    alike in all heads. The same tensor twice is worked out once."""
    basis: Tensor | None = None
    """Q, (H, m, b, b), or None for the identity."""
    tilt: Tilt | None = None
    """Where the basis comes from decomposing a matrix."""

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
        phases, key_phases = _apart(self.phases)
        table = _phase_table(phases, dtype)
        key_table = None if key_phases is None else _phase_table(key_phases, dtype)
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
