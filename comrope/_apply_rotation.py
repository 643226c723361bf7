"""The rotation z = Rot(φ)Qᵀx as an autograd function: forward, backward, forward mode (jvp) and vmap.

With g = ∂L/∂z, h = Rot(−φ)g and u = Rot(−φ)z = Qᵀx, the sums being over tokens:

    ∂L/∂x = Qh,   ∂L/∂φ = ⟨g, Jz⟩,   ∂L/∂Q = Q (Σ u hᵀ − Σ z gᵀ),   ∂L/∂D as comrope._generator_gradient derives it.

The second sum in ∂L/∂Q belongs to the outer Q of the full rotation Q Rot(φ)Qᵀx, which z leaves out. With it, the gradient is
that of the full rotation, so it is correct for each call by itself, whatever else takes part in the loss.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from comrope._first_order import FirstOrderOnly, supports_forward_mode
from comrope._generator_gradient import generator_gradient, generator_gradient_op, generator_tangent
from comrope._linalg import plane_frequencies
from comrope._planes import (
    as_complex,
    block_diagonal,
    empty_with_layout_of,
    full_precision,
    group_heads,
    inverse_table,
    phase_gradient,
    rotate,
    scratch_buffers,
    sum_outer_products,
)
from comrope.errors import InputError

TOKENS, PHASES, BASIS, TABLE = 1, -2, 0, 1
"""The dimension of the heads in tokens, in phases and positions, in a basis or generator, and in a table."""


def apply_rotation(
    x: Tensor,
    phases: Tensor,
    basis: Tensor | None,
    generator: Tensor | None,
    positions: Tensor | None,
    table: Tensor,
    in_basis: bool,
) -> Tensor:
    """Returns Rot(φ)Qᵀx, with the shape and dtype of x.

    Args:
        x: (B, H·g, L, D).
        phases: φ (L, H, D/2) or (B, L, H, D/2), float64; used only to receive a gradient.
        basis: Q (H, m, b, b); None for the identity.
        generator: D = QᵀSQ (H, m, b, b), float64, if Q is the constant basis of a learned S; used only to receive a gradient.
        positions: τ (L, H, m) or (B, L, H, m), if there is a generator.
        table: cos φ and sin φ, (B or 1, H, 1, L, D/2, 2).
        in_basis: x is Qᵀx already.
    """
    function = ApplyRotationWithJvp if supports_forward_mode() else ApplyRotation
    return function.apply(x, phases, basis, generator, positions, table, in_basis)  # pyright: ignore


class ApplyRotation(Function):
    """`apply_rotation` with its backward. It saves the table and its result, which attention keeps anyway, but no input."""

    @staticmethod
    def forward(x, phases, basis, generator, positions, table, in_basis):  # pyright: ignore
        with full_precision(x.device):
            return _rotate_tokens(x, table, None if in_basis else basis)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, phases, basis, generator, positions, table, in_basis = inputs
        learned = any(ctx.needs_input_grad[1:4])  # the backward of a fixed rotation needs the table only
        ctx.save_for_backward(output if learned else None, basis, generator, positions, table)
        ctx.shared, ctx.in_basis = phases.ndim == 3, in_basis

    @staticmethod
    def backward(ctx, grad):
        z, basis, generator, positions, table = _saved_tensors(ctx)
        back = _backward if torch.compiler.is_compiling() else RotationBackward.apply
        inputs = (grad, z, basis, generator, positions, table)
        return (*back(*inputs, ctx.needs_input_grad[:4], ctx.shared, ctx.in_basis), None, None, None)  # pyright: ignore

    @staticmethod
    def vmap(info, in_dims, *arguments):
        *tensors, in_basis = arguments
        heads_dims = (TOKENS, PHASES, BASIS, BASIS, PHASES, TABLE)
        folded = _fold_into_heads(info.batch_size, in_dims[:-1], heads_dims, tensors)
        return _unfold_from_heads(apply_rotation(*folded, in_basis=in_basis), info.batch_size, TOKENS), 0  # pyright: ignore


class ApplyRotationWithJvp(ApplyRotation):
    """`ApplyRotation` with forward mode, which torch.compile does not support."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ApplyRotation.setup_context(ctx, inputs, output)
        _, _, basis, generator, positions, table, _ = inputs
        ctx.save_for_forward(output, basis, generator, positions, table)

    @staticmethod
    def jvp(ctx, dx, dphases, dbasis, dgenerator, *unused):
        return RotationJvp.apply(*ctx.saved_tensors, dx, dphases, dbasis, dgenerator, ctx.in_basis)


