"""The rotation itself, as an autograd function: z = Rot(φ)Qᵀx, forward, backward, forward mode and under vmap.

With g = ∂L/∂z, h = Rot(−φ)g and u = Rot(−φ)z = Qᵀx, the sums being over tokens:

    ∂L/∂x = Qh,   ∂L/∂φ = ⟨g, Jz⟩,   ∂L/∂Q = Q (Σ u hᵀ − Σ z gᵀ),   ∂L/∂D as comrope._generator derives it.

The second sum in ∂L/∂Q is that of the outer Q, which Q Rot(φ)Qᵀx has and z leaves out: gradients are those of the whole
rotation, seen from a frame that does not move, and so are right whatever else takes part in the loss.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from comrope._first_order import FirstOrderOnly, takes_forward_mode
from comrope._generator import generator_gradient, generator_gradient_op, generator_tangent
from comrope._linalg import plane_frequencies
from comrope._planes import (
    as_complex,
    dense,
    full_precision,
    gram,
    group_heads,
    inverse_table,
    phase_gradient,
    room_like,
    rotate,
    scratch_for,
)
from comrope.errors import InputError

TOKENS, PHASES, BASIS, TABLE = 1, -2, 0, 1
"""Which dimension counts the heads: of tokens, of phases and positions, of a basis or generator, and of a table."""


def turn(
    x: Tensor,
    phases: Tensor,
    basis: Tensor | None,
    generator: Tensor | None,
    positions: Tensor | None,
    table: Tensor,
    in_basis: bool,
) -> Tensor:
    """Rot(φ)Qᵀx, of the shape and dtype of x.

    Args:
        x: (B, H·g, L, D).
        phases: φ (L, H, D/2) or (B, L, H, D/2), float64; for its gradient alone.
        basis: Q (H, m, b, b); None for the identity.
        generator: D = QᵀSQ (H, m, b, b), float64, where Q is the constant basis of a learned S: for its gradient alone.
        positions: τ (L, H, m) or (B, L, H, m), if there is a generator.
        table: of the phases.
        in_basis: whether x is Qᵀx already.
    """
    function = TurnBothWays if takes_forward_mode() else Turn
    return function.apply(x, phases, basis, generator, positions, table, in_basis)  # pyright: ignore


class Turn(Function):
    """`turn`, with its backward. It saves tables and its own result, which attention keeps anyway, and no input."""

    @staticmethod
    def forward(x, phases, basis, generator, positions, table, in_basis):  # pyright: ignore
        with full_precision(x.device):
            return _turn(x, table, None if in_basis else basis)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, phases, basis, generator, positions, table, in_basis = inputs
        learned = any(ctx.needs_input_grad[1:4])  # of a fixed rotation the backward needs the table alone
        ctx.save_for_backward(output if learned else None, basis, generator, positions, table)
        ctx.shared, ctx.in_basis = phases.ndim == 3, in_basis

    @staticmethod
    def backward(ctx, grad):
        z, basis, generator, positions, table = _saved(ctx)
        back = _turn_back if torch.compiler.is_compiling() else TurnBack.apply
        inputs = (grad, z, basis, generator, positions, table)
        return (*back(*inputs, ctx.needs_input_grad[:4], ctx.shared, ctx.in_basis), None, None, None)  # pyright: ignore

    @staticmethod
    def vmap(info, in_dims, *arguments):
        *tensors, in_basis = arguments
        folded = _into_heads(info.batch_size, in_dims[:-1], (TOKENS, PHASES, BASIS, BASIS, PHASES, TABLE), tensors)
        return _out_of_heads(turn(*folded, in_basis=in_basis), info.batch_size, TOKENS), 0  # pyright: ignore


class TurnBothWays(Turn):
    """The same with forward mode."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        Turn.setup_context(ctx, inputs, output)
        _, _, basis, generator, positions, table, _ = inputs
        ctx.save_for_forward(output, basis, generator, positions, table)

    @staticmethod
    def jvp(ctx, dx, dphases, dbasis, dgenerator, *unused):
        return TurnTangent.apply(*ctx.saved_tensors, dx, dphases, dbasis, dgenerator, ctx.in_basis)


