"""The exponential of a skew-symmetric matrix, for angle matrices that do not commute: each position needs one of its own.

A skew-symmetric S is normal, S = V diag(iλ) Vᴴ with V unitary, so exp(S) = V diag(e^{iλ}) Vᴴ, and its derivative
(Daleckii–Krein) is

    d exp(S) = V (Φ ∘ (Vᴴ dS V)) Vᴴ,   Φ_jk = (e^{iλ_j} − e^{iλ_k}) / (iλ_j − iλ_k) = e^{i(λ_j + λ_k)/2} sinc((λ_j − λ_k)/2),

with nothing to divide by where eigenvalues meet. The gradient is the adjoint: conjugate Φ. In S = Q diag(μ_k J) Qᵀ the
eigenvectors of ±iμ_k are (q_2k ∓ i q_2k+1)/√2.
"""

import torch
from torch import Tensor

from comrope._linalg import by_jacobi, decompose, eigh, first_order_only


def _unitary(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """λ (..., b) and V (..., b, b) of skew-symmetric `matrix`, in float64; without waiting for an accelerator if b is small."""
    if not by_jacobi(matrix):
        return eigh(-1j * matrix.double())
    basis, mu = decompose(matrix)
    half = torch.complex(basis[..., 0::2], -basis[..., 1::2]) / 2**0.5
    return torch.cat((mu, -mu), dim=-1), torch.cat((half, half.conj()), dim=-1)


@torch.library.custom_op("comrope::exp_skew", mutates_args=())
def _op(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    eigenvalues, eigenvectors = _unitary(matrix)
    exponential = (eigenvectors * torch.exp(1j * eigenvalues).unsqueeze(-2)) @ eigenvectors.mH
    return exponential.real.to(matrix.dtype).contiguous(), eigenvalues, torch.view_as_real(eigenvectors.contiguous())


@_op.register_fake
def _(matrix):
    eigenvalues = matrix.new_empty(matrix.shape[:-1], dtype=torch.float64)
    return matrix.new_empty(matrix.shape), eigenvalues, matrix.new_empty((*matrix.shape, 2), dtype=torch.float64)


@torch.library.custom_op("comrope::exp_skew_backward", mutates_args=())
def _gradient_op(grad: Tensor, eigenvalues: Tensor, eigenvectors: Tensor) -> Tensor:
    v = torch.view_as_complex(eigenvectors)
    first, second = eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2)
    sinc = torch.sinc((first - second) / (2 * torch.pi))  # torch's sinc has the π inside
    phi = torch.exp(-0.5j * (first + second)) * sinc
    grad_eigen = v.mH @ grad.to(v.dtype).contiguous() @ v
    gradient = (v @ (phi * grad_eigen) @ v.mH).real
    return ((gradient - gradient.mT) / 2).to(grad.dtype).contiguous()


@_gradient_op.register_fake
def _(grad, eigenvalues, eigenvectors):
    return grad.new_empty(grad.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*output)


def _backward(ctx, grad, *unused):
    exponential, eigenvalues, eigenvectors = ctx.saved_tensors
    with torch.no_grad():
        gradient = _gradient_op(grad, eigenvalues, eigenvectors)
    return first_order_only(gradient, grad, exponential)


_op.register_autograd(_backward, setup_context=_setup_context)


def exp_skew(matrix: Tensor) -> Tensor:
    """exp(S) of skew-symmetric `matrix` (..., b, b), by its eigenvectors, worked out in float64. First derivatives only."""
    return _op(matrix)[0]
