"""The derivative of a rotation in the matrix that generates it, whatever frequencies are equal or zero.

**What is differentiated.** AP and LD rotate by exp(τS), with S = Q diag(μ_k J) Qᵀ and a scalar position τ along the block, and
a token x becomes z = Q₀ᵀ exp(τS) x. Q₀ is the Q of the decomposition, held constant: scores do not depend on it, since queries
and keys share it, and so no derivative of eigenvectors is ever needed. With the *generator* D = Q₀ᵀ S Q₀, linear in S,

    z = exp(τD) u,   u = Q₀ᵀx,   at the point where D = diag(μ_k J).

Each token's gradient is whole by itself. It does not matter which queries and keys meet in one call, on which process, or
whether some are detached.

**The rule** (Daleckii–Krein). In each plane J has eigenvectors v± = (1, ∓i)/√2 with eigenvalues ±i. In these coordinates,
marked by ~, D has eigenvalues iλ_a with λ = ±μ. For gaps Δ_ab = λ_a − λ_b and g = ∂L/∂z,

    ∂L/∂D~ = M,   M_ab = Σ_n τ_n ∫₀¹ e^{−isΔτ_n} ds · g~_na z~*_nb.                                                        (1)

The integral is e^{−iw/2} sinc(w/2) with w = Δτ and sinc(x) = sin(x)/x. A factor for each token and pair of planes would cost
b times the memory of the tokens. Two forms need only sums of outer products:

  *open gaps*, by the fundamental theorem, with h = exp(−τD) g and u = exp(−τD) z,

    M = i/Δ · (A − K),   A = Σ h~ u~ᴴ,   K = Σ g~ z~ᴴ;                                                                     (2)

  *closed gaps*, with positions t = τ − c from a centre c, by the trapezoidal rule for the integral from c to τ with Euler
and Maclaurin's correction,

    M = c e^{−iΔc/2} sinc(Δc/2) K + ½ (e^{−iΔc} K₁ + A₁) − iΔ/12 (e^{−iΔc} K₂ − A₂),                                        (3)

    A_p = Σ t^p h~ u~ᴴ,   K_p = Σ t^p g~ z~ᴴ.

Form (2) is wrong by rounding, ε Σ|g||z| / Δ; form (3) leaves out Δ⁴ Σ|g||z||t|⁵/720. With r⁵ = Σ|g||z||t|⁵ / Σ|g||z| both are
equal at Δr = (720 ε)^⅕, and (3) is used below. In float64 both are there 10⁻¹³ of Σ|g||z||t|. In float32 so many gaps would
lie below that most steps would need both forms; there (3) is used below Δr = 1/64 only, where (2) is wrong by 10⁻⁵.

c is the centre of mass of the tokens, so that a text that is read far from position 0 loses nothing. ε is the rounding of the
arithmetic, or of phases μτ in float64 where that is more. The rounding of tokens in bfloat16 is the same in A and K, and
cancels.

Within a plane, a = b, M is Στ⟨g, Jz⟩; that goes through the phases φ = μτ, and is left zero here.
"""

import torch
from torch import Tensor

from comrope._linalg import may_ask
from comrope._planes import dense, gram, on_features, rotate, scratch_for

_LEFT_OUT = 720
"""The first term that form (3) leaves out is w⁴ / 720."""
_WIDEST = 1 / 64
"""Form (3) is used below this Δr at most, or it would be needed in most steps."""


def _to_eigenvectors(x: Tensor) -> Tensor:
    """Real blocks (..., b, b) as they are between eigenvectors: (..., b/2, b/2, 2) complex, between planes i and j.

    First from v+ of j to v+ of i, across the gap μ_i − μ_j, then from v− of j to v+ of i, across μ_i + μ_j. A real block has
    the conjugates of both for v− of i.
    """
    rows = x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).transpose(-3, -2)  # (..., b/2, b/2, 2, 2)
    (p, q), (r, s) = (row.unbind(-1) for row in rows.unbind(-2))
    return torch.complex(torch.stack((p + s, p - s), dim=-1), torch.stack((r - q, r + q), dim=-1)) / 2