class TurnWithin(Function):
    """`turn` of some of the features of y, in place: of those that `heads` gives views of, each (B, H, g, L, D).

    It saves what splitting a projection's output and putting it together again costs. There is no forward mode and no vmap.
    """

    @staticmethod
    def forward(y, phases, basis, generator, positions, table, in_basis, heads):  # pyright: ignore
        with full_precision(y.device):
            for x in heads(y):
                turned = _turn(x, table, None if in_basis else basis, x if x.dtype == table.dtype else None)
                if turned is not x:
                    x.copy_(turned)
        return y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_dirty(inputs[0])
        Turn.setup_context(ctx, inputs[:-1], output)
        ctx.heads = inputs[-1]

    @staticmethod
    def backward(ctx, grad):
        inputs = (grad, *_saved(ctx), ctx.needs_input_grad[:4], ctx.shared, ctx.in_basis, ctx.heads)
        return (*TurnBackWithin.apply(*inputs), None, None, None, None)  # pyright: ignore


class TurnBack(FirstOrderOnly):
    """The backward of `Turn`, as a function of its own: under vmap it has a rule, and differentiating it raises."""

    @staticmethod
    def forward(grad, z, basis, generator, positions, table, needs, shared, in_basis):  # pyright: ignore
        return _turn_back(grad, z, basis, generator, positions, table, needs, shared, in_basis)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        *tensors, needs, shared, in_basis = arguments
        folded = _into_heads(info.batch_size, in_dims[:-3], (TOKENS, TOKENS, BASIS, BASIS, PHASES, TABLE), tensors)
        grads = TurnBack.apply(*folded, needs, shared, in_basis)
        found = zip(grads, (TOKENS, PHASES, BASIS, BASIS), strict=True)  # pyright: ignore
        grads = [None if grad is None else _out_of_heads(grad, info.batch_size, head) for grad, head in found]
        return tuple(grads), tuple(None if grad is None else 0 for grad in grads)


class TurnBackWithin(FirstOrderOnly):
    """The backward of `TurnWithin`, as a function of its own: differentiating it raises."""

    @staticmethod
    def forward(grad, z, basis, generator, positions, table, needs, shared, in_basis, heads):  # pyright: ignore
        parts = heads(grad)
        others = sum(part.numel() for part in parts) < grad.numel()
        grad_y = grad.clone() if others else torch.empty_like(grad)
        sums: list[Any] = [None, None, None]
        for own, g, turned in zip(heads(grad_y), parts, parts if z is None else heads(z), strict=True):
            inputs = (g, turned, basis, generator, positions, table)
            found = _turn_back(*inputs, needs, shared, in_basis, own)[1:]
            sums = [each if total is None else total + each for total, each in zip(sums, found, strict=True)]
        return (grad_y if needs[0] else None, *sums)


class TurnTangent(FirstOrderOnly):
    """The change of z for changes of x, phases, basis and generator; differentiating it raises."""

    @staticmethod
    def forward(z, basis, generator, positions, table, dx, dphases, dbasis, dgenerator, in_basis):  # pyright: ignore
        with full_precision(z.device):
            return _tangent(z, basis, generator, positions, table, dx, dphases, dbasis, dgenerator, in_basis)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        *tensors, in_basis = arguments
        heads = (TOKENS, BASIS, BASIS, PHASES, TABLE, TOKENS, PHASES, BASIS, BASIS)
        folded = _into_heads(info.batch_size, in_dims[:-1], heads, tensors)
        return _out_of_heads(TurnTangent.apply(*folded, in_basis), info.batch_size, TOKENS), 0  # pyright: ignore


def _saved(ctx) -> Sequence[Tensor]:
    """What `Turn` has kept for its backward."""
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise InputError(
            "rotated queries or keys were changed in place, and the backward of learned angles needs them as they were: "
            "write q = q * scale in place of q *= scale."
        ) from error


def _turn(x: Tensor, table: Tensor, basis: Tensor | None, out: Tensor | None = None) -> Tensor:
    """x (B, H·g, L, D) or (B, H, g, L, D) turned; written into `out`, which may be x itself, if given."""
    grouped = group_heads(x, table)
    if torch.compiler.is_compiling():
        grouped = grouped if basis is None else grouped @ dense(basis, table.dtype)
        return rotate(grouped, table).view(x.shape).to(x.dtype)
    # Written into a tensor of x's own shape: a view of another could not be changed in place by whoever gets it. It lies in
    # memory as x does, so that a projection's output, (B, L, H, D) there, need not be copied on the way.
    fresh = room_like(x, table.dtype) if out is None else out
    result = group_heads(fresh, table)
    if basis is not None:
        room = result if out is None and result.is_contiguous() else None
        grouped = torch.matmul(grouped, dense(basis, table.dtype), out=room)
    rotate(grouped, table, result)
    return fresh.to(x.dtype)


