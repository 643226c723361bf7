"""Rotation of queries and keys by all commuting encodings: the spectral engine's interface.

R(x) = Q · Rot(ωᵀx) · Qᵀ. Attention uses only ⟨R(x)q, R(y)k⟩, where the outer Q cancels, so the engine returns Rot(ωᵀx)·Qᵀq:
plain RoPE after a change of basis. It needs no matrix exponential, and one small product per token.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from comrope._apply_rotation import ApplyRotationInPlace, apply_rotation
from comrope._planes import cos_sin_table, full_precision
from comrope._values import described, is_floating
from comrope.errors import InputError


class Spectrum(NamedTuple):
    """Basis and frequencies of commuting angle matrices: A_i = Q · diag(ω_i1 J, …, ω_ih J) · Qᵀ in each head and block."""

    basis: Tensor
    """Q, (H, m, b, b), orthogonal; columns 2k and 2k+1 span plane k."""
    frequencies: Tensor
    """ω, (N, H, m, b/2), radians per unit of position."""


class Generator(NamedTuple):
    """Carries the gradient to a learned matrix S, if blocks are rotated by exp(τS) (see comrope._generator_gradient)."""

    matrix: Tensor
    """D = QᵀSQ, (H, m, b, b), float64."""
    positions: tuple[Tensor, Tensor]
    """τ of the queries and of the keys, each (L, H, m) or (B, L, H, m), float64."""


class Rotation(NamedTuple):
    """All that is needed to rotate queries and keys at given positions. `SpectralEncoding.rotation` makes it."""

    phases: tuple[Tensor, Tensor]
    """φ = ωᵀx of the queries and of the keys, each (L, H, D/2) or (B, L, H, D/2), in radians, float64. They are the same tensor
    if the positions are the same."""
    tables: tuple[Tensor, Tensor]
    """cos φ and sin φ of each, times √gain, (B or 1, H, 1, L, D/2, 2), in the dtype in which tokens are rotated."""
    basis: Tensor | None = None
    """Q, (H, m, b, b), or None for the identity."""
    generator: Generator | None = None
    """Given if the basis comes from decomposing a matrix in blocks larger than 2."""
    gain: float = 1.0
    """The factor of attention scores: queries and keys are each multiplied by √gain. It is 1 if the basis is learned."""

    @classmethod
    def at(
        cls,
        phases: tuple[Tensor, Tensor],
        dtype: torch.dtype,
        basis: Tensor | None = None,
        generator: Generator | None = None,
    ) -> "Rotation":
        """Returns a rotation by `phases`, with their tables computed in `dtype`."""
        table = key_table = cos_sin_table(phases[0], dtype)
        if phases[1] is not phases[0]:
            key_table = cos_sin_table(phases[1], dtype)
        return cls(phases, (table, key_table), basis, generator)

    def with_gain(self, gain: float) -> "Rotation":
        """Returns a rotation after which attention scores are `gain` times as large; of constant angles only."""
        if gain == self.gain:
            return self
        factor = math.sqrt(gain / self.gain)
        table, key_table = self.tables
        scaled = table * factor
        tables = (scaled, scaled if key_table is table else key_table * factor)
        return self._replace(tables=tables, gain=gain)

    def split(self, num_heads: Sequence[int]) -> list["Rotation"]:
        """Returns one rotation per layer, given the number of heads of each layer whose rotations were computed together."""
        if len(num_heads) == 1:
            return [self]

        def parts(tensor: Tensor | None, dim: int) -> Sequence[Tensor | None]:
            return [None] * len(num_heads) if tensor is None else tensor.split(list(num_heads), dim)

        def pairs(pair: tuple[Tensor, Tensor], dim: int) -> list:
            of_queries = parts(pair[0], dim)
            of_keys = of_queries if pair[1] is pair[0] else parts(pair[1], dim)
            return list(zip(of_queries, of_keys, strict=True))

        generators: Sequence[Generator | None] = [None] * len(num_heads)
        if self.generator is not None:
            each = zip(parts(self.generator.matrix, 0), pairs(self.generator.positions, -2), strict=True)
            generators = [Generator(*of_layer) for of_layer in each]  # pyright: ignore[reportArgumentType]
        each = (pairs(self.phases, -2), pairs(self.tables, 1), parts(self.basis, 0), generators)
        return [Rotation(*of_layer, self.gain) for of_layer in zip(*each, strict=True)]

    def rotate(self, q: Tensor, k: Tensor, *, in_basis: bool = False) -> tuple[Tensor, Tensor]:
        """Returns the rotated queries and keys, Rot(φ)·Qᵀq and Rot(φ)·Qᵀk.

        Args:
            q: (B, H·g, L, D); g > 1 if query heads share a key head.
            k: (B, H, L, D).
            in_basis: q and k are Qᵀq and Qᵀk already, because their projection weights went through `into_basis`.
        Returns:
            Same shapes and dtypes. Inner products between queries and keys are those of R(x)q and R(y)k. Without a basis, the
            results are R(x)q and R(y)k themselves.

        First derivatives are exact, and are those of R(x)q and R(y)k. So queries and keys may be rotated in different calls or
        on different processes, and either may be detached. Second derivatives raise SecondDerivativeError. If angles are
        learned and the results are changed in place, the backward raises InputError.
        """
        return self.queries(q, in_basis=in_basis), self.keys(k, in_basis=in_basis)

    def queries(self, q: Tensor, *, in_basis: bool = False) -> Tensor:
        """Returns the rotated queries, for callers that do not have keys at the same time."""
        return self._rotate(q, 0, in_basis)

    def keys(self, k: Tensor, *, in_basis: bool = False) -> Tensor:
        """Returns the rotated keys, for callers that do not have queries at the same time."""
        return self._rotate(k, 1, in_basis)

    def within(self, y: Tensor, heads: Callable[[Tensor], list[Tensor]], *, in_basis: bool = False) -> Tensor:
        """Rotates queries and keys inside the output y of a fused projection, in place, and returns y.

        Queries and keys must have the same positions.

        Args:
            y: the output of a projection, which no other code may use.
            heads: returns the parts of a tensor like y to rotate, as views (B, H, g, L, D).
            in_basis: as for `rotate`.
        """
        return ApplyRotationInPlace.apply(y, *self._engine_inputs(compute_dtype(y), 0), in_basis, heads)  # pyright: ignore

    def _rotate(self, x: Tensor, which: int, in_basis: bool) -> Tensor:
        """Returns x rotated as queries, if `which` is 0, or as keys, if it is 1."""
        if not torch.compiler.is_compiling():
            self._check_tokens(x, "qk"[which], self.tables[which], in_basis)
        return apply_rotation(x, *self._engine_inputs(compute_dtype(x), which), in_basis)

    @staticmethod
    def _check_tokens(x: Tensor, name: str, table: Tensor, in_basis: bool) -> None:
        """Raises InputError unless x fits the table."""
        batch, num_heads, _, length, planes, _ = table.shape
        fits = is_floating(x) and x.ndim == 4 and x.shape[2:] == (length, 2 * planes) and batch in (1, len(x))
        if not fits or x.shape[1] % num_heads or x.device != table.device:
            raise InputError(
                f"{name}: got {described(x)}; expected floating-point numbers in a dense tensor on {table.device}, "
                f"({batch if batch > 1 else 'B'}, heads, {length}, {2 * planes}), with heads a multiple of {num_heads}."
            )
        if not isinstance(in_basis, bool):
            raise InputError(f"in_basis={in_basis!r}: expected True or False.")

    def _engine_inputs(
        self, dtype: torch.dtype, which: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]:
        """Returns the arguments of `apply_rotation`: phases, basis, generator, its positions, and the table in `dtype`."""
        table = self.tables[which]
        if dtype != table.dtype:
            table = cos_sin_table(self.phases[which], dtype) * math.sqrt(self.gain)
        matrix, positions = (None, (None, None)) if self.generator is None else self.generator
        return self.phases[which], self.basis, matrix, positions[which], table

    def into_basis(self, weight: Tensor) -> Tensor:
        """Returns a query or key projection multiplied by Qᵀ, so that tokens need not be: one product per step, not per token.

        Args:
            weight: (rows, ...), a weight or bias with H·D rows or a multiple of that. Several projections may be stacked.
                Grouped queries have the heads of a group next to each other.
        Returns:
            Qᵀ times the rows of each head and block, same shape; the weight itself if there is no basis. The gradient flows to
            the weight only. That of Q comes from `rotate(…, in_basis=True)`, without the rounding of a product of weights in
            half precision.
        """
        _, heads, _, _, planes, _ = self.tables[0].shape
        num_rows = 2 * heads * planes
        fits = is_floating(weight) and weight.ndim > 0 and weight.device == self.tables[0].device
        if not fits or not len(weight) or len(weight) % num_rows:
            raise InputError(
                f"weight: got {described(weight)}; expected floating-point numbers on {self.tables[0].device}, (rows, …), with "
                f"{num_rows} rows or a multiple of them: those that make queries or keys, and no values."
            )
        if self.basis is None:
            return weight
        num_heads, num_blocks, b, _ = self.basis.shape
        with full_precision(weight.device):
            rows = weight.reshape(len(weight) // num_rows, num_heads, num_blocks, b, weight[0].numel())
            return (self.basis.detach().mT.to(weight.dtype) @ rows).reshape(weight.shape)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which tokens like x are rotated: x's own, but float32 at least.

    Args:
        x: queries or keys.
    """
    return torch.promote_types(x.dtype, torch.float32)
