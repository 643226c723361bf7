"""Skew-symmetric matrices: made from parameters, and decomposed into a real orthogonal basis and frequencies.

Every real skew-symmetric S (b × b, b even) is S = Q · diag(μ_1 J, …, μ_h J) · Qᵀ with Q orthogonal,
J = [[0, −1], [1, 0]], μ ≥ 0 and h = b/2. Columns 2k and 2k+1 of Q span plane k, in which exp(τS) rotates by μ_k τ radians.
"""

import torch
from torch import Tensor

from comrope._jacobi import plane_basis
from comrope.errors import InputError

# Frequencies below this share of the largest one are treated as zero, and their planes are chosen freely. The error in S is
# of the same size, a few hundred roundings.
_ZERO_RATIO = 1e-13
# Eigenvectors whose frequencies are above this share of the largest one are orthogonal to their conjugates to 1e-10 or
# better. One Newton–Schulz step reduces that error to rounding.
_CLEAR_RATIO = 1e-6
# Largest block size that an accelerator decomposes by Jacobi's method. Larger blocks would launch more than 2,000 operators
# per decomposition. That waiting for eigh is faster there is a judgement, not a measurement.
_MAX_JACOBI_BLOCK_SIZE = 28


def skew(base: Tensor) -> Tensor:
    """Returns P − Pᵀ, the skew-symmetric matrix of free parameters P (paper, Eq. 8). Shape (..., b, b)."""
    return base - base.mT


def cayley(generator: Tensor) -> Tensor:
    """Returns the rotation (I − S)(I + S)⁻¹ of skew-symmetric S, (..., b, b). It is the identity at S = 0 (STRING)."""
    eye = torch.eye(generator.shape[-1], dtype=generator.dtype, device=generator.device)
    # The two factors commute, so solving from the left gives the same matrix. I + S is never singular, but `solve` would check
    # that and make the host wait for the accelerator; `solve_ex` does not.
    return torch.linalg.solve_ex(eye + generator, eye - generator)[0]


def orthonormalise(basis: Tensor, steps: int = 2) -> Tensor:
    """Returns the nearest orthogonal matrix in float64, (..., b, b), to one that is off by rounding to float32, about 1e-7.

    Each Newton–Schulz step towards the polar factor squares the error.
    """
    basis = basis.double()
    for _ in range(steps):
        basis = 1.5 * basis - 0.5 * basis @ (basis.mT @ basis)
    return basis


def project_basis_gradient(basis: Tensor, frequencies: Tensor) -> Tensor:
    """Returns Q unchanged, and removes from its gradient the directions in which no rotation changes.

    Rot(ωᵀx) commutes with a rotation within a plane, with a unitary mix of planes whose ω are equal, and with any mix of planes
    whose ω are zero. In these directions of Q the exact gradient is zero and the computed one is rounding error, which an
    optimiser that normalises gradients, such as Adam, would turn into full-sized steps.

    Args:
        basis: (H, m, b, b), float64.
        frequencies: ω, (N, H, m, b/2), without gradient.
    """
    differ_in_value, differ_in_negative = (
        (frequencies.unsqueeze(-1) != sign * frequencies.unsqueeze(-2))
        .any(0)
        .repeat_interleave(2, -1)
        .repeat_interleave(2, -2)
        for sign in (1, -1)
    )
    constant = basis.detach()
    change = constant.mT @ basis  # the identity in value; its derivative is the X of dQ = QX
    quarter_turn = plane_generators(torch.ones_like(basis[..., ::2, 0]))  # diag(J, …, J)
    conjugated = quarter_turn @ change @ quarter_turn.mT
    # The part that commutes with J mixes planes of equal ω, the part that anticommutes planes of opposite ω.
    kept = (differ_in_value * (change + conjugated) + differ_in_negative * (change - conjugated)) / 2
    return constant + constant @ (kept - kept.mT) / 2


def plane_generators(frequencies: Tensor) -> Tensor:
    """Returns diag(ω_1 J, …, ω_h J), (..., 2h, 2h), for frequencies ω (..., h)."""
    two = torch.arange(2, dtype=frequencies.dtype, device=frequencies.device)
    quarter_turn = two.unsqueeze(-1) - two  # J
    h = frequencies.shape[-1]
    eye = torch.eye(h, dtype=frequencies.dtype, device=frequencies.device)
    planes = torch.einsum("...k,kl,cd->...kcld", frequencies, eye, quarter_turn)
    return planes.reshape(*frequencies.shape[:-1], 2 * h, 2 * h)


def plane_frequencies(generator: Tensor) -> Tensor:
    """Returns ω (..., h) of diag(ω_1 J, …, ω_h J), (..., 2h, 2h): the inverse of `plane_generators`, differentiable."""
    within = generator.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).diagonal(dim1=-4, dim2=-2)  # (..., 2, 2, h)
    return (within[..., 1, 0, :] - within[..., 0, 1, :]) / 2


def can_synchronise(device: torch.device) -> bool:
    """True if the code may wait for values on this device: on a CPU it costs nothing, on an accelerator it stalls the host."""
    return device.type == "cpu"