def _turn_back(grad, z, basis: Tensor | None, generator, positions, table, needs, shared, in_basis, out=None):
    """The gradients in x, phases, basis and generator: each if it is needed, else None. That in x is written into `out`."""
    needs_x, needs_phases, needs_basis, needs_generator = needs
    grad_x = grad_phases = grad_basis = grad_generator = None
    with torch.no_grad(), full_precision(table.device):
        g = group_heads(grad, table)
        if needs_basis or needs_generator:  # many products follow, and they are quicker so
            g, z = g.contiguous(), group_heads(z, table).contiguous()
        inverse = inverse_table(table)
        scratch = scratch_for(g)
        applied = None if in_basis else basis
        at_once = out is not None and out.dtype == g.dtype and not (needs_basis or needs_generator)
        room = scratch[1] if applied is not None else out if at_once else None
        h = rotate(g, inverse, room)  # the gradient of x itself without a basis
        if needs_x:
            back = h if applied is None else h @ dense(applied, h.dtype).mT
            grad_x = back if back is out else back.view(grad.shape).to(grad.dtype)
            if out is not None and back is not out:
                grad_x = out.copy_(grad_x)
        if needs_phases:
            z = group_heads(z, table)
            grad_phases = phase_gradient(g, z, shared, scratch)
        if needs_basis:
            assert basis is not None
            num_blocks = basis.shape[1]
            total = gram(rotate(z, inverse, scratch[0]), h, num_blocks) - gram(z, g, num_blocks)
            grad_basis = basis @ total.to(basis.dtype)
        if needs_generator:
            inputs = (g, z, h, plane_frequencies(generator), positions, inverse)
            compiling = torch.compiler.is_compiling()
            grad_generator = generator_gradient_op(*inputs) if compiling else generator_gradient(*inputs, scratch)
    return grad_x, grad_phases, grad_basis, grad_generator


def _tangent(z, basis: Tensor | None, generator, positions, table, dx, dphases, dbasis, dgenerator, in_basis) -> Tensor:
    """dz for changes of x, phases, basis and generator, each of which may be None."""
    turned, inverse = group_heads(z, table), inverse_table(table)
    applied = None if in_basis else basis
    total = torch.zeros_like(turned)
    if dx is not None:
        total = total + group_heads(_turn(dx, table, applied), table)
    if dphases is not None:
        rate = (dphases.unsqueeze(0) if dphases.ndim == 3 else dphases).transpose(-3, -2).unsqueeze(2)
        total = total + torch.view_as_real(1j * rate.to(table.dtype) * as_complex(turned)).flatten(-2)
    if dbasis is not None:
        assert basis is not None
        change = dense(basis.mT @ dbasis, turned.dtype)  # X of dQ = QX
        total = total + turned @ change.mT + rotate(rotate(turned, inverse) @ change, table)
    if dgenerator is not None:
        frequencies = plane_frequencies(generator)
        total = total + generator_tangent(rotate(turned, inverse), turned, dgenerator, frequencies, positions, table)
    return total.view(z.shape).to(z.dtype)


def _into_heads(
    size: int, in_dims: Sequence[int | None], heads: Sequence[int], tensors: Sequence[Tensor | None]
) -> list:
    """Each tensor with its vmapped dimension as so many times the heads, since a rotation is one of each head alone.

    Args:
        size: of the vmapped dimension.
        in_dims: where each tensor has that dimension, or None.
        heads: where each tensor has its heads, counted without that dimension.
    """
    folded: list[Tensor | None] = []
    for tensor, dim, head in zip(tensors, in_dims, heads, strict=True):
        if tensor is not None:
            tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            head = head + 1 if head >= 0 else tensor.ndim + head
            tensor = tensor.movedim(0, head - 1).flatten(head - 1, head)
        folded.append(tensor)
    return folded


def _out_of_heads(tensor: Tensor, size: int, head: int) -> Tensor:
    """Takes the vmapped dimension out of the heads again, to the front."""
    head = head % tensor.ndim
    return tensor.unflatten(head, (size, -1)).movedim(head, 0)