class ApplyRotationInPlace(Function):
    """Rotates some of the features of y in place: the views (B, H, g, L, D) that `heads(y)` returns.

    This avoids splitting and concatenating the output of a fused projection. It has no forward mode and no vmap.
    """

    @staticmethod
    def forward(y, phases, basis, generator, positions, table, in_basis, heads):  # pyright: ignore
        with full_precision(y.device):
            for x in heads(y):
                rotated = _rotate_tokens(x, table, None if in_basis else basis, x if x.dtype == table.dtype else None)
                if rotated is not x:
                    x.copy_(rotated)
        return y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_dirty(inputs[0])
        ApplyRotation.setup_context(ctx, inputs[:-1], output)
        ctx.heads = inputs[-1]

    @staticmethod
    def backward(ctx, grad):
        inputs = (grad, *_saved_tensors(ctx), ctx.needs_input_grad[:4], ctx.shared, ctx.in_basis, ctx.heads)
        return (*RotationBackwardInPlace.apply(*inputs), None, None, None, None)  # pyright: ignore


class RotationBackward(FirstOrderOnly):
    """The backward of `ApplyRotation` as a Function of its own, which has a vmap rule and raises if differentiated."""

    @staticmethod
    def forward(grad, z, basis, generator, positions, table, needs, shared, in_basis):  # pyright: ignore
        return _backward(grad, z, basis, generator, positions, table, needs, shared, in_basis)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        *tensors, needs, shared, in_basis = arguments
        heads_dims = (TOKENS, TOKENS, BASIS, BASIS, PHASES, TABLE)
        folded = _fold_into_heads(info.batch_size, in_dims[:-3], heads_dims, tensors)
        grads = RotationBackward.apply(*folded, needs, shared, in_basis)
        pairs = zip(grads, (TOKENS, PHASES, BASIS, BASIS), strict=True)  # pyright: ignore
        grads = [None if grad is None else _unfold_from_heads(grad, info.batch_size, dim) for grad, dim in pairs]
        return tuple(grads), tuple(None if grad is None else 0 for grad in grads)


class RotationBackwardInPlace(FirstOrderOnly):
    """The backward of `ApplyRotationInPlace` as a Function of its own, which raises if differentiated."""

    @staticmethod
    def forward(grad, z, basis, generator, positions, table, needs, shared, in_basis, heads):  # pyright: ignore
        parts = heads(grad)
        has_other_features = sum(part.numel() for part in parts) < grad.numel()
        grad_y = grad.clone() if has_other_features else torch.empty_like(grad)
        sums: list[Any] = [None, None, None]
        for out, g, rotated in zip(heads(grad_y), parts, parts if z is None else heads(z), strict=True):
            inputs = (g, rotated, basis, generator, positions, table)
            grads = _backward(*inputs, needs, shared, in_basis, out)[1:]
            sums = [each if total is None else total + each for total, each in zip(sums, grads, strict=True)]
        return (grad_y if needs[0] else None, *sums)


class RotationJvp(FirstOrderOnly):
    """The tangent of z for tangents of x, phases, basis and generator. It raises if differentiated."""

    @staticmethod
    def forward(z, basis, generator, positions, table, dx, dphases, dbasis, dgenerator, in_basis):  # pyright: ignore
        with full_precision(z.device):
            return _jvp(z, basis, generator, positions, table, dx, dphases, dbasis, dgenerator, in_basis)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        *tensors, in_basis = arguments
        heads_dims = (TOKENS, BASIS, BASIS, PHASES, TABLE, TOKENS, PHASES, BASIS, BASIS)
        folded = _fold_into_heads(info.batch_size, in_dims[:-1], heads_dims, tensors)
        return _unfold_from_heads(RotationJvp.apply(*folded, in_basis), info.batch_size, TOKENS), 0  # pyright: ignore


def _saved_tensors(ctx) -> Sequence[Tensor]:
    """Returns the saved tensors, or raises InputError if the result of the rotation was changed in place."""
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise InputError(
            "rotated queries or keys were changed in place, and the backward of learned angles needs them as they were: "
            "write q = q * scale in place of q *= scale."
        ) from error


