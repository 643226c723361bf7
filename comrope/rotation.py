"""Rotating queries and keys: the spectral engine that all commuting encodings share.

R(x) = Q · Rot(ωᵀx) · Qᵀ. Attention sees only ⟨R(x)q, R(y)k⟩, where the outer Q cancels, so what is returned is
Rot(ωᵀx)·Qᵀq: plain RoPE after a change of basis. No matrix exponential, and nothing per token but one small product.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from comrope._planes import full_precision, phase_table
from comrope._turn import TurnWithin, turn
from comrope._values import described, is_floating
from comrope.errors import InputError


class Spectrum(NamedTuple):
    """What a commuting family is made of: A_i = Q · diag(ω_i1 J, …, ω_ih J) · Qᵀ in each head and block."""

    basis: Tensor
    """Q, (H, m, b, b), orthogonal; columns 2k and 2k+1 span plane k."""
    frequencies: Tensor
    """ω, (N, H, m, b/2), radians per unit of position."""


class Generator(NamedTuple):
    """What carries the gradient of a learned matrix S to it, where each block rotates by exp(τS) (see comrope._generator)."""

    matrix: Tensor
    """D = QᵀSQ, (H, m, b, b), float64."""
    positions: tuple[Tensor, Tensor]
    """τ of the queries and of the keys, each (L, H, m) or (B, L, H, m), float64."""


class Rotation(NamedTuple):
    """Everything needed to rotate queries and keys at given positions; made by `SpectralEncoding.rotation`."""

    phases: tuple[Tensor, Tensor]
    """φ = ωᵀx of the queries and of the keys, each (L, H, D/2) or (B, L, H, D/2) in radians, float64. The same tensor twice is
    worked out once."""
    tables: tuple[Tensor, Tensor]
    """cos φ and sin φ of both, (B or 1, H, 1, L, D/2, 2), in the dtype in which tokens are rotated."""
    basis: Tensor | None = None
    """Q, (H, m, b, b), or None for the identity."""
    generator: Generator | None = None
    """Where the basis comes from decomposing a matrix, of blocks larger than one plane."""

    @classmethod
    def at(
        cls,
        phases: tuple[Tensor, Tensor],
        dtype: torch.dtype,
        basis: Tensor | None = None,
        generator: Generator | None = None,
    ) -> "Rotation":
        """With the tables of `phases` in `dtype`."""
        table = key_table = phase_table(phases[0], dtype)
        if phases[1] is not phases[0]:
            key_table = phase_table(phases[1], dtype)
        return cls(phases, (table, key_table), basis, generator)

    def split(self, num_heads: Sequence[int]) -> list["Rotation"]:
        """One rotation for each number of neighbouring heads: what several layers have worked out together."""
        if len(num_heads) == 1:
            return [self]

        def parts(tensor: Tensor | None, dim: int) -> Sequence[Tensor | None]:
            return [None] * len(num_heads) if tensor is None else tensor.split(list(num_heads), dim)

        def pairs(pair: tuple[Tensor, Tensor], dim: int) -> list:
            first = parts(pair[0], dim)
            return list(zip(first, first if pair[1] is pair[0] else parts(pair[1], dim), strict=True))

        generators: Sequence[Generator | None] = [None] * len(num_heads)
        if self.generator is not None:
            each = zip(parts(self.generator.matrix, 0), pairs(self.generator.positions, -2), strict=True)
            generators = [Generator(*of_layer) for of_layer in each]  # pyright: ignore[reportArgumentType]
        each = (pairs(self.phases, -2), pairs(self.tables, 1), parts(self.basis, 0), generators)
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

        Gradients are exact to first order, and those of R(x)q and R(y)k: queries and keys of different calls may meet in a
        score, on different processes too, and either may be detached. Asking for second derivatives raises
        SecondDerivativeError; changing the results of learned angles in place makes the backward raise InputError.
        """
        return self.queries(q, in_basis=in_basis), self.keys(k, in_basis=in_basis)

    def queries(self, q: Tensor, *, in_basis: bool = False) -> Tensor:
        """`turn` of the queries alone, for callers that do not have both at once."""
        return self._turned(q, 0, in_basis)

    def keys(self, k: Tensor, *, in_basis: bool = False) -> Tensor:
        """`turn` of the keys alone."""
        return self._turned(k, 1, in_basis)

    def within(self, y: Tensor, heads: Callable[[Tensor], list[Tensor]], *, in_basis: bool = False) -> Tensor:
        """`queries` of some of the features of y, in place, where queries and keys have the same positions.

        Args:
            y: what a projection has put out, which nobody else holds.
            heads: gives views of what is to be turned of a tensor like y, each (B, H, g, L, D).
            in_basis: as for `turn`.
        """
        return TurnWithin.apply(y, *self._ingredients(compute_dtype(y), 0), in_basis, heads)  # pyright: ignore

    def _turned(self, x: Tensor, which: int, in_basis: bool) -> Tensor:
        if not torch.compiler.is_compiling():
            self._check(x, "qk"[which], self.tables[which], in_basis)
        return turn(x, *self._ingredients(compute_dtype(x), which), in_basis)

    @staticmethod
    def _check(x: Tensor, name: str, table: Tensor, in_basis: bool) -> None:
        """InputError unless x is what the table turns."""
        batch, num_heads, _, length, planes, _ = table.shape
        fits = is_floating(x) and x.ndim == 4 and x.shape[2:] == (length, 2 * planes) and batch in (1, len(x))
        if not fits or x.shape[1] % num_heads or x.device != table.device:
            raise InputError(
                f"{name}: got {described(x)}; expected floating-point numbers in a dense tensor on {table.device}, "
                f"({batch if batch > 1 else 'B'}, heads, {length}, {2 * planes}), with heads a multiple of {num_heads}."
            )
        if not isinstance(in_basis, bool):
            raise InputError(f"in_basis={in_basis!r}: expected True or False.")

    def _ingredients(
        self, dtype: torch.dtype, which: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]:
        """Phases, basis, generator and its positions, and the table."""
        table = self.tables[which]
        if dtype != table.dtype:
            table = phase_table(self.phases[which], dtype)
        matrix, positions = (None, (None, None)) if self.generator is None else self.generator
        return self.phases[which], self.basis, matrix, positions[which], table

    def into_basis(self, weight: Tensor) -> Tensor:
        """Qᵀ multiplied into a projection that makes queries or keys: one small product a step instead of one a token.

        Args:
            weight: (rows, ...) with H·D rows, or a multiple of them: the weight or bias of several projections stacked, or
                of grouped queries with the heads of a group together.
        Returns:
            Same shape: head by head, block by block, Qᵀ times its rows. The weight itself where there is no basis. Its gradient
            is that of the weight; the gradient of Q comes from `turn(…, in_basis=True)`, which has it without the rounding
            that a product of weights in half precision would bring.
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
    """In which tokens of x's dtype are rotated: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)
