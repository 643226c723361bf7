"""The exponential of a skew-symmetric matrix, for angle matrices that do not commute: each position needs one of its own.

A skew-symmetric S is normal, S = V diag(iλ) Vᴴ with V unitary, so exp(S) = V diag(e^{iλ}) Vᴴ, and its derivative
(Daleckii–Krein) is

    d exp(S) = V (Φ ∘ (Vᴴ dS V)) Vᴴ,   Φ_jk = (e^{iλ_j} − e^{iλ_k}) / (iλ_j − iλ_k) = e^{i(λ_j + λ_k)/2} sinc((λ_j − λ_k)/2),

with nothing to divide by where eigenvalues meet. The gradient is the adjoint: conjugate Φ. In S = Q diag(μ_k J) Qᵀ the
eigenvectors of ±iμ_k are (q_2k ∓ i q_2k+1)/√2.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from comrope._first_order import FirstOrderOnly, takes_forward_mode
from comrope._linalg import by_jacobi, decompose, eigh


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


@torch.library.custom_op("comrope::exp_skew_derivative", mutates_args=())
def _derivative_op(change: Tensor, eigenvalues: Tensor, eigenvectors: Tensor, adjoint: bool) -> Tensor:
    """d exp(S) for a change dS, or the gradient in S for a gradient in exp(S)."""
    v = torch.view_as_complex(eigenvectors)
    first, second = eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2)
    sinc = torch.sinc((first - second) / (2 * torch.pi))  # torch's sinc has the π inside
    phi = torch.exp((-0.5j if adjoint else 0.5j) * (first + second)) * sinc
    found = (v @ (phi * (v.mH @ change.to(v.dtype).contiguous() @ v)) @ v.mH).real
    found = (found - found.mT) / 2 if adjoint else found
    return found.to(change.dtype).contiguous()


@_derivative_op.register_fake
def _(change, eigenvalues, eigenvectors, adjoint):
    return change.new_empty(change.shape)


@_op.register_vmap
def _(info, in_dims, matrix):
    return _op(matrix.movedim(in_dims[0], 0)), (0, 0, 0)


@_derivative_op.register_vmap
def _(info, in_dims, change, eigenvalues, eigenvectors, adjoint):
    tensors = zip((change, eigenvalues, eigenvectors), in_dims, strict=False)
    moved = (t.unsqueeze(0).expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0) for t, d in tensors)
    return _derivative_op(*moved, adjoint), 0


def exp_skew(matrix: Tensor) -> Tensor:
    """exp(S) of skew-symmetric `matrix` (..., b, b), by its eigenvectors, worked out in float64. First derivatives only."""
    function = ExponentialBothWays if takes_forward_mode() else Exponential
    return function.apply(matrix)[0]  # pyright: ignore


class Exponential(Function):
    """exp(S), and the eigenvalues and eigenvectors of S, which have no derivative here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix):  # pyright: ignore
        return _op(matrix)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx, grad, *unused):
        back = _derivative_op if torch.compiler.is_compiling() else ExponentialDerivative.apply
        return back(grad, *ctx.saved_tensors, True)


class ExponentialBothWays(Exponential):
    """The same with forward mode."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        Exponential.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*output[1:])

    @staticmethod
    def jvp(ctx, tangent):
        return ExponentialDerivative.apply(tangent, *ctx.saved_tensors, False), None, None


class ExponentialDerivative(FirstOrderOnly):
    """The derivative of `Exponential` or its adjoint, as a function of its own, so that differentiating it raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(change, eigenvalues, eigenvectors, adjoint):  # pyright: ignore
        return _derivative_op(change, eigenvalues, eigenvectors, adjoint)
