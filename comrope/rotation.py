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


class Generator(NamedTuple):
    """The one-parameter form exp(τS) of a rotation, for encodings whose basis comes from decomposing S."""

    tilt: Tensor
    """(H, m, b, b), zero: carries the gradient that eigenvectors cannot (see comrope._linalg)."""
    time: Tensor
    """τ, (L, H or 1, m) or (B, L, H or 1, m)."""


def turn(
    q: Tensor,
    k: Tensor,
    phases: tuple[Tensor, Tensor],
    basis: Tensor | None = None,
    generators: tuple[Generator | None, Generator | None] = (None, None),
) -> tuple[Tensor, Tensor]:
    """Rot(φ)·Qᵀq and Rot(φ)·Qᵀk for every token, head and block.

    Args:
        q: (B, H·g, L, D); g > 1 where query heads share a key head.
        k: (B, H, L, D).
        phases: φ = ωᵀx of the queries and of the keys, each (L, H, D/2) or (B, L, H, D/2) in radians, float64; H may be 1
            for phases alike in all heads. The same tensor twice is worked out once.
        basis: Q, (H, m, b, b), or None for the identity.
        generators: for a basis that `skew_spectrum` found: where its gradient's token sums go.
    Returns:
        Same shapes and dtypes. Inner products between tokens are those of R(x)q and R(y)k. Without a basis the planes
        stay where they were, (2k, 2k+1), and the results are R(x)q and R(y)k themselves; with one, the first coordinates
        of all planes come before the second ones.

    Gradients are those of R(x)q with the outer Q in place, exact to first order for any loss on scores; asking for
    second derivatives raises SecondDerivativeError.
    """
    turned = []
    table = _phase_table(phases[0], compute_dtype(q))
    for i, x in enumerate((q, k)):
        dtype = compute_dtype(x)
        if i == 1 and (phases[1] is not phases[0] or dtype != compute_dtype(q)):
            table = _phase_table(phases[1], dtype)
        tilt, time = generators[i] or (None, None)
        turned.append(_Turn.apply(x, phases[i], basis, tilt, time, *table))
    return turned[0], turned[1]


