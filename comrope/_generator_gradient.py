"""The gradient of a rotation in the matrix that generates it, also where frequencies are equal or zero.

**What is differentiated.** AP and LD rotate a token x by exp(τS), where S = Q diag(μ_k J) Qᵀ and τ is a scalar, the token's
position along the block. The engine returns z = Q₀ᵀ exp(τS) x, where Q₀ is the Q of the decomposition, held constant. Scores
do not depend on Q₀, since queries and keys share it, so no derivative of eigenvectors is needed. With the *generator*
D = Q₀ᵀ S Q₀, which is linear in S,

    z = exp(τD) u,   u = Q₀ᵀx,   at the point where D = diag(μ_k J).

The gradient of each token is correct by itself. It does not matter which queries and keys are rotated in one call or on one
process, or whether some are detached.

**The formula** (Daleckii–Krein). In each plane J has eigenvectors v± = (1, ∓i)/√2 with eigenvalues ±i. In this eigenbasis,
marked by ~, D has eigenvalues iλ_a with λ = ±μ. For gaps Δ_ab = λ_a − λ_b and g = ∂L/∂z,

    ∂L/∂D~ = M,   M_ab = Σ_n τ_n ∫₀¹ e^{−isΔτ_n} ds · g~_na z~*_nb.                                                        (1)

The integral is e^{−iw/2} sinc(w/2) with w = Δτ and sinc(x) = sin(x)/x. Storing it for each token and pair of planes would take
b times the memory of the tokens. Two other forms need only sums of outer products over tokens:

  *open gaps* (|Δ| large): by the fundamental theorem, with h = exp(−τD) g and u = exp(−τD) z,

    M = i/Δ · (A − K),   A = Σ h~ u~ᴴ,   K = Σ g~ z~ᴴ;                                                                     (2)

  *closed gaps* (|Δ| zero or small): with positions t = τ − c relative to a centre c, by the trapezoidal rule for the integral
from c to τ with the Euler–Maclaurin correction,

    M = c e^{−iΔc/2} sinc(Δc/2) K + ½ (e^{−iΔc} K₁ + A₁) − iΔ/12 (e^{−iΔc} K₂ − A₂),                                        (3)

    A_p = Σ t^p h~ u~ᴴ,   K_p = Σ t^p g~ z~ᴴ.

**Which form is used.** The error of form (2) is rounding, ε Σ|g||z| / Δ; that of form (3) is its remainder,
Δ⁴ Σ|g||z||t|⁵/720. With r⁵ = Σ|g||z||t|⁵ / Σ|g||z| they are equal at Δr = (720 ε)^⅕, and form (3) is used below that. In
float64 both errors are 10⁻¹³ of Σ|g||z||t| there. In float32 that threshold is so high that most steps would need both forms.
So in float32 form (3) is used below Δr = 1/64 only, where the error of form (2) is 10⁻⁵.

c is the mean position of the tokens, each weighted by its contribution to the gradient, so sequences far from position 0 lose
no accuracy. ε is the rounding error of the arithmetic, or that of the phases μτ in float64 if it is larger. The rounding of
tokens to bfloat16 is the same in A and K, and cancels.

Within a plane, a = b, M is Στ⟨g, Jz⟩. That part of the gradient flows through the phases φ = μτ, and is left zero here.
"""

import torch
from torch import Tensor

from comrope._linalg import can_synchronise
from comrope._planes import block_diagonal, repeat_over_features, rotate, scratch_buffers, sum_outer_products

_REMAINDER_DIVISOR = 720
"""The remainder of form (3) is w⁴ / 720."""
_MAX_CLOSED_GAP = 1 / 64
"""Form (3) is used below this Δr at most."""


def _to_eigenbasis(x: Tensor) -> Tensor:
    """Returns real blocks (..., b, b) in the eigenbasis: complex entries (..., b/2, b/2, 2) for planes i and j.

    Entry [i, j, 0] maps v+ of plane j to v+ of plane i, with gap μ_i − μ_j. Entry [i, j, 1] maps v− of plane j to v+ of plane
    i, with gap μ_i + μ_j. The entries that map to v− of plane i are the conjugates of these, since the block is real.
    """
    rows = x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).transpose(-3, -2)  # (..., b/2, b/2, 2, 2)
    (p, q), (r, s) = (row.unbind(-1) for row in rows.unbind(-2))
    return torch.complex(torch.stack((p + s, p - s), dim=-1), torch.stack((r - q, r + q), dim=-1)) / 2


