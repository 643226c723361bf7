"""Turning queries and keys: the spectral engine that all commuting encodings share.

R(x) = Q · Rot(ωᵀx) · Qᵀ. Attention sees only ⟨R(x)q, R(y)k⟩, where the outer Q cancels, so what is returned is
Rot(ωᵀx)·Qᵀq: plain RoPE after a change of basis. No matrix exponential, and nothing per token but one small product.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from comrope._linalg import first_order_only


class Spectrum(NamedTuple):
    """What a commuting family is made of: A_i = Q · diag(ω_i1 J, …, ω_ih J) · Qᵀ in each head and block."""

    basis: Tensor
    """Q, (H, m, b, b), orthogonal; columns 2k and 2k+1 span plane k."""
    frequencies: Tensor
    """ω, (N, H, m, b/2), radians per unit of position."""


class Rotation(NamedTuple):
    """Everything needed to turn queries and keys at given positions; made by `SpectralEncoding.rotation`, used once."""

    phases: tuple[Tensor, Tensor]
    """φ = ωᵀx of the queries and of the keys, each (L, H, D/2) or (B, L, H, D/2) in radians, float64; H may be 1 for phases
    alike in all heads. The same tensor twice is worked out once."""
    basis: Tensor | None = None
    """Q, (H, m, b, b), or None for the identity."""
    tilt: Tensor | None = None
    """(H, m, b, b), zero: carries the gradient that a decomposed basis cannot (see comrope._linalg)."""
    moments: Tensor | None = None
    """(H, m, 2), zero: with the tilt, carries how far and how heavy the tokens are."""
    times: tuple[Tensor, Tensor] | None = None
    """With a tilt: τ of exp(τS) for the queries and for the keys, each (L, H or 1, m) or (B, L, H or 1, m)."""

    def turn(self, q: Tensor, k: Tensor, *, in_basis: bool = False) -> tuple[Tensor, Tensor]:
        """Rot(φ)·Qᵀq and Rot(φ)·Qᵀk for every token, head and block.

        Args:
            q: (B, H·g, L, D); g > 1 where query heads share a key head.
            k: (B, H, L, D).
            in_basis: whether q and k are Qᵀq and Qᵀk already, because `into_basis` made the weights they come from.
        Returns:
            Same shapes and dtypes. Inner products between tokens are those of R(x)q and R(y)k; without a basis the
            results are R(x)q and R(y)k themselves.

        Gradients are exact to first order; asking for second derivatives raises SecondDerivativeError. They are those of
        R(x)q with the outer Q in place, whatever the loss does with either result; with in_basis, of losses that depend
        on q and k through their scores, both attached.
        """
        turned = []
        basis = self.basis.detach() if in_basis and self.basis is not None else self.basis
        table = _phase_table(self.phases[0], compute_dtype(q))
        for i, x in enumerate((q, k)):
            dtype = compute_dtype(x)
            if i == 1 and (self.phases[1] is not self.phases[0] or dtype != compute_dtype(q)):
                table = _phase_table(self.phases[1], dtype)
            time = None if self.times is None else self.times[i]
            turned.append(_Turn.apply(x, self.phases[i], basis, self.tilt, self.moments, time, table, in_basis))
        return turned[0], turned[1]

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


def full_precision(device: torch.device):
    """A context in which autocast, where the device has one, does not round matrix products."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class _Turn(Function):
    """The rotation and its backward. It saves the table and its own output, which attention keeps anyway, and no input."""

    @staticmethod
    def forward(x, phases, basis, tilt, moments, time, table, in_basis):  # pyright: ignore[reportIncompatibleMethodOverride]
        grouped = _group_heads(x, table, basis).to(table.dtype)
        if in_basis or basis is None:
            return _rotate(grouped, table, out=x)
        with full_precision(x.device):
            return _rotate(grouped @ _dense(basis, table.dtype), table, out=x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, phases, basis, _, _, time, table, ctx.in_basis = inputs
        ctx.save_for_backward(output, basis, time, table)
        ctx.shared = phases.ndim == 3  # by the batch

    @staticmethod
    def backward(ctx, grad):
        turned, basis, time, table = ctx.saved_tensors
        with torch.no_grad(), full_precision(grad.device):
            grads = _turn_backward(grad, turned, basis, time, table, ctx.in_basis, ctx.shared, ctx.needs_input_grad[:5])
        return (*(first_order_only(g, grad, turned) for g in grads), None, None, None)


def _turn_backward(grad, turned, basis, time, table, in_basis, shared, needed):
    """∂L/∂(x, φ, Q, tilt, moments). With z = Rot(φ)Qᵀx the output, g its gradient, h = Rot(−φ)g and u = Rot(−φ)z = Qᵀx:

    ∂L/∂x = Qh,   ∂L/∂φ = ⟨g, Jz⟩,   ∂L/∂Q = Q Σ_n (g zᵀ − h uᵀ),   ∂L/∂tilt = Σ_n (τ_n/2)(h uᵀ + g zᵀ).

    (For Q, u hᵀ + g zᵀ is what differentiation gives; h uᵀ differs from −u hᵀ by a symmetric matrix, which no change of
    an orthogonal Q can see.)
    """
    needs_x, needs_phases, needs_basis, needs_tilt, needs_moments = needed
    g = _group_heads(grad, table, basis).to(table.dtype)  # (B, H, g, L, D)
    z = _group_heads(turned, table, basis).to(table.dtype)
    grad_x = grad_phases = grad_basis = grad_tilt = grad_moments = None
    if needs_phases:
        grad_phases = _phase_gradient(g, z, shared=shared)
    if needs_moments:
        grad_moments = _moments(g, z, time)
    h = _rotate(g, table, backwards=True)
    if needs_x:
        grad_x = h if in_basis or basis is None else h @ _dense(basis, table.dtype).mT
        grad_x = grad_x.view(grad.shape).to(grad.dtype)
    if basis is not None and (needs_basis or needs_tilt):
        u = _rotate(z, table, backwards=True)
    if basis is not None and needs_basis:
        grad_basis = basis @ (_gram(g, z, basis) - _gram(h, u, basis)).to(basis.dtype)
    if basis is not None and needs_tilt:
        half = _on_coordinates(time, basis).to(table.dtype) / 2
        grad_tilt = _gram(h, u.mul_(half), basis) + _gram(torch.mul(g, half, out=u), z, basis)
    return grad_x, grad_phases, grad_basis, grad_tilt, grad_moments


# Inside, tokens are (B, H, g, L, D): a group of g query heads beside the key head whose rotation they share.


def _group_heads(x: Tensor, table: Tensor, basis: Tensor | None) -> Tensor:
    """(B, H·g, L, D) as (B, H, g, L, D), H being the heads that have a rotation of their own."""
    num_heads = table.shape[1] if basis is None else basis.shape[0]
    return x.unflatten(1, (num_heads, x.shape[1] // num_heads))


def _planes(x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second coordinates of every plane, (..., D/2) each, as views."""
    return x[..., 0::2], x[..., 1::2]


def _rotate(x: Tensor, table: Tensor, *, backwards: bool = False, out: Tensor | None = None) -> Tensor:
    """Each plane of x turned by its angle, or by minus it; as a new tensor of x's shape, or of the shape and dtype of `out`.

    A plane is a complex number, and eager PyTorch multiplies those in one pass; Inductor and ONNX know none, and fuse the
    same in real arithmetic.
    """
    if torch.compiler.is_compiling():
        (x1, x2), (cos, sin) = _planes(x), table.unbind(-1)
        sin = -sin if backwards else sin
        turned = torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).flatten(-2)
        return turned if out is None else turned.view(out.shape).to(out.dtype)
    turn = torch.view_as_complex(table)
    turn = turn.conj() if backwards else turn
    planes = _complex(x)
    # Written into a tensor of the right shape, and not returned as a view: autograd forbids changing those in place.
    turned = torch.empty(x.shape if out is None else out.shape, dtype=x.dtype, device=x.device)
    torch.mul(planes, turn, out=_complex(turned.view(x.shape)))
    return turned if out is None else turned.to(out.dtype)


def _complex(x: Tensor) -> Tensor:
    """Planes as complex numbers, (..., D/2): a view, or a copy where the memory of x does not allow one."""
    even = all(stride % 2 == 0 for stride in x.stride()[:-1]) and x.storage_offset() % 2 == 0
    x = x if even and x.stride(-1) == 1 else x.contiguous()
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _dense(basis: Tensor, dtype: torch.dtype) -> Tensor:
    """Q of all blocks of a head as one block-diagonal matrix, (H, 1, D, D): one large product in place of many small ones."""
    num_heads, num_blocks, b, _ = basis.shape
    eye = torch.eye(num_blocks, dtype=dtype, device=basis.device).view(num_blocks, 1, num_blocks, 1)
    return (basis.to(dtype).unsqueeze(-2) * eye).reshape(num_heads, 1, num_blocks * b, num_blocks * b)


def _gram(left: Tensor, right: Tensor, basis: Tensor) -> Tensor:
    """Σ over batch, group and tokens of left · rightᵀ within each block: (H, m, b, b).

    Neighbouring blocks are multiplied together, up to 16 × 16, and the diagonal is kept: smaller products waste time.
    """
    num_blocks, b = basis.shape[1:3]
    together = max(n for n in range(1, num_blocks + 1) if num_blocks % n == 0 and (n == 1 or n * b <= 16))
    pairs = zip(left.split(together * b, dim=-1), right.split(together * b, dim=-1), strict=True)
    products = torch.stack([(x.mT @ y).sum((0, 2)) for x, y in pairs], dim=1)  # (H, m/together, together·b, together·b)
    blocks = products.unflatten(-1, (together, b)).unflatten(-3, (together, b)).diagonal(dim1=2, dim2=4)
    return blocks.movedim(-1, 2).flatten(1, 2)


def _on_coordinates(time: Tensor, basis: Tensor) -> Tensor:
    """τ (B or none, L, H or 1, m) for each coordinate of its block: (B or 1, H or 1, 1, L, D)."""
    if time.ndim == 3:
        time = time.unsqueeze(0)
    return time.repeat_interleave(basis.shape[-1], dim=-1).transpose(1, 2).unsqueeze(2)


def _moments(g: Tensor, z: Tensor, time: Tensor) -> Tensor:
    """Σ w and Σ w|τ|³ for each head and block, w = |g||z| over the whole head: (H, m, 2), float64."""
    weight = (g.norm(dim=-1) * z.norm(dim=-1)).double().sum(2).transpose(1, 2).unsqueeze(-1)  # (B, L, H, 1)
    if time.ndim == 3:
        weight = weight.sum(0)
    cubes = weight * time.abs() ** 3  # (B or none, L, H, m)
    return torch.stack((weight.expand_as(cubes), cubes), dim=-1).flatten(0, -4).sum(0)


def _phase_gradient(g: Tensor, z: Tensor, *, shared: bool) -> Tensor:
    """⟨g, Jz⟩ of every plane, summed over what shares its phase, as float64: (L, H, D/2) if shared, else (B, L, H, D/2)."""
    (g1, g2), (z1, z2) = _planes(g), _planes(z)
    summed = torch.addcmul(g2 * z1, g1, z2, value=-1).sum((0, 2) if shared else 2)
    return summed.transpose(-3, -2).double()