def _phase_table(phases: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos φ and sin φ in `dtype`, accurate however large the phases: whole turns are taken off in float64.

    (B or none, L, H, D/2) in, (B or 1, H, 1, L, D/2) out: laid out beside queries (B, H, g, L, D).
    """
    phases = phases.detach()
    if dtype != torch.float64:
        phases = (phases - (2 * math.pi) * torch.round(phases / (2 * math.pi))).to(dtype)
    if phases.ndim == 3:
        phases = phases.unsqueeze(0)
    phases = phases.transpose(1, 2).unsqueeze(2).contiguous()
    return phases.cos(), phases.sin()


def compute_dtype(x: Tensor) -> torch.dtype:
    """In which tokens of x's dtype are turned: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def full_precision(device: torch.device):
    """A context in which autocast, where the device has one, does not round matrix products."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class _Turn(Function):
    """The rotation and its backward. It saves cos, sin and its own output, which attention keeps anyway, and no input."""

    @staticmethod
    def forward(x, phases, basis, tilt, time, cos, sin):  # pyright: ignore[reportIncompatibleMethodOverride]
        grouped = _group_heads(x, basis, cos)
        if basis is not None:
            with full_precision(x.device):
                grouped = grouped.to(cos.dtype) @ _dense(basis, cos.dtype)
        return _rotate(grouped, cos, sin, interleaved=basis is None).view(x.shape).to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, phases, basis, _, time, cos, sin = inputs
        ctx.save_for_backward(output, basis, time, cos, sin)
        ctx.phases_shape = phases.shape

    @staticmethod
    def backward(ctx, grad):
        turned, basis, time, cos, sin = ctx.saved_tensors
        needed, shape = ctx.needs_input_grad[:4], ctx.phases_shape
        with torch.no_grad(), full_precision(grad.device):
            grads = _turn_backward(grad, turned, basis, time, cos, sin, shape, needed)
        return (*(first_order_only(g, grad, turned) for g in grads), None, None, None)


def _turn_backward(grad, turned, basis, time, cos, sin, phases_shape, needed):
    """∂L/∂(x, φ, Q, tilt). With z = Rot(φ)Qᵀx the output, g its gradient, h = Rot(−φ)g and u = Rot(−φ)z = Qᵀx:

    ∂L/∂x = Qh,   ∂L/∂φ = ⟨g, Jz⟩,   ∂L/∂Q = Q Σ_n (u hᵀ + g zᵀ),   ∂L/∂tilt = Σ_n (τ_n/2)(h uᵀ + g zᵀ).
    """
    needs_x, needs_phases, needs_basis, needs_tilt = needed
    interleaved = basis is None
    g = _group_heads(grad, basis, cos).to(cos.dtype)  # (B, H, g, L, D)
    z = _group_heads(turned, basis, cos).to(cos.dtype)
    grad_x = grad_phases = grad_basis = grad_tilt = None
    if needs_phases:
        (g1, g2), (z1, z2) = _planes(g, interleaved), _planes(z, interleaved)
        grad_phases = _sum_to(torch.addcmul(g2 * z1, g1, z2, value=-1), phases_shape)
    if needs_x or needs_basis or needs_tilt:
        h = _rotate(g, cos, -sin, interleaved)
    if needs_x:
        grad_x = h if interleaved else h @ _dense(basis, cos.dtype).mT
        grad_x = grad_x.view(grad.shape).to(grad.dtype)
    if needs_basis or needs_tilt:
        u = _rotate(z, cos, -sin, interleaved=False)
    if needs_basis:
        grad_basis = basis @ (_gram(u, h, basis) + _gram(g, z, basis)).to(basis.dtype)
    if needs_tilt:
        half = _on_planes(time, basis).to(cos.dtype) / 2
        grad_tilt = _gram(h * half, u, basis) + _gram(g * half, z, basis)
    return grad_x, grad_phases, grad_basis, grad_tilt


# Inside, tokens are (B, H, g, L, D), a group of g query heads beside the key head whose rotation they share. In the basis
# the planes' first coordinates fill the first half of D and the second ones the other (contiguous, as fast as RoPE's
# "half" layout): the order is folded into the dense block-diagonal Q, so it costs nothing.


def _group_heads(x: Tensor, basis: Tensor | None, cos: Tensor) -> Tensor:
    """(B, H·g, L, D) as (B, H, g, L, D), H being the heads that have a rotation of their own."""
    num_heads = cos.shape[1] if basis is None else basis.shape[0]
    return x.unflatten(1, (num_heads, x.shape[1] // num_heads))


def _planes(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """First and second coordinates of every plane, (..., D/2) each, as views."""
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Each plane of x turned by its angle, in the dtype of cos."""
    out = torch.empty_like(x, dtype=cos.dtype, memory_format=torch.contiguous_format)
    (x1, x2), (out1, out2) = _planes(x.to(cos.dtype), interleaved), _planes(out, interleaved)
    out1.copy_(x1).mul_(cos).addcmul_(x2, sin, value=-1)
    out2.copy_(x2).mul_(cos).addcmul_(x1, sin)
    return out


def _dense(basis: Tensor, dtype: torch.dtype) -> Tensor:
    """Q of all blocks of a head as one matrix (H, 1, D, D), its columns ordered (coordinate, block, plane).

    One D × D product for all blocks is faster than m products of b × b (measured at D = 64, b = 8 on a CPU: 2 ×), and
    makes the cost the same for every block size.
    """
    num_heads, num_blocks, b, _ = basis.shape
    columns = basis.to(dtype).unflatten(-1, (b // 2, 2)).transpose(-1, -2)  # (H, m, b, 2, h)
    eye = torch.eye(num_blocks, dtype=dtype, device=basis.device).view(num_blocks, 1, 1, num_blocks, 1)
    return (columns.unsqueeze(-2) * eye).reshape(num_heads, 1, num_blocks * b, num_blocks * b)


def _gram(left: Tensor, right: Tensor, basis: Tensor) -> Tensor:
    """Σ over batch, group and tokens of left · rightᵀ, within each block: (H, m, b, b), in plane coordinates."""
    num_heads, num_blocks, b, _ = basis.shape
    dense = (left.mT @ right).sum((0, 2))  # (H, D, D)
    parts = dense.view(num_heads, 2, num_blocks, b // 2, 2, num_blocks, b // 2).diagonal(dim1=2, dim2=5)
    return parts.permute(0, 5, 2, 1, 4, 3).reshape(num_heads, num_blocks, b, b)


def _on_planes(time: Tensor, basis: Tensor) -> Tensor:
    """τ (B or none, L, H or 1, m) spread over the coordinates of each block: (B or 1, H or 1, 1, L, D)."""
    if time.ndim == 3:
        time = time.unsqueeze(0)
    coordinates = time.repeat_interleave(basis.shape[-1] // 2, dim=-1).repeat(1, 1, 1, 2)
    return coordinates.transpose(1, 2).unsqueeze(2)


def _sum_to(grad: Tensor, shape: torch.Size) -> Tensor:
    """A gradient (B, H, g, L, D/2) summed down to the phases' shape (B or none, L, H or 1, D/2), in float64."""
    grad = grad.sum(2).transpose(1, 2)
    summed = grad.sum_to_size(shape) if len(shape) == 4 else grad.sum_to_size((1, *shape)).squeeze(0)
    return summed.double()