def _rotate_tokens(x: Tensor, table: Tensor, basis: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Returns Rot(φ)Qᵀx for x (B, H·g, L, D) or (B, H, g, L, D), written into `out` if given, which may be x itself."""
    grouped = group_heads(x, table)
    if torch.compiler.is_compiling():
        grouped = grouped if basis is None else grouped @ block_diagonal(basis, table.dtype)
        return rotate(grouped, table).view(x.shape).to(x.dtype)
    # The result is allocated in x's own shape: autograd would not let the caller change a view of it in place. It has x's
    # memory layout, so that a projection's output, (B, L, H, D) in memory, need not be copied.
    result = empty_with_layout_of(x, table.dtype) if out is None else out
    grouped_result = group_heads(result, table)
    if basis is not None:
        product = grouped_result if out is None and grouped_result.is_contiguous() else None
        grouped = torch.matmul(grouped, block_diagonal(basis, table.dtype), out=product)
    rotate(grouped, table, grouped_result)
    return result.to(x.dtype)


def _backward(grad, z, basis: Tensor | None, generator, positions, table, needs, shared, in_basis, out=None):
    """Returns the gradients in x, phases, basis and generator, None where not needed. That in x is written into `out`."""
    needs_x, needs_phases, needs_basis, needs_generator = needs
    grad_x = grad_phases = grad_basis = grad_generator = None
    with torch.no_grad(), full_precision(table.device):
        g = group_heads(grad, table)
        if needs_basis or needs_generator:  # the many products that follow are faster on contiguous memory
            g, z = g.contiguous(), group_heads(z, table).contiguous()
        inverse = inverse_table(table)
        scratch = scratch_buffers(g)
        applied = None if in_basis else basis
        # Without a basis, h is the gradient in x, and can be written straight into `out`.
        into_out = out is not None and out.dtype == g.dtype and not (needs_basis or needs_generator)
        h = rotate(g, inverse, scratch[1] if applied is not None else out if into_out else None)
        if needs_x:
            back = h if applied is None else h @ block_diagonal(applied, h.dtype).mT
            grad_x = back if back is out else back.view(grad.shape).to(grad.dtype)
            if out is not None and back is not out:
                grad_x = out.copy_(grad_x)
        if needs_phases:
            z = group_heads(z, table)
            grad_phases = phase_gradient(g, z, shared, scratch)
        if needs_basis:
            assert basis is not None
            num_blocks = basis.shape[1]
            u = rotate(z, inverse, scratch[0])
            total = sum_outer_products(u, h, num_blocks) - sum_outer_products(z, g, num_blocks)
            grad_basis = basis @ total.to(basis.dtype)
        if needs_generator:
            inputs = (g, z, h, plane_frequencies(generator), positions, inverse)
            compiling = torch.compiler.is_compiling()
            grad_generator = generator_gradient_op(*inputs) if compiling else generator_gradient(*inputs, scratch)
    return grad_x, grad_phases, grad_basis, grad_generator


def _jvp(z, basis: Tensor | None, generator, positions, table, dx, dphases, dbasis, dgenerator, in_basis) -> Tensor:
    """Returns dz for tangents of x, phases, basis and generator, each of which may be None."""
    rotated, inverse = group_heads(z, table), inverse_table(table)
    applied = None if in_basis else basis
    total = torch.zeros_like(rotated)
    if dx is not None:
        total = total + group_heads(_rotate_tokens(dx, table, applied), table)
    if dphases is not None:
        rate = (dphases.unsqueeze(0) if dphases.ndim == 3 else dphases).transpose(-3, -2).unsqueeze(2)
        total = total + torch.view_as_real(1j * rate.to(table.dtype) * as_complex(rotated)).flatten(-2)
    if dbasis is not None:
        assert basis is not None
        change = block_diagonal(basis.mT @ dbasis, rotated.dtype)  # X of dQ = QX
        total = total + rotated @ change.mT + rotate(rotate(rotated, inverse) @ change, table)
    if dgenerator is not None:
        frequencies = plane_frequencies(generator)
        total = total + generator_tangent(rotate(rotated, inverse), rotated, dgenerator, frequencies, positions, table)
    return total.view(z.shape).to(z.dtype)


def _fold_into_heads(
    size: int, in_dims: Sequence[int | None], heads_dims: Sequence[int], tensors: Sequence[Tensor | None]
) -> list:
    """Returns each tensor with its vmapped dimension folded into the heads, which are rotated independently of each other.

    Args:
        size: the size of the vmapped dimension.
        in_dims: the vmapped dimension of each tensor, or None.
        heads_dims: the dimension of the heads in each tensor, not counting the vmapped one.
    """
    folded: list[Tensor | None] = []
    for tensor, dim, heads_dim in zip(tensors, in_dims, heads_dims, strict=True):
        if tensor is not None:
            tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            heads_dim = heads_dim + 1 if heads_dim >= 0 else tensor.ndim + heads_dim
            tensor = tensor.movedim(0, heads_dim - 1).flatten(heads_dim - 1, heads_dim)
        folded.append(tensor)
    return folded


def _unfold_from_heads(tensor: Tensor, size: int, heads_dim: int) -> Tensor:
    """Returns the tensor with the vmapped dimension moved out of the heads, to the front."""
    heads_dim = heads_dim % tensor.ndim
    return tensor.unflatten(heads_dim, (size, -1)).movedim(heads_dim, 0)
