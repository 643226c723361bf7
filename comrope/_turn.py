"""The rotation itself, forward and backward, of queries and keys together.

With z = Rot(φ)Qᵀx the turned tokens, g = ∂L/∂z, h = Rot(−φ)g and u = Rot(−φ)z = Qᵀx:

    ∂L/∂x = Qh,   ∂L/∂φ = ⟨g, Jz⟩,   ∂L/∂Q = Q Σ u hᵀ,   ∂L/∂tilt = Σ (τ/2)(h uᵀ + g zᵀ),   ∂L/∂moments = Σ w·(1, |τ|³)

with w = |g||z|, the sums being over the tokens of queries and keys. Inside, tokens are (B, H, g, L, D): a group of g query
heads beside the key head whose rotation they share.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.autograd import Function

from comrope._linalg import any_gap_closed, first_order_only, may_ask


class Turn(Function):
    """Rot(φ)Qᵀq and Rot(φ)Qᵀk. It saves tables and its own results, which attention keeps anyway, and no input."""

    @staticmethod
    def forward(q, k, phases, key_phases, basis, tilt, moments, frequencies, time, key_time, table, key_table):  # pyright: ignore
        with full_precision(q.device):
            q_table, k_table = _both(table, key_table)
            return _turn(q, q_table, basis), _turn(k, k_table, basis)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, phases, key_phases, basis, _, _, frequencies, time, key_time, table, key_table = inputs
        ctx.save_for_backward(*output, basis, frequencies, time, key_time, table, key_table)
        ctx.one_phase = key_phases is None
        ctx.shared = phases.ndim == 3, _both(phases, key_phases)[1].ndim == 3  # by the batch

    @staticmethod
    def backward(ctx, *incoming):
        *turned, basis, frequencies, time, key_time, table, key_table = ctx.saved_tensors
        tables, times = _both(table, key_table), _both(time, key_time)
        needs_q, needs_k, needs_phases, needs_key_phases, needs_basis, needs_tilt = ctx.needs_input_grad[:6]
        needs_key_phases = needs_key_phases or (ctx.one_phase and needs_phases)
        grad_tilt = grad_moments = None
        with torch.no_grad(), full_precision(table.device):
            g, z = ([_group_heads(x, t) for x, t in zip(xs, tables, strict=True)] for xs in (incoming, turned))
            room = _room(g)
            grad_q, gram_q = _turn_back(g[0], z[0], tables[0], basis, needs_q, needs_basis, room)
            grad_k, gram_k = _turn_back(g[1], z[1], tables[1], basis, needs_k, needs_basis, room)
            grad_q, grad_k = (
                None if x is None else x.view(grad.shape).to(grad.dtype)
                for x, grad in zip((grad_q, grad_k), incoming, strict=True)
            )
            grad_basis = None if gram_q is None else basis @ (gram_q + gram_k).to(basis.dtype)  # pyright: ignore
            grad_phases = _phase_gradient(g[0], z[0], room, ctx.shared[0]) if needs_phases else None
            grad_key_phases = _phase_gradient(g[1], z[1], room, ctx.shared[1]) if needs_key_phases else None
            if ctx.one_phase and grad_phases is not None:
                grad_phases, grad_key_phases = grad_phases + grad_key_phases, None  # pyright: ignore
            if needs_tilt:
                grad_moments = _moments(g[0], z[0], times[0]) + _moments(g[1], z[1], times[1])
                grad_tilt = _tilt_gradient(g, z, tables, times, frequencies, grad_moments)
        grads = (grad_q, grad_k, grad_phases, grad_key_phases, grad_basis, grad_tilt, grad_moments)
        return (*(first_order_only(grad, *incoming, *turned) for grad in grads), *[None] * 5)


def _both(own: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of the queries and of the keys, which share it where theirs is None: torch.compile takes no tensor twice."""
    return own, own if keys is None else keys