def _from_eigenbasis(m: Tensor) -> Tensor:
    """Returns real blocks (..., b, b), given their entries in the eigenbasis: the inverse of `_to_eigenbasis`."""
    (real_0, real_1), (imag_0, imag_1) = (part.unbind(-1) for part in (m.real, m.imag))
    rows = (real_0 + real_1, imag_1 - imag_0), (imag_0 + imag_1, real_0 - real_1)
    blocks = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # (..., b/2, b/2, 2, 2)
    return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2)


def _gaps(frequencies: Tensor) -> Tensor:
    """Returns the gaps Δ of the entries of `_to_eigenbasis`: (..., b/2, b/2, 2)."""
    mu, other = frequencies.unsqueeze(-1), frequencies.unsqueeze(-2)
    return torch.stack((mu - other, mu + other), dim=-1)


def _between_planes(b: int, device: torch.device) -> Tensor:
    """Returns a mask (b/2, b/2, 1) of i ≠ j. Within a plane, skew-symmetric D has no entry but its frequency."""
    return ~torch.eye(b // 2, dtype=torch.bool, device=device).unsqueeze(-1)


def _closed_gap_threshold(radius: Tensor, max_phase: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the gap |Δ| below which form (3) is used.

    Args:
        radius: r, the weighted distance of the tokens from their centre.
        max_phase: the largest phase, in radians.
        dtype: the dtype in which tokens are rotated.
    """
    rounding = (max_phase * torch.finfo(torch.float64).eps).clamp_min(torch.finfo(dtype).eps)
    threshold = (_REMAINDER_DIVISOR * rounding).pow(1 / 5).clamp_max(_MAX_CLOSED_GAP)  # of Δr
    return threshold / radius.clamp_min(torch.finfo(torch.float64).tiny)


def generator_gradient(
    g: Tensor,
    z: Tensor,
    h: Tensor,
    frequencies: Tensor,
    positions: Tensor,
    inverse: Tensor,
    scratch: Tensor | None = None,
) -> Tensor:
    """Returns ∂L/∂D between planes, by the formula above: (H, m, b, b), float64.

    Args:
        g, z, h: the gradient in the rotated tokens, the rotated tokens, and that gradient rotated back: (B, H, g, L, D).
        frequencies: μ (H, m, b/2).
        positions: τ (L, H, m) or (B, L, H, m), float64.
        inverse: the table of the phases −μτ.
        scratch: `scratch_buffers`, of which the first and the last are overwritten.
    """
    num_blocks, b = frequencies.shape[1], 2 * frequencies.shape[2]
    scratch = scratch_buffers(g) if scratch is None else scratch
    centre, radius = _centre_and_radius(g, z, positions, num_blocks, scratch)
    u = rotate(z, inverse, scratch[0])
    a, k = sum_outer_products(h, u, num_blocks), sum_outer_products(g, z, num_blocks)
    max_phase = positions.abs().flatten(0, -3).amax(0) * frequencies.abs().amax(-1) if positions.numel() else radius
    gaps, between = _gaps(frequencies), _between_planes(b, g.device)
    closed = (gaps.abs() < _closed_gap_threshold(radius, max_phase, g.dtype)[..., None, None, None]) & between
    # Finding the blocks with closed gaps would make the host wait for an accelerator, which computes the sums for all blocks.
    blocks = closed.flatten(2).any(-1).any(0).nonzero().flatten() if can_synchronise(g.device) else None
    sums = [a - k]
    if blocks is None or len(blocks):
        sums += [k, *_closed_gap_sums(h, u, g, z, positions - centre, scratch[2], blocks)]
    difference, *rest = _to_eigenbasis(torch.stack(sums).double())
    gradient = 1j * difference / torch.where(closed | ~between, 1.0, gaps)
    if rest:
        gradient = torch.where(closed, _closed_gap_gradient(gaps, centre[..., None, None, None], *rest), gradient)
    return _from_eigenbasis(gradient * between)


def _closed_gap_gradient(
    gaps: Tensor, centre: Tensor, k: Tensor, a1: Tensor, a2: Tensor, k1: Tensor, k2: Tensor
) -> Tensor:
    """Returns M by form (3)."""
    half = torch.polar(torch.ones_like(gaps), -gaps * centre / 2)
    up_to_centre = centre * torch.sinc(gaps * centre / (2 * torch.pi)) * half * k  # torch's sinc has the π inside
    whole = half.square()
    return up_to_centre + (whole * k1 + a1) / 2 - 1j * gaps / 12 * (whole * k2 - a2)


# Compiled graphs call it as one operator, within which it can look for closed gaps as in eager mode.
@torch.library.custom_op("comrope::generator_gradient", mutates_args=())
def generator_gradient_op(
    g: Tensor, z: Tensor, h: Tensor, frequencies: Tensor, positions: Tensor, inverse: Tensor
) -> Tensor:
    return generator_gradient(g, z, h, frequencies, positions, inverse)


@generator_gradient_op.register_fake
def _(g, z, h, frequencies, positions, inverse):
    num_heads, num_blocks, half = frequencies.shape
    return frequencies.new_empty(num_heads, num_blocks, 2 * half, 2 * half)


def _centre_and_radius(
    g: Tensor, z: Tensor, positions: Tensor, num_blocks: int, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the centre c and radius r of the tokens' positions, for each head and block: (H, m) each.

    A token's weight is Σ|g_i z_i| over the features of the block, which is about as large as |g||z|, and cheaper.
    """
    block = torch.arange(g.shape[-1], device=g.device) // (g.shape[-1] // num_blocks)
    members = (block.unsqueeze(-1) == torch.arange(num_blocks, device=g.device)).to(g.dtype)  # (D, m)
    product = torch.mul(g, z, out=scratch[0, : g.numel()].view(g.shape)).abs_()
    weight = (product @ members).sum(2).transpose(1, 2)  # (B, L, H, m)
    if positions.ndim == 3:
        weight = weight.sum(0)
    tokens = tuple(range(weight.ndim - 2))
    total = weight.sum(tokens, dtype=torch.float64).clamp_min(torch.finfo(torch.float64).tiny)
    centre = (weight * positions).sum(tokens) / total
    distance = (positions - centre).abs_()
    fifth = distance.square().square_().mul_(distance).mul_(weight)  # pow would take ten times as long
    return centre, (fifth.sum(tokens) / total).pow(1 / 5)


def _closed_gap_sums(
    h: Tensor, u: Tensor, g: Tensor, z: Tensor, offsets: Tensor, scratch: Tensor, blocks: Tensor | None
) -> list[Tensor]:
    """Returns A₁, A₂, K₁ and K₂ of form (3), (H, m, b, b) each.

    Args:
        offsets: t, (L, H, m) or (B, L, H, m).
        blocks: indices of the blocks to compute, with zeros for the others; None for all.
    """
    num_blocks = offsets.shape[-1]
    b = g.shape[-1] // num_blocks
    if blocks is not None and len(blocks) < num_blocks:
        h, u, g, z = (x.unflatten(-1, (-1, b)).index_select(-2, blocks).flatten(-2) for x in (h, u, g, z))
        sums = _closed_gap_sums(h, u, g, z, offsets[..., blocks], scratch, None)
        return [each.new_zeros(len(each), num_blocks, b, b).index_copy_(1, blocks, each) for each in sums]
    t = repeat_over_features(offsets.to(g.dtype), b)
    weighted = scratch[: g.numel()].view(g.shape)
    sums = []
    for x, y in ((h, u), (g, z)):
        sums.append(sum_outer_products(torch.mul(x, t, out=weighted), y, num_blocks))
        sums.append(sum_outer_products(weighted.mul_(t), y, num_blocks))
    return sums


def generator_tangent(
    u: Tensor, z: Tensor, tangent: Tensor, frequencies: Tensor, positions: Tensor, table: Tensor
) -> Tensor:
    """Returns the tangent dz for a tangent dD of the generator between planes: forward mode, adjoint to `generator_gradient`.

    For open gaps, with Y_ab = dD~_ab / (iΔ_ab), dz = exp(τD) Y u − Y z. For closed gaps, by form (3) with c = 0,
    dz = exp(τD) (τ/2 − iΔτ²/12) dD u + (τ/2 + iΔτ²/12) dD z.

    Args:
        u, z: tokens before and after the rotation, (B, H, g, L, D).
        tangent: dD, (H, m, b, b), float64.
    """
    b = 2 * frequencies.shape[2]
    tangent = _to_eigenbasis(tangent)
    gaps = _gaps(frequencies)
    radius = positions.abs().flatten(0, -3).amax(0) if positions.numel() else torch.zeros_like(frequencies[..., 0])
    max_phase = radius * frequencies.abs().amax(-1)
    between = _between_planes(b, gaps.device)
    closed = (gaps.abs() < _closed_gap_threshold(radius, max_phase, u.dtype)[..., None, None, None]) & between

    def apply(change: Tensor, x: Tensor) -> Tensor:
        return x @ block_diagonal(_from_eigenbasis(change), x.dtype).mT

    by_gap = tangent * (~closed & between) / torch.where(closed | ~between, 1.0, 1j * gaps)
    tau, by_series = repeat_over_features(positions, b).to(u.dtype), tangent * closed
    before, after = apply(by_gap, u), -apply(by_gap, z)
    for power, factor, sign in ((1, 1 / 2, 1), (2, -1j * gaps / 12, -1)):
        change = by_series * factor
        before = before + tau**power * apply(change, u)
        after = after + sign * tau**power * apply(change, z)
    return rotate(before, table) + after
