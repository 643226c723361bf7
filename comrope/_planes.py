"""Passes over tokens whose features are planes: rotate every plane by its angle, and sum products within blocks.

Tokens are (B, H, g, L, D): groups of g query heads that share the rotation of one key head. A table holds the cosine and sine
of every angle, (B or 1, H, 1, L, D/2, 2), laid out so that it multiplies tokens directly.
"""

import math
from contextlib import nullcontext

import torch
from torch import Tensor


def full_precision(device: torch.device):
    """A context in which autocast, where the device has one, does not round matrix products."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def phase_table(phases: Tensor, dtype: torch.dtype) -> Tensor:
    """cos φ and sin φ in `dtype`, accurate however large the phases are: whole turns are taken off in float64.

    Takes float64 phases (B or none, L, H, D/2); returns a table (B or 1, H, 1, L, D/2, 2).
    """
    phases = phases.detach().transpose(-3, -2)
    phases = phases.unsqueeze(0) if phases.ndim == 3 else phases
    if dtype != torch.float64:
        turns = phases / (2 * math.pi)
        phases = turns.sub_(turns.round()).mul_(2 * math.pi).to(dtype, memory_format=torch.contiguous_format)
    cos, sin = phases.cos(), phases.sin()
    if torch.compiler.is_compiling():
        return torch.stack((cos, sin), dim=-1).unsqueeze(2)
    table = phases.new_empty(*phases.shape, 2)  # and no stack, which would be slower by half
    table[..., 0].copy_(cos)
    table[..., 1].copy_(sin)
    return table.unsqueeze(2)


def inverse_table(table: Tensor) -> Tensor:
    """The table of the opposite angles. A constant (1, −1) to multiply with would have to be copied to an accelerator."""
    if not torch.compiler.is_compiling():
        return torch.view_as_real(torch.view_as_complex(table).conj_physical())
    return torch.stack((table[..., 0], -table[..., 1]), dim=-1)


def group_heads(x: Tensor, table: Tensor) -> Tensor:
    """(B, H·g, L, D) as (B, H, g, L, D), which it may be already, in the dtype of the table."""
    num_heads = table.shape[1]
    if x.ndim == 5:
        return x.to(table.dtype)
    return x.unflatten(1, (num_heads, x.shape[1] // num_heads)).to(table.dtype)


def scratch_for(x: Tensor) -> Tensor:
    """Room for three tensors as large as x that are worked out on the way: fresh memory costs more time than the arithmetic."""
    return x.new_empty(3, x.numel())


def room_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty tensor that lies in memory as x does, but that the two coordinates of a plane are neighbours."""
    room = torch.empty_like(x, dtype=dtype)
    return room if room.stride(-1) == 1 else torch.empty(x.shape, dtype=dtype, device=x.device)


def rotate(x: Tensor, table: Tensor, out: Tensor | None = None) -> Tensor:
    """Each plane of x rotated by its angle; written into `out`, if given: a tensor like x or a flat buffer.

    A plane is a complex number, and eager PyTorch multiplies those in one pass; Inductor and ONNX know none, and fuse the
    same in real arithmetic.
    """
    if torch.compiler.is_compiling():
        (x1, x2), (cos, sin) = coordinates(x), table.unbind(-1)
        return torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).flatten(-2)
    if out is None:
        out = room_like(x, x.dtype)
    elif out.ndim == 1:
        out = out[: x.numel()].view(x.shape)
    elif not _are_neighbours(out):
        return out.copy_(rotate(x, table))
    torch.mul(as_complex(x), torch.view_as_complex(table), out=as_complex(out))
    return out


def coordinates(x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second coordinates of every plane, (..., D/2) each, as views."""
    return x[..., 0::2], x[..., 1::2]


def as_complex(x: Tensor) -> Tensor:
    """Planes as complex numbers, (..., D/2): a view where the memory of x allows one, and a copy elsewhere."""
    if not _are_neighbours(x):
        x = x.clone(memory_format=torch.contiguous_format)
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _are_neighbours(x: Tensor) -> bool:
    """Whether both coordinates of a plane lie side by side, where a complex number may."""
    return bool(x.stride(-1) == 1 and x.storage_offset() % 2 == 0 and all(s % 2 == 0 for s in x.stride()[:-1]))


def phase_gradient(g: Tensor, z: Tensor, shared: bool, scratch: Tensor) -> Tensor:
    """⟨g, Jz⟩ of every plane, float64: (L, H, D/2) summed over the batch if it shares the phases, else (B, L, H, D/2)."""
    over = (0, 2) if shared else (2,)
    if torch.compiler.is_compiling():
        (g1, g2), (z1, z2) = coordinates(g), coordinates(z)
        summed = (g2 * z1 - g1 * z2).sum(over)
    else:
        product = as_complex(scratch[0, : g.numel()].view(g.shape))
        summed = torch.conj_physical(as_complex(z), out=product).mul_(as_complex(g)).sum(over).imag
    return summed.transpose(-3, -2).double()


def dense(blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Blocks (H, m, b, b) as one block-diagonal matrix a head, (H, 1, D, D): one large product in place of many small ones."""
    num_heads, num_blocks, b, _ = blocks.shape
    eye = torch.eye(num_blocks, dtype=dtype, device=blocks.device).view(num_blocks, 1, num_blocks, 1)
    return (blocks.to(dtype).unsqueeze(-2) * eye).reshape(num_heads, 1, num_blocks * b, num_blocks * b)


def gram(left: Tensor, right: Tensor, num_blocks: int) -> Tensor:
    """Σ left · rightᵀ within each block, over batch, group and tokens: (H, m, b, b).

    Neighbouring blocks are multiplied together, up to 16 × 16, and the diagonal is kept: smaller products waste time.
    """
    b = left.shape[-1] // num_blocks
    together = max(n for n in range(1, num_blocks + 1) if num_blocks % n == 0 and (n == 1 or n * b <= 16))
    pairs = zip(left.split(together * b, dim=-1), right.split(together * b, dim=-1), strict=True)
    products = torch.stack([(x.mT @ y).sum((0, 2)) for x, y in pairs], dim=1)  # (H, m/together, together·b, together·b)
    blocks = products.unflatten(-1, (together, b)).unflatten(-3, (together, b)).diagonal(dim1=2, dim2=4)
    return blocks.movedim(-1, 2).flatten(1, 2)


def on_features(per_block: Tensor, b: int) -> Tensor:
    """A number a token, head and block, (B or none, L, H, m), for each feature of that block: (B or 1, H, 1, L, D)."""
    if per_block.ndim == 3:
        per_block = per_block.unsqueeze(0)
    return per_block.repeat_interleave(b, dim=-1).transpose(1, 2).unsqueeze(2)