def full_precision(device: torch.device):
    """A context in which autocast, where the device has one, does not round matrix products."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _group_heads(x: Tensor, table: Tensor) -> Tensor:
    """(B, H·g, L, D) as (B, H, g, L, D) in the dtype of the table, H being the heads that have a rotation of their own."""
    num_heads = table.shape[1]
    return x.unflatten(1, (num_heads, x.shape[1] // num_heads)).to(table.dtype)


def _turn(x: Tensor, table: Tensor, basis: Tensor | None) -> Tensor:
    """Rot(φ)Qᵀx, of the shape and dtype of x."""
    grouped = _group_heads(x, table)
    if torch.compiler.is_compiling():
        grouped = grouped if basis is None else grouped @ _dense(basis, table.dtype)
        return _rotate(grouped, table).view(x.shape).to(x.dtype)
    # Written into a tensor of x's own shape: a view of another could not be changed in place by whoever gets it.
    out = torch.empty(x.shape, dtype=table.dtype, device=x.device)
    if basis is not None:
        grouped = torch.matmul(grouped, _dense(basis, table.dtype), out=out.view(grouped.shape))
    _rotate(grouped, table, out.view(-1))
    return out.to(x.dtype)


def _turn_back(g, z, table, basis, needs_x, needs_basis, room) -> tuple[Tensor | None, Tensor | None]:
    """Qh, and Σ u hᵀ within each block: each if it is needed."""
    back = _back(table)
    if basis is None:
        return (_rotate(g, back) if needs_x else None), None
    if not (needs_x or needs_basis):
        return None, None
    h = _rotate(g, back, room[0])
    gram = _gram(_rotate(z, back, room[1]), h, *basis.shape[1:3]) if needs_basis else None
    return (h @ _dense(basis, h.dtype).mT if needs_x else None), gram


def _back(table: Tensor) -> Tensor:
    """The table of the opposite angles. No (1, −1) to multiply with: making it on a GPU would be waited for."""
    return torch.stack((table[..., 0], -table[..., 1]), dim=-1)


def _room(tokens: Sequence[Tensor]) -> Tensor:
    """Two places for tokens that are worked out on the way, queries first, keys after them: fresh memory costs more time
    than the arithmetic."""
    return tokens[0].new_empty(2, max(x.numel() for x in tokens))


def _rotate(x: Tensor, table: Tensor, room: Tensor | None = None) -> Tensor:
    """Each plane of x turned by its angle; into `room`, if given.

    A plane is a complex number, and eager PyTorch multiplies those in one pass; Inductor and ONNX know none, and fuse the
    same in real arithmetic.
    """
    if torch.compiler.is_compiling():
        (x1, x2), (cos, sin) = _planes(x), table.unbind(-1)
        return torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).flatten(-2)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if room is None else room[: x.numel()].view(x.shape)
    torch.mul(_complex(x), torch.view_as_complex(table), out=_complex(out))
    return out


def _planes(x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second coordinates of every plane, (..., D/2) each, as views."""
    return x[..., 0::2], x[..., 1::2]


def _complex(x: Tensor) -> Tensor:
    """Planes as complex numbers, (..., D/2): a view, or a copy where the memory of x does not allow one."""
    even = all(stride % 2 == 0 for stride in x.stride()[:-1]) and x.storage_offset() % 2 == 0
    x = x if even and x.stride(-1) == 1 else x.contiguous()
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _dense(basis: Tensor, dtype: torch.dtype) -> Tensor:
    """Q of all blocks of a head as one block-diagonal matrix, (H, 1, D, D): one large product in place of many small ones."""
    num_heads, num_blocks, b, _ = basis.shape
    eye = torch.eye(num_blocks, dtype=dtype, device=basis.device).view(num_blocks, 1, num_blocks, 1)
    return (basis.to(dtype).unsqueeze(-2) * eye).reshape(num_heads, 1, num_blocks * b, num_blocks * b)