def _from_eigenvectors(m: Tensor) -> Tensor:
    """The inverse."""
    (same, opposite), (turned, mirrored) = (part.unbind(-1) for part in (m.real, m.imag))
    rows = (same + opposite, mirrored - turned), (turned + mirrored, same - opposite)
    blocks = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # (..., b/2, b/2, 2, 2)
    return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2)


def _gaps(frequencies: Tensor) -> Tensor:
    """Δ between planes as `_to_eigenvectors` has them: (..., b/2, b/2, 2)."""
    mu, other = frequencies.unsqueeze(-1), frequencies.unsqueeze(-2)
    return torch.stack((mu - other, mu + other), dim=-1)


def _between(b: int, device: torch.device) -> Tensor:
    """Whether planes i and j differ, (b/2, b/2, 1). Within a plane a skew-symmetric D has its frequency alone."""
    return ~torch.eye(b // 2, dtype=torch.bool, device=device).unsqueeze(-1)


def _closed_below(reach: Tensor, far: Tensor, dtype: torch.dtype) -> Tensor:
    """The gap below which form (3) is the better one.

    Args:
        reach: r, how far from their centre the tokens that count are.
        far: the largest phase, in radians.
        dtype: in which tokens are rotated.
    """
    rounding = (far * torch.finfo(torch.float64).eps).clamp_min(torch.finfo(dtype).eps)
    return (_LEFT_OUT * rounding).pow(1 / 5).clamp_max(_WIDEST) / reach.clamp_min(torch.finfo(torch.float64).tiny)


def generator_gradient(
    g: Tensor,
    z: Tensor,
    h: Tensor,
    frequencies: Tensor,
    positions: Tensor,
    inverse: Tensor,
    scratch: Tensor | None = None,
) -> Tensor:
    """∂L/∂D between planes, by the rule above: (H, m, b, b), float64.

    Args:
        g, z, h: gradients of the rotated tokens, the rotated tokens, and the gradients rotated back: (B, H, g, L, D).
        frequencies: μ (H, m, b/2).
        positions: τ (L, H, m) or (B, L, H, m), float64.
        inverse: the table of the phases −μτ.
        scratch: room for three such tensors of tokens, of which the first and the last are overwritten.
    """
    num_blocks, b = frequencies.shape[1], 2 * frequencies.shape[2]
    scratch = scratch_for(g) if scratch is None else scratch
    centre, reach = _spread(g, z, positions, num_blocks, scratch)
    u = rotate(z, inverse, scratch[0])
    a, k = gram(h, u, num_blocks), gram(g, z, num_blocks)
    far = positions.abs().flatten(0, -3).amax(0) * frequencies.abs().amax(-1) if positions.numel() else reach
    gaps, between = _gaps(frequencies), _between(b, g.device)
    closed = (gaps.abs() < _closed_below(reach, far, g.dtype)[..., None, None, None]) & between
    # An accelerator would have to be waited for to know: there the sums for closed gaps are made for all blocks.
    blocks = closed.flatten(2).any(-1).any(0).nonzero().flatten() if may_ask(g.device) else None
    sums = [a - k]
    if blocks is None or len(blocks):
        sums += [k, *_closed_sums(h, u, g, z, positions - centre, scratch[2], blocks)]
    difference, *rest = _to_eigenvectors(torch.stack(sums).double())
    gradient = 1j * difference / torch.where(closed | ~between, 1.0, gaps)
    if rest:
        gradient = torch.where(closed, _over_closed_gaps(gaps, centre[..., None, None, None], *rest), gradient)
    return _from_eigenvectors(gradient * between)


def _over_closed_gaps(
    gaps: Tensor, centre: Tensor, k: Tensor, a1: Tensor, a2: Tensor, k1: Tensor, k2: Tensor
) -> Tensor:
    """Form (3)."""
    half = torch.polar(torch.ones_like(gaps), -gaps * centre / 2)
    to_centre = centre * torch.sinc(gaps * centre / (2 * torch.pi)) * half * k  # torch's sinc has the π inside
    whole = half.square()
    return to_centre + (whole * k1 + a1) / 2 - 1j * gaps / 12 * (whole * k2 - a2)


# One operator for compiled graphs, which asks in it, as eager code does, whether any gap is closed.
@torch.library.custom_op("comrope::generator_gradient", mutates_args=())
def generator_gradient_op(
    g: Tensor, z: Tensor, h: Tensor, frequencies: Tensor, positions: Tensor, inverse: Tensor
) -> Tensor:
    return generator_gradient(g, z, h, frequencies, positions, inverse)


@generator_gradient_op.register_fake
def _(g, z, h, frequencies, positions, inverse):
    num_heads, num_blocks, half = frequencies.shape
    return frequencies.new_empty(num_heads, num_blocks, 2 * half, 2 * half)


def _spread(g: Tensor, z: Tensor, positions: Tensor, num_blocks: int, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """c and r of each head and block, (H, m) each: where the tokens that count are, and how far from there.

    A token counts by Σ|g_i z_i| over the features of the block, which is about as large as |g||z|, and cheaper.
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


def _closed_sums(
    h: Tensor, u: Tensor, g: Tensor, z: Tensor, offsets: Tensor, scratch: Tensor, blocks: Tensor | None
) -> list[Tensor]:
    """A₁, A₂, K₁ and K₂ of form (3), (H, m, b, b) each, of some of the blocks or of all; zeros for the others.

    `offsets` are t, (L, H, m) or (B, L, H, m).
    """
    num_blocks = offsets.shape[-1]
    b = g.shape[-1] // num_blocks
    if blocks is not None and len(blocks) < num_blocks:
        h, u, g, z = (x.unflatten(-1, (-1, b)).index_select(-2, blocks).flatten(-2) for x in (h, u, g, z))
        found = _closed_sums(h, u, g, z, offsets[..., blocks], scratch, None)
        return [each.new_zeros(len(each), num_blocks, b, b).index_copy_(1, blocks, each) for each in found]
    t = on_features(offsets.to(g.dtype), b)
    weighted = scratch[: g.numel()].view(g.shape)
    sums = []
    for x, y in ((h, u), (g, z)):
        sums.append(gram(torch.mul(x, t, out=weighted), y, num_blocks))
        sums.append(gram(weighted.mul_(t), y, num_blocks))
    return sums


def generator_tangent(
    u: Tensor, z: Tensor, tangent: Tensor, frequencies: Tensor, positions: Tensor, table: Tensor
) -> Tensor:
    """dz for a change dD of the generator between planes: the adjoint of `generator_gradient`, for forward mode.

    Over open gaps, with Y_ab = dD~_ab / (iΔ_ab), dz = exp(τD) Y u − Y z. Over closed ones, by the same rule as there,
    dz = exp(τD) (τ/2 − iΔτ²/12) dD u + (τ/2 + iΔτ²/12) dD z.

    Args:
        u, z: tokens before and after the rotation, (B, H, g, L, D).
        tangent: dD, (H, m, b, b), float64.
    """
    b = 2 * frequencies.shape[2]
    tangent = _to_eigenvectors(tangent)
    gaps = _gaps(frequencies)
    reach = positions.abs().flatten(0, -3).amax(0) if positions.numel() else torch.zeros_like(frequencies[..., 0])
    far = reach * frequencies.abs().amax(-1)
    between = _between(b, gaps.device)
    closed = (gaps.abs() < _closed_below(reach, far, u.dtype)[..., None, None, None]) & between

    def apply(change: Tensor, x: Tensor) -> Tensor:
        return x @ dense(_from_eigenvectors(change), x.dtype).mT

    by_gap = tangent * (~closed & between) / torch.where(closed | ~between, 1.0, 1j * gaps)
    tau, by_series = on_features(positions, b).to(u.dtype), tangent * closed
    before, after = apply(by_gap, u), -apply(by_gap, z)
    for power, factor, sign in ((1, 1 / 2, 1), (2, -1j * gaps / 12, -1)):
        change = by_series * factor
        before = before + tau**power * apply(change, u)
        after = after + sign * tau**power * apply(change, z)
    return rotate(before, table) + after
