"""Skew-symmetric matrices: from parameters, and down to a real basis and frequencies.

Every real skew-symmetric S (b × b, b even) is S = Q · diag(μ_1 J, …, μ_h J) · Qᵀ with Q orthogonal,
J = [[0, −1], [1, 0]], μ ≥ 0 and h = b/2. Columns 2k and 2k+1 of Q span plane k, in which exp(τS) turns by μ_k τ.
"""

import torch
from torch import Tensor

from comrope._jacobi import plane_basis
from comrope.errors import InputError

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


def project_basis_gradient(basis: Tensor, frequencies: Tensor) -> Tensor:
    """Returns Q unchanged; its gradient keeps only the part along changes of Q that change some rotation.

    Rot(ωᵀx) commutes with a rotation within a plane, with a unitary mix of planes whose ω are equal, and with any mix of planes
    whose ω are zero. Along such changes of Q the true gradient is zero, and what is computed is rounding; an optimiser that
    divides gradients by their size would make whole steps of it.

    Args:
        basis: (H, m, b, b), float64.
        frequencies: ω, (N, H, m, b/2), without gradient.
    """
    alike, against = (
        (frequencies.unsqueeze(-1) != sign * frequencies.unsqueeze(-2))
        .any(0)
        .repeat_interleave(2, -1)
        .repeat_interleave(2, -2)
        for sign in (1, -1)
    )
    constant = basis.detach()
    change = constant.mT @ basis  # the identity in value; the X of dQ = QX in its derivative
    turn = plane_generators(torch.ones_like(basis[..., ::2, 0]))
    turned = turn @ change @ turn.mT
    # What commutes with J mixes planes that turn alike, what anticommutes with it planes that turn against each other.
    kept = (alike * (change + turned) + against * (change - turned)) / 2
    return constant + constant @ (kept - kept.mT) / 2


def plane_generators(frequencies: Tensor) -> Tensor:
    """diag(ω_1 J, …, ω_h J) for frequencies (..., h): shape (..., 2h, 2h)."""
    two = torch.arange(2, dtype=frequencies.dtype, device=frequencies.device)
    turn = two.unsqueeze(-1) - two  # J
    h = frequencies.shape[-1]
    eye = torch.eye(h, dtype=frequencies.dtype, device=frequencies.device)
    planes = torch.einsum("...k,kl,cd->...kcld", frequencies, eye, turn)
    return planes.reshape(*frequencies.shape[:-1], 2 * h, 2 * h)


def plane_frequencies(generator: Tensor) -> Tensor:
    """ω (..., h) of diag(ω_1 J, …, ω_h J), shape (..., 2h, 2h): undoes `plane_generators`, differentiable."""
    within = generator.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).diagonal(dim1=-4, dim2=-2)  # (..., 2, 2, h)
    return (within[..., 1, 0, :] - within[..., 0, 1, :]) / 2


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


# An operator: torch.compile and torch.export see one node, and the complex tensors in it never reach Inductor.
@torch.library.custom_op("comrope::skew_basis", mutates_args=())
def _basis_op(matrix: Tensor) -> Tensor:
    return decompose(matrix)[0].contiguous()


@_basis_op.register_fake
def _(matrix):
    return torch.empty_like(matrix, dtype=torch.float64, memory_format=torch.contiguous_format)


@_basis_op.register_vmap
def _(info, in_dims, matrix):
    return _basis_op(matrix.movedim(in_dims[0], 0)), 0


def in_planes(matrix: Tensor) -> tuple[Tensor | None, Tensor]:
    """Q of skew-symmetric S (..., b, b), a constant, and D = QᵀSQ = diag(μ_k J), differentiable in S: float64.

    What a rotation by exp(τS) needs of S goes through D (comrope._generator): the decomposition itself has no derivative.
    Blocks of a single plane are in it already: Q is None for them.
    """
    if matrix.shape[-1] == 2:
        return None, matrix.double()
    basis = _basis_op(matrix.detach())
    return basis, basis.mT @ matrix.double() @ basis