def _gram(left: Tensor, right: Tensor, num_blocks: int, b: int) -> Tensor:
    """Σ over batch, group and tokens of left · rightᵀ within each block: (H, m, b, b).

    Neighbouring blocks are multiplied together, up to 16 × 16, and the diagonal is kept: smaller products waste time.
    """
    together = max(n for n in range(1, num_blocks + 1) if num_blocks % n == 0 and (n == 1 or n * b <= 16))
    pairs = zip(left.split(together * b, dim=-1), right.split(together * b, dim=-1), strict=True)
    products = torch.stack([(x.mT @ y).sum((0, 2)) for x, y in pairs], dim=1)  # (H, m/together, together·b, together·b)
    blocks = products.unflatten(-1, (together, b)).unflatten(-3, (together, b)).diagonal(dim1=2, dim2=4)
    return blocks.movedim(-1, 2).flatten(1, 2)


def _phase_gradient(g: Tensor, z: Tensor, room: Tensor, shared: bool) -> Tensor:
    """⟨g, Jz⟩ of every plane, summed over what shares its phase, as float64: (L, H, D/2) if shared, else (B, L, H, D/2)."""
    over = (0, 2) if shared else (2,)
    if torch.compiler.is_compiling():
        (g1, g2), (z1, z2) = _planes(g), _planes(z)
        summed = (g2 * z1 - g1 * z2).sum(over)
    else:
        product = _complex(room[0, : g.numel()].view(g.shape))
        summed = torch.conj_physical(_complex(z), out=product).mul_(_complex(g)).sum(over).imag
    return summed.transpose(-3, -2).double()


def _moments(g: Tensor, z: Tensor, time: Tensor) -> Tensor:
    """Σ w and Σ w|τ|³ for each head and block, w = |g||z| over the whole head: (H, m, 2), float64."""
    weight = (g.norm(dim=-1) * z.norm(dim=-1)).double().sum(2).transpose(1, 2).unsqueeze(-1)  # (B, L, H, 1)
    if time.ndim == 3:
        weight = weight.sum(0)
    cubes = weight * time.abs() ** 3  # (B or none, L, H, m)
    return torch.stack((weight.expand_as(cubes), cubes), dim=-1).flatten(0, -4).sum(0)


# An operator of its own, so that a compiled graph too asks whether the sums are needed at all.
@torch.library.custom_op("comrope::tilt_gradient", mutates_args=())
def _tilt_gradient(
    g: Sequence[Tensor],
    z: Sequence[Tensor],
    tables: Sequence[Tensor],
    times: Sequence[Tensor],
    frequencies: Tensor,
    moments: Tensor,
) -> Tensor:
    """Σ (τ/2)(h uᵀ + g zᵀ) over queries and keys, (H, m, b, b); zeros, unread, where all gaps are open."""
    num_heads, num_blocks, half = frequencies.shape
    b, dtype = 2 * half, tables[0].dtype
    total = frequencies.new_zeros(num_heads, num_blocks, b, b, dtype=dtype)
    # Asking an accelerator would make the host wait for it: there the sums are always made.
    if may_ask(total.device) and not any_gap_closed(frequencies, moments, dtype):
        return total
    room = _room(g)
    for g_, z_, table, time in zip(g, z, tables, times, strict=True):
        half_time = _on_coordinates(time, b).to(table.dtype) / 2
        back = _back(table)
        h, u = _rotate(g_, back, room[0]), _rotate(z_, back, room[1])
        total += _gram(h, u.mul_(half_time), num_blocks, b)
        total += _gram(torch.mul(g_, half_time, out=u), z_, num_blocks, b)
    return total


@_tilt_gradient.register_fake
def _(g, z, tables, times, frequencies, moments):
    num_heads, num_blocks, half = frequencies.shape
    return frequencies.new_empty(num_heads, num_blocks, 2 * half, 2 * half, dtype=tables[0].dtype)


def _on_coordinates(time: Tensor, b: int) -> Tensor:
    """τ (B or none, L, H or 1, m) for each coordinate of its block: (B or 1, H or 1, 1, L, D)."""
    if time.ndim == 3:
        time = time.unsqueeze(0)
    return time.repeat_interleave(b, dim=-1).transpose(1, 2).unsqueeze(2)
