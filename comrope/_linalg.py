"""Skew-symmetric matrices: from parameters, and down to a real basis and frequencies.

Every real skew-symmetric S (b × b, b even) is S = Q · diag(μ_1 J, …, μ_h J) · Qᵀ with Q orthogonal,
J = [[0, −1], [1, 0]], μ ≥ 0 and h = b/2. Columns 2k and 2k+1 of Q span plane k, in which exp(τS) turns by μ_k τ.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from comrope._jacobi import plane_basis
from comrope.errors import InputError, SecondDerivativeError

# Eigenvalues below this share of the largest are taken as zero: their planes are then chosen, not found. What this leaves
# out of S is of the same size, a few hundred roundings.
_ZERO = 1e-13
# Eigenvectors of frequencies above this share of the largest are orthogonal to their conjugates to 1e-10 or better, which
# one Newton–Schulz step makes exact.
_SMALL = 1e-6
# The largest blocks that an accelerator decomposes by Jacobi's method. Larger ones would launch more than 2,000 operators
# each time; the host is then judged, not measured, to do better by waiting for eigh.
_LARGEST_FOR_JACOBI = 28


def skew(base: Tensor) -> Tensor:
    """P − Pᵀ: the skew-symmetric matrix of free parameters P (paper, Eq. 8). Shape (..., b, b)."""
    return base - base.mT


def cayley(generator: Tensor) -> Tensor:
    """(I − S)(I + S)⁻¹ for skew-symmetric S, shape (..., b, b): a rotation, the identity at S = 0 (STRING)."""
    eye = torch.eye(generator.shape[-1], dtype=generator.dtype, device=generator.device)
    # The two factors commute, so solving from the left gives the same matrix. No I + S is singular: `solve` would ask all the
    # same, and make the host wait for an accelerator.
    return torch.linalg.solve_ex(eye + generator, eye - generator)[0]


def orthonormal(basis: Tensor, steps: int = 2) -> Tensor:
    """The float64 orthogonal matrix beside one that rounding to float32 has left 1e-7 short of it: (..., b, b).

    Each Newton–Schulz step towards the polar factor squares the defect.
    """
    basis = basis.double()
    for _ in range(steps):
        basis = 1.5 * basis - 0.5 * basis @ (basis.mT @ basis)
    return basis


def plane_generators(frequencies: Tensor) -> Tensor:
    """diag(ω_1 J, …, ω_h J) for frequencies (..., h): shape (..., 2h, 2h)."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=frequencies.dtype, device=frequencies.device)
    h = frequencies.shape[-1]
    eye = torch.eye(h, dtype=frequencies.dtype, device=frequencies.device)
    planes = torch.einsum("...k,kl,cd->...kcld", frequencies, eye, turn)
    return planes.reshape(*frequencies.shape[:-1], 2 * h, 2 * h)


def may_ask(device: torch.device) -> bool:
    """Whether the host may look at values there. On a CPU it costs nothing; an accelerator would have to be waited for."""
    return device.type == "cpu"


def by_jacobi(matrix: Tensor) -> bool:
    """Whether `matrix` (..., b, b) is decomposed without waiting: small blocks on an accelerator are."""
    return not may_ask(matrix.device) and matrix.shape[-1] <= _LARGEST_FOR_JACOBI


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """torch.linalg.eigh, which makes the host wait for an accelerator, with an error that says what went wrong."""
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError as error:
        raise InputError(
            "the angle matrices have no eigenvalues: some are NaN or infinite. Training has diverged, or wrong values were "
            "loaded; look at pe.angle_matrices()."
        ) from error


