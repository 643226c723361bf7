"""The exponential of a skew-symmetric matrix, for angle matrices that do not commute and need one for each position.

A skew-symmetric S is normal, S = V diag(iλ) Vᴴ with V unitary, so exp(S) = V diag(e^{iλ}) Vᴴ, and its derivative
(Daleckii–Krein) is

    d exp(S) = V (Φ ∘ (Vᴴ dS V)) Vᴴ,   Φ_jk = (e^{iλ_j} − e^{iλ_k}) / (iλ_j − iλ_k) = e^{i(λ_j + λ_k)/2} sinc((λ_j − λ_k)/2),

which divides by no gap, so eigenvalues may be equal. The gradient is the adjoint, with conjugate Φ. In S = Q diag(μ_k J) Qᵀ
the eigenvectors of ±iμ_k are (q_2k ∓ i q_2k+1)/√2.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from comrope._first_order import FirstOrderOnly, supports_forward_mode
from comrope._linalg import decompose, eigh, uses_jacobi


def _eigendecompose(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Returns λ (..., b) and V (..., b, b) of skew-symmetric `matrix`, in float64. Small blocks need no host wait."""
    if not uses_jacobi(matrix):
        return eigh(-1j * matrix.double())
    basis, mu = decompose(matrix)
    half = torch.complex(basis[..., 0::2], -basis[..., 1::2]) / 2**0.5
    return torch.cat((mu, -mu), dim=-1), torch.cat((half, half.conj()), dim=-1)


@torch.library.custom_op("comrope::exp_skew", mutates_args=())
def _exp_skew_op(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    eigenvalues, eigenvectors = _eigendecompose(matrix)
    exponential = (eigenvectors * torch.exp(1j * eigenvalues).unsqueeze(-2)) @ eigenvectors.mH
    return exponential.real.to(matrix.dtype).contiguous(), eigenvalues, torch.view_as_real(eigenvectors.contiguous())


@_exp_skew_op.register_fake
def _(matrix):
    eigenvalues = matrix.new_empty(matrix.shape[:-1], dtype=torch.float64)
    return matrix.new_empty(matrix.shape), eigenvalues, matrix.new_empty((*matrix.shape, 2), dtype=torch.float64)


@torch.library.custom_op("comrope::exp_skew_derivative", mutates_args=())
def _exp_skew_derivative_op(change: Tensor, eigenvalues: Tensor, eigenvectors: Tensor, adjoint: bool) -> Tensor:
    """Returns d exp(S) for a tangent dS or, if `adjoint`, the gradient in S for a gradient in exp(S)."""
    v = torch.view_as_complex(eigenvectors)
    first, second = eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2)
    sinc = torch.sinc((first - second) / (2 * torch.pi))  # torch's sinc has the π inside
    phi = torch.exp((-0.5j if adjoint else 0.5j) * (first + second)) * sinc
    result = (v @ (phi * (v.mH @ change.to(v.dtype).contiguous() @ v)) @ v.mH).real
    result = (result - result.mT) / 2 if adjoint else result
    return result.to(change.dtype).contiguous()


@_exp_skew_derivative_op.register_fake
def _(change, eigenvalues, eigenvectors, adjoint):
    return change.new_empty(change.shape)


@_exp_skew_op.register_vmap
def _(info, in_dims, matrix):
    return _exp_skew_op(matrix.movedim(in_dims[0], 0)), (0, 0, 0)


@_exp_skew_derivative_op.register_vmap
def _(info, in_dims, change, eigenvalues, eigenvectors, adjoint):
    tensors = zip((change, eigenvalues, eigenvectors), in_dims, strict=False)
    moved = (t.unsqueeze(0).expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0) for t, d in tensors)
    return _exp_skew_derivative_op(*moved, adjoint), 0


def exp_skew(matrix: Tensor) -> Tensor:
    """Returns exp(S) of skew-symmetric `matrix` S (..., b, b), computed in float64. It has first derivatives only."""
    function = ExponentialWithJvp if supports_forward_mode() else Exponential
    return function.apply(matrix)[0]  # pyright: ignore


class Exponential(Function):
    """Returns exp(S), and the eigenvalues and eigenvectors of S, which have no derivative here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix):  # pyright: ignore
        return _exp_skew_op(matrix)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx, grad, *unused):
        back = _exp_skew_derivative_op if torch.compiler.is_compiling() else ExponentialDerivative.apply
        return back(grad, *ctx.saved_tensors, True)


class ExponentialWithJvp(Exponential):
    """`Exponential` with forward mode, which torch.compile does not support."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        Exponential.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*output[1:])

    @staticmethod
    def jvp(ctx, tangent):
        return ExponentialDerivative.apply(tangent, *ctx.saved_tensors, False), None, None


class ExponentialDerivative(FirstOrderOnly):
    """Computes the tangent or the gradient of `Exponential`, as a Function of its own so that differentiating it raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(change, eigenvalues, eigenvectors, adjoint):  # pyright: ignore
        return _exp_skew_derivative_op(change, eigenvalues, eigenvectors, adjoint)
