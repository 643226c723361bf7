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

  *closed gaps*, with positions t = τ − c from a centre c and tokens rotated back by half of it, ĝ = exp(−tD/2) g and
  ẑ = exp(−tD/2) z, by sinc(x) ≈ 1 − x²/6,

    M = e^{−iΔc} (C₁ − Δ²/24 · C₃) + c e^{−iΔc/2} sinc(Δc/2) K,   C_p = Σ t^p ĝ~ ẑ~ᴴ.                                      (3)

Form (2) is wrong by rounding, ε Σ|g||z| / Δ; form (3) leaves out Δ⁴ Σ|g||z||t|⁵/1920. With r⁵ = Σ|g||z||t|⁵ / Σ|g||z| both are
equal at Δr = (1920 ε)^⅕, and (3) is used below. In float64 both are there 10⁻¹³ of Σ|g||z||t|. In float32 so many gaps would
lie below that most steps would need both forms; there (3) is used below Δr = 1/64 only, where (2) is wrong by 10⁻⁵.

c is the centre of mass of the tokens, so that a text that is read far from position 0 loses nothing. ε is the rounding of the
arithmetic, or of phases μτ in float64 where that is more. The rounding of tokens in bfloat16 is the same in A and K, and
cancels.

Within a plane, a = b, M is Στ⟨g, Jz⟩; that goes through the phases φ = μτ, and is left zero here.
"""

import torch
from torch import Tensor

from comrope._linalg import may_ask
from comrope._planes import dense, gram, inverse_table, on_features, phase_table, rotate, scratch_for

_LEFT_OUT = 1920
"""The first term that form (3) leaves out is w⁴ / 1920."""
_WIDEST = 1 / 64
"""Form (3) is used below this Δr at most, or it would be needed in most steps."""


def _eigenvectors(b: int, device: torch.device) -> Tensor:
    """The eigenvectors v+ and v− of each plane side by side, (b, b), unitary."""
    coordinate = torch.arange(b, device=device)
    same_plane = coordinate.unsqueeze(1) // 2 == coordinate // 2
    sign = 2 * (coordinate % 2) - 1  # −1 in the column of v+, 1 in that of v−
    imaginary = same_plane * (coordinate % 2).unsqueeze(1) * sign
    real = same_plane * (1 - coordinate % 2).unsqueeze(1)
    return torch.complex(real.double(), imaginary.double()) / 2**0.5


def _gaps(frequencies: Tensor) -> Tensor:
    """Δ_ab = λ_a − λ_b with λ = (μ_1, −μ_1, μ_2, …): (..., b, b)."""
    eigenvalues = torch.stack((frequencies, -frequencies), dim=-1).flatten(-2)
    return eigenvalues.unsqueeze(-1) - eigenvalues.unsqueeze(-2)


def _between(b: int, device: torch.device) -> Tensor:
    """Whether a and b belong to different planes, (b, b). Within a plane a skew-symmetric D has its frequency alone."""
    plane = torch.arange(b, device=device) // 2
    return plane.unsqueeze(-1) != plane


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
    table: Tensor,
    scratch: Tensor | None = None,
) -> Tensor:
    """∂L/∂D between planes, by the rule above: (H, m, b, b), float64.

    Args:
        g, z, h: gradients of the rotated tokens, the rotated tokens, and the gradients rotated back: (B, H, g, L, D).
        frequencies: μ (H, m, b/2).
        positions: τ (L, H, m) or (B, L, H, m), float64.
        table: of the phases μτ.
        scratch: room for two such tensors of tokens, (2, any), to be overwritten.
    """
    num_blocks, b = frequencies.shape[1], 2 * frequencies.shape[2]
    scratch = scratch_for(g) if scratch is None else scratch
    a = gram(h, rotate(z, inverse_table(table), scratch[0]), num_blocks)
    k = gram(g, z, num_blocks)
    centre, reach = _spread(g, z, positions, num_blocks, scratch)
    far = positions.abs().flatten(0, -3).amax(0) * frequencies.abs().amax(-1) if positions.numel() else reach
    gaps, between = _gaps(frequencies), _between(b, g.device)
    closed = (gaps.abs() < _closed_below(reach, far, g.dtype)[..., None, None]) & between
    # An accelerator would have to be waited for to know: there the sums for closed gaps are made for all blocks.
    blocks = closed.any(-1).any(-1).any(0).nonzero().flatten() if may_ask(g.device) else None
    needed = blocks is None or len(blocks) > 0
    sums = (a - k, k, *_closed_sums(g, z, frequencies, positions - centre, scratch, blocks)) if needed else (a - k,)
    v = _eigenvectors(b, g.device)
    difference, *rest = v.mH @ torch.stack(sums).to(v.dtype) @ v
    gradient = 1j * difference / torch.where(closed | ~between, 1.0, gaps)
    if rest:
        k, first, third = rest
        centre = centre[..., None, None]
        shift = torch.polar(torch.ones_like(gaps), -gaps * centre / 2)
        to_centre = centre * torch.sinc(gaps * centre / (2 * torch.pi)) * shift * k  # torch's sinc has the π inside
        gradient = torch.where(closed, shift**2 * (first - gaps**2 / 24 * third) + to_centre, gradient)
    return (v @ (gradient * between) @ v.mH).real.contiguous()


# One operator for compiled graphs, which asks in it, as eager code does, whether any gap is closed.
@torch.library.custom_op("comrope::generator_gradient", mutates_args=())
def generator_gradient_op(
    g: Tensor, z: Tensor, h: Tensor, frequencies: Tensor, positions: Tensor, table: Tensor
) -> Tensor:
    return generator_gradient(g, z, h, frequencies, positions, table)


@generator_gradient_op.register_fake
def _(g, z, h, frequencies, positions, table):
    num_heads, num_blocks, half = frequencies.shape
    return frequencies.new_empty(num_heads, num_blocks, 2 * half, 2 * half)


def _spread(g: Tensor, z: Tensor, positions: Tensor, num_blocks: int, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """c and r of each head and block, (H, m) each: where the tokens that count are, and how far from there.

    A token counts by Σ|g_i z_i| over the features of the block, which is about as large as |g||z|, and cheaper.
    """
    block = torch.arange(g.shape[-1], device=g.device) // (g.shape[-1] // num_blocks)
    members = (block.unsqueeze(-1) == torch.arange(num_blocks, device=g.device)).to(g.dtype)  # (D, m)
    product = torch.mul(g, z, out=scratch[0, : g.numel()].view(g.shape)).abs_()
    weight = (product @ members).double().sum(2)  # (B, H, L, m)
    weight = weight.transpose(1, 2)  # (B, L, H, m)
    if positions.ndim == 3:
        weight = weight.sum(0)
    tokens = tuple(range(weight.ndim - 2))
    total = weight.sum(tokens).clamp_min(torch.finfo(torch.float64).tiny)
    centre = (weight * positions).sum(tokens) / total
    squares = (positions - centre).square()
    fifth = (weight * squares.square() * squares.sqrt()).sum(tokens) / total  # pow would take ten times as long
    return centre, fifth.pow(1 / 5)


def _closed_sums(
    g: Tensor, z: Tensor, frequencies: Tensor, offsets: Tensor, scratch: Tensor, blocks: Tensor | None
) -> tuple[Tensor, Tensor]:
    """C₁ and C₃ of form (3), (H, m, b, b) each, of some of the blocks or of all; zeros for the others.

    `offsets` are t, (L, H, m) or (B, L, H, m).
    """
    num_blocks, b = frequencies.shape[1], 2 * frequencies.shape[2]
    if blocks is not None and len(blocks) < num_blocks:
        g, z = (x.unflatten(-1, (-1, b)).index_select(-2, blocks).flatten(-2) for x in (g, z))
        sums = _closed_sums(g, z, frequencies[:, blocks], offsets[..., blocks], scratch, None)
        whole = [each.new_zeros(len(each), num_blocks, b, b).index_copy_(1, blocks, each) for each in sums]
        return whole[0], whole[1]
    half = inverse_table(phase_table((offsets.unsqueeze(-1) * frequencies / 2).flatten(-2), g.dtype))
    t = on_features(offsets, b).to(g.dtype)
    back_g, back_z = rotate(g, half, scratch[0]), rotate(z, half, scratch[1])
    first = gram(back_g.mul_(t), back_z, num_blocks)
    return first, gram(back_g.mul_(t.square()), back_z, num_blocks)


def generator_tangent(
    u: Tensor, z: Tensor, tangent: Tensor, frequencies: Tensor, positions: Tensor, table: Tensor
) -> Tensor:
    """dz for a change dD of the generator between planes: the adjoint of `generator_gradient`, for forward mode.

    Over open gaps, with Y_ab = dD~_ab / (iΔ_ab), dz = exp(τD) Y u − Y z. Over closed ones
    dz = exp(τD/2) (τ − τ³Δ²/24) dD exp(τD/2) u.

    Args:
        u, z: tokens before and after the rotation, (B, H, g, L, D).
        tangent: dD, (H, m, b, b), float64.
    """
    b = 2 * frequencies.shape[2]
    v = _eigenvectors(b, u.device)
    tangent = v.mH @ tangent.to(v.dtype) @ v
    gaps = _gaps(frequencies)
    reach = positions.abs().flatten(0, -3).amax(0) if positions.numel() else torch.zeros_like(frequencies[..., 0])
    far = reach * frequencies.abs().amax(-1)
    between = _between(b, gaps.device)
    closed = (gaps.abs() < _closed_below(reach, far, u.dtype)[..., None, None]) & between

    def apply(change: Tensor, x: Tensor) -> Tensor:
        return x @ dense((v @ change @ v.mH).real, x.dtype).mT

    by_gap = tangent * (~closed & between) / torch.where(closed | ~between, 1.0, 1j * gaps)
    result = rotate(apply(by_gap, u), table) - apply(by_gap, z)
    half = phase_table((positions.unsqueeze(-1) * frequencies / 2).flatten(-2), u.dtype)
    tau = on_features(positions, b).to(u.dtype)
    by_series, x = tangent * closed, rotate(u, half)
    middle = tau * (apply(by_series, x) - tau**2 * apply(by_series * gaps**2 / 24, x))
    return result + rotate(middle, half)