def decompose(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Real basis Q (..., b, b) and frequencies μ ≥ 0 (..., b/2), ascending, of skew-symmetric `matrix`.

    Values only, computed and returned in float64. The Hermitian iS has eigenvalues ±μ_k; an eigenvector a + ib of +μ_k
    and its conjugate span plane k, in which S turns √2·a into √2·b. That is on a CPU. On an accelerator eigh makes the host
    wait: small blocks get Jacobi's method there (comrope._jacobi), and large ones the way that is right for all frequencies,
    which waits for two eigh and looks at no value besides.

    Raises:
        InputError: NaN or infinite elements, where eigh finds them. Jacobi's method asks nothing, and NaN comes out.
    """
    s = matrix.detach().double()
    if by_jacobi(s):
        return _oriented(s, orthonormal(plane_basis(s), steps=1))
    h = s.shape[-1] // 2
    eigenvalues, eigenvectors = eigh(1j * s)
    mu, upper = eigenvalues[..., h:], eigenvectors[..., h:]  # μ ≥ 0, ascending
    if may_ask(s.device) and (mu > _SMALL * mu[..., -1:]).all():
        return orthonormal(2**0.5 * torch.view_as_real(upper).flatten(-2), steps=1), mu.contiguous()
    return _decompose_with_zeros(s, mu, upper)


def _decompose_with_zeros(s: Tensor, mu: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The same where a frequency may be next to zero, and nothing ties its two eigenvectors together.

    The planes are not read off the eigenvectors then: each is weighted by its rank, zero eigenvalues by nothing, and the
    eigenvectors of that *real* symmetric matrix are an orthonormal real basis, plane after plane, whatever is equal or zero.
    """
    rank = torch.arange(1, mu.shape[-1] + 1, dtype=s.dtype, device=s.device)
    weight = torch.where(mu > _ZERO * mu[..., -1:], rank, torch.zeros_like(rank))
    parts = torch.cat((upper.real, upper.imag), dim=-1)  # (..., b, b)
    planes = (parts * weight.repeat(*[1] * (weight.ndim - 1), 2).unsqueeze(-2)) @ parts.mT  # Σ_k weight_k Re(v_k v_kᴴ)
    basis = eigh(planes)[1]  # (..., b, b), planes in ascending rank
    return _oriented(s, basis)


def _oriented(s: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Q and μ ≥ 0, ascending, from an orthogonal `basis` whose columns 2k and 2k+1 span planes that S keeps."""
    # In its own plane S is μJ up to the sign that the pair's orientation gives: turn the second column to fit.
    first, second = basis[..., 0::2], basis[..., 1::2]
    signed = (second * (s @ first)).sum(-2)
    mu, order = signed.abs().sort(dim=-1)
    planes = torch.stack((first, torch.where(signed < 0, -1.0, 1.0).to(s.dtype).unsqueeze(-2) * second), dim=-1)
    return planes.gather(-2, order[..., None, :, None].expand_as(planes)).flatten(-2), mu


# ── The derivative of the decomposition ────────────────────────────────────────────────────────────────────────────
# Let S = Q D Qᵀ with D = diag(μ_k J). Plane coordinates pair up into the complex ones in which J is diagonal,
# v± = (1, ∓i)/√2 with J v± = ±i v±, so write λ = ±μ. For a change dS, seen from Q and in those coordinates as dS~, and
# dQ = Q X:
#     X~_ab = i dS~_ab / (λ_a − λ_b)   (a ≠ b),      dμ_k = Im dS~_{+k,+k}
# so for a loss with gradients G_Q, g_μ, and A the skew part of QᵀG_Q (dQ keeps Q orthogonal), ∂L/∂S~ = M with
#     M_ab = −i A~_ab / (λ_a − λ_b),   M_{±k,±k} = ±i g_μk / 2.
# This divides by gaps. What the rotation exp(τS) needs at a closed gap is finite all the same (Daleckii–Krein):
#     M_ab = Σ_n τ_n ∫₀¹ e^{i s (λ_a − λ_b) τ_n} ds · h~_na x~*_nb ≈ Σ_n (τ_n/2) (h~_na x~*_nb + g~_na y~*_nb),
# the trapezoid rule. Only the tokens know that sum, so the decomposition hands out two more tensors, zero in value: the
# *tilt*, meaning S + Q·tilt·Qᵀ, of which the rotation (comrope.rotation) returns the sum as gradient, and *moments*, as
# whose gradient it returns how heavy the tokens are, Σ w_n and Σ w_n |τ_n|³ with w = |h||x|. The first rule rounds off
# ε Σw/Δ, the second leaves out Δ² Σw|τ|³/12; so the second is used where Δ·r < (12 ε)^⅓, with r³ = Σw|τ|³ / Σw. For tokens
# spread over |τ| ≤ 1 both errors are then ~1e-5 of the gradient in float32 and ~1e-11 in float64.
#
# In real arithmetic: of a plane pair's 2 × 2 block [[A₁₁, A₁₂], [A₂₁, A₂₂]], 2A~_{+j,+k} = p + ir and 2A~_{+j,−k} = s + it
# with p = A₁₁ + A₂₂, r = A₂₁ − A₁₂, s = A₁₁ − A₂₂, t = A₂₁ + A₁₂, the rest being conjugates. Multiplying by −i/Δ sends
# (p, r) to (r, −p)/Δ.


def _pair(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p, r (planes turning alike) and s, t (against each other) of (..., b, b): each (..., h, h)."""
    a11, a12 = matrix[..., 0::2, 0::2], matrix[..., 0::2, 1::2]
    a21, a22 = matrix[..., 1::2, 0::2], matrix[..., 1::2, 1::2]
    return a11 + a22, a21 - a12, a11 - a22, a21 + a12


def _unpair(p: Tensor, r: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The matrix (..., b, b) that `_pair` takes apart."""
    first = torch.stack((p + s, t - r), dim=-1).flatten(-2)  # (..., h, b), the rows of first coordinates
    second = torch.stack((r + t, p - s), dim=-1).flatten(-2)
    return torch.stack((first, second), dim=-2).flatten(-3, -2) / 2


def _gaps(frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """μ_j − μ_k and μ_j + μ_k of every two planes: (..., h, h) each."""
    mu, nu = frequencies.unsqueeze(-1), frequencies.unsqueeze(-2)
    return mu - nu, mu + nu


def _closed_below(moments: Tensor, dtype: torch.dtype) -> Tensor:
    """The gap below which the trapezoid rule is the better one, for tokens turned in `dtype`: (..., 1, 1)."""
    weight, weighted_cubes = moments.double().unbind(-1)
    cubed_reach = weighted_cubes / weight.clamp_min(torch.finfo(torch.float64).tiny)
    return (12 * torch.finfo(dtype).eps / cubed_reach).pow(1 / 3)[..., None, None]


def any_gap_closed(frequencies: Tensor, moments: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether the gradient of the tilt will be used: frequencies (..., h), gradient of the moments (..., 2)."""
    limit = _closed_below(moments, dtype)
    alike, against = _gaps(frequencies)
    same = torch.eye(frequencies.shape[-1], dtype=torch.bool, device=frequencies.device)  # no gap within one plane
    return ((alike.abs() < limit) | (against < limit)).logical_and(~same).any()


def _skew_gradient(
    basis: Tensor,
    frequencies: Tensor,
    grad_basis: Tensor,
    grad_frequencies: Tensor,
    grad_tilt: Tensor,
    grad_moments: Tensor,
) -> Tensor:
    """∂L/∂S from the gradients of basis, frequencies, tilt and moments: the rule derived above, in float64."""
    a = basis.mT @ grad_basis.double()
    p, r, s, t = _pair((a - a.mT) / 2)
    tilt_p, tilt_r, tilt_s, tilt_t = _pair(grad_tilt.double())
    alike, against = _gaps(frequencies)
    limit = _closed_below(grad_moments, grad_tilt.dtype)

    def rule(gap: Tensor, by_gap: tuple[Tensor, Tensor], by_tilt: tuple[Tensor, Tensor]) -> list[Tensor]:
        closed = gap.abs() < limit
        gap = torch.where(closed, 1.0, gap)
        return [torch.where(closed, tilt, x / gap) for x, tilt in zip(by_gap, by_tilt, strict=True)]

    p, r = rule(alike, (r, -p), (tilt_p, tilt_r))
    s, t = rule(against, (t, -s), (tilt_s, tilt_t))
    r = torch.diagonal_scatter(r, grad_frequencies.double(), dim1=-2, dim2=-1)
    p = torch.diagonal_scatter(p, torch.zeros_like(grad_frequencies, dtype=p.dtype), dim1=-2, dim2=-1)
    grad = basis @ _unpair(p, r, s, t) @ basis.mT
    return (grad - grad.mT) / 2


class _NoSecondDerivative(Function):
    """The identity on its first argument, tied to the others in the graph; differentiating it raises."""

    @staticmethod
    def forward(grad: Tensor, *anchors: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx, inputs, output):
        return

    @staticmethod
    def backward(ctx, *grads):
        raise SecondDerivativeError(
            "a second derivative was asked of comrope's spectral rotation, whose backward is exact to first order only. "
            "Use comrope.reference.rotate(q, k, pe.angle_matrices(), positions), which can be differentiated twice."
        )


def first_order_only(grad: Tensor | None, *anchors: Tensor) -> Tensor | None:
    """Marks a gradient, which depends on `anchors`, so that differentiating it again raises SecondDerivativeError.

    Without the mark it would count as a constant under create_graph=True, and second derivatives be silently wrong.
    """
    return _NoSecondDerivative.apply(grad, *anchors) if grad is not None and torch.is_grad_enabled() else grad


# Both directions are single opaque operators: torch.compile and torch.export see one node each, and the only complex
# tensors there are, inside `decompose`, never reach Inductor.
@torch.library.custom_op("comrope::skew_spectrum", mutates_args=())
def _spectrum_op(matrix: Tensor, compute_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    basis, frequencies = decompose(matrix)
    tilt = torch.zeros_like(basis, dtype=compute_dtype).contiguous()
    return basis.contiguous(), frequencies.contiguous(), tilt, basis.new_zeros(*basis.shape[:-2], 2)


@_spectrum_op.register_fake
def _(matrix, compute_dtype):
    basis = matrix.new_empty(matrix.shape, dtype=torch.float64)
    frequencies = basis.new_empty(*matrix.shape[:-2], matrix.shape[-1] // 2)
    return basis, frequencies, basis.new_empty(basis.shape, dtype=compute_dtype), basis.new_empty(*basis.shape[:-2], 2)


_gradient_op = torch.library.custom_op("comrope::skew_spectrum_backward", _skew_gradient, mutates_args=())


@_gradient_op.register_fake
def _(basis, frequencies, grad_basis, grad_frequencies, grad_tilt, grad_moments):
    return torch.empty_like(basis)


def _setup_context(ctx, inputs, output):
    basis, frequencies, _, _ = output
    ctx.save_for_backward(basis, frequencies)
    ctx.matrix_dtype = inputs[0].dtype


def _backward(ctx, *grads):
    basis, frequencies = ctx.saved_tensors
    with torch.no_grad():
        grad = _gradient_op(basis, frequencies, *grads).to(ctx.matrix_dtype)
    return first_order_only(grad, basis, *grads), None


_spectrum_op.register_autograd(_backward, setup_context=_setup_context)


def skew_spectrum(matrix: Tensor, compute_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Basis, frequencies, tilt and moments of skew-symmetric `matrix`, differentiable where eigenvectors are not.

    The gradient is exact for losses that depend on S through exp(τS) alone, whatever eigenvalues are equal or zero,
    provided that tilt and moments get the token sums of the derivation above as gradients (comrope.rotation does that).

    Args:
        matrix: S, shape (..., b, b), skew-symmetric.
        compute_dtype: in which the tokens are rotated; sets the gap below which the trapezoid rule takes over.
    Returns:
        Q (..., b, b) and μ (..., b/2), ascending, in float64; the tilt, zeros (..., b, b) in `compute_dtype`; the moments,
        zeros (..., 2) in float64.
    """
    return _spectrum_op(matrix, compute_dtype)