def uses_jacobi(matrix: Tensor) -> bool:
    """True if `matrix` (..., b, b) is decomposed by Jacobi's method, without a wait: small blocks on an accelerator."""
    return not can_synchronise(matrix.device) and matrix.shape[-1] <= _MAX_JACOBI_BLOCK_SIZE


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Returns torch.linalg.eigh(matrix), or raises a clear error for NaN. The host waits for an accelerator."""
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError as error:
        raise InputError(
            "the angle matrices have no eigenvalues: some are NaN or infinite. Training has diverged, or wrong values were "
            "loaded; look at pe.angle_matrices()."
        ) from error


def decompose(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a real basis Q (..., b, b) and ascending frequencies μ ≥ 0 (..., b/2) of skew-symmetric `matrix`, in float64.

    The result has no gradient. There are three methods:

    - CPU, no frequency near zero: eigenvectors of the Hermitian iS, which has eigenvalues ±μ_k. The eigenvector a + ib of +μ_k
      and its conjugate span plane k, in which S maps √2·a to μ_k √2·b.
    - CPU with some frequency near zero, or accelerator with large blocks: `_decompose_with_zeros`, which calls eigh once more.
    - Accelerator with small blocks: Jacobi's method (comrope._jacobi), which never makes the host wait.

    Raises:
        InputError: NaN or infinite elements, if eigh reports them. Jacobi's method returns NaN instead.
    """
    s = matrix.detach().double()
    if uses_jacobi(s):
        return _orient_planes(s, orthonormalise(plane_basis(s), steps=1))
    h = s.shape[-1] // 2
    eigenvalues, eigenvectors = eigh(1j * s)
    mu, upper = eigenvalues[..., h:], eigenvectors[..., h:]  # μ ≥ 0, ascending
    if can_synchronise(s.device) and (mu > _CLEAR_RATIO * mu[..., -1:]).all():
        return orthonormalise(2**0.5 * torch.view_as_real(upper).flatten(-2), steps=1), mu.contiguous()
    return _decompose_with_zeros(s, mu, upper)


def _decompose_with_zeros(s: Tensor, mu: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what `decompose` does where frequencies may be zero, and eigenvectors need not come in conjugate pairs.

    Weights the projector onto each plane by the plane's rank, or by 0 if its frequency is zero. The eigenvectors of the sum, a
    *real* symmetric matrix, are an orthonormal real basis, plane after plane, even where frequencies are equal or zero.
    """
    rank = torch.arange(1, mu.shape[-1] + 1, dtype=s.dtype, device=s.device)
    weight = torch.where(mu > _ZERO_RATIO * mu[..., -1:], rank, torch.zeros_like(rank))
    parts = torch.cat((upper.real, upper.imag), dim=-1)  # (..., b, b)
    planes = (parts * weight.repeat(*[1] * (weight.ndim - 1), 2).unsqueeze(-2)) @ parts.mT  # Σ_k weight_k Re(v_k v_kᴴ)
    basis = eigh(planes)[1]  # (..., b, b), planes in ascending rank
    return _orient_planes(s, basis)


def _orient_planes(s: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Returns Q and ascending μ ≥ 0, given an orthogonal `basis` whose columns 2k and 2k+1 span invariant planes of S."""
    # Within a plane S is ±μJ, depending on the plane's orientation: flip the second column where the sign is negative.
    first, second = basis[..., 0::2], basis[..., 1::2]
    signed = (second * (s @ first)).sum(-2)
    mu, order = signed.abs().sort(dim=-1)
    planes = torch.stack((first, torch.where(signed < 0, -1.0, 1.0).to(s.dtype).unsqueeze(-2) * second), dim=-1)
    return planes.gather(-2, order[..., None, :, None].expand_as(planes)).flatten(-2), mu


# A custom operator is one node to torch.compile and torch.export, so its complex tensors never reach Inductor.
@torch.library.custom_op("comrope::skew_basis", mutates_args=())
def _basis_op(matrix: Tensor) -> Tensor:
    return decompose(matrix)[0].contiguous()


@_basis_op.register_fake
def _(matrix):
    return torch.empty_like(matrix, dtype=torch.float64, memory_format=torch.contiguous_format)


@_basis_op.register_vmap
def _(info, in_dims, matrix):
    return _basis_op(matrix.movedim(in_dims[0], 0)), 0


def block_diagonalise(matrix: Tensor) -> tuple[Tensor | None, Tensor]:
    """Returns Q and D = QᵀSQ = diag(μ_1 J, …, μ_h J) of skew-symmetric S (..., b, b), both float64.

    Q is a constant, and None for b = 2, where S has this form already. D is differentiable in S: the gradient of a rotation by
    exp(τS) flows through D alone (comrope._generator_gradient), so the decomposition needs no derivative.
    """
    if matrix.shape[-1] == 2:
        return None, matrix.double()
    basis = _basis_op(matrix.detach())
    return basis, basis.mT @ matrix.double() @ basis
