"""Operations on whole token tensors: rotate each plane by its angle, and sum outer products within blocks.

A plane is a pair of neighbouring features, 2k and 2k+1. Tokens have shape (B, H, g, L, D): g query heads share the rotation
of one key head. A table holds cos φ and sin φ of every phase φ, (B or 1, H, 1, L, D/2, 2), and broadcasts over tokens.
"""

import math
from contextlib import nullcontext

import torch
from torch import Tensor


def full_precision(device: torch.device):
    """Returns a context that turns autocast off, so that it does not round matrix products."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def cos_sin_table(phases: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the table of cos φ and sin φ in `dtype`, (B or 1, H, 1, L, D/2, 2), for float64 phases φ (B or none, L, H, D/2).

    Phases are reduced modulo 2π in float64 first, so the result is accurate however large they are.
    """
    phases = phases.detach().transpose(-3, -2)
    phases = phases.unsqueeze(0) if phases.ndim == 3 else phases
    if dtype != torch.float64:
        turns = phases / (2 * math.pi)
        phases = turns.sub_(turns.round()).mul_(2 * math.pi).to(dtype, memory_format=torch.contiguous_format)
    cos, sin = phases.cos(), phases.sin()
    if torch.compiler.is_compiling():
        return torch.stack((cos, sin), dim=-1).unsqueeze(2)
    table = phases.new_empty(*phases.shape, 2)  # torch.stack takes 1.5 times as long
    table[..., 0].copy_(cos)
    table[..., 1].copy_(sin)
    return table.unsqueeze(2)


def inverse_table(table: Tensor) -> Tensor:
    """Returns the table of −φ. Multiplying by a constant (1, −1) instead would copy that constant to the accelerator."""
    if not torch.compiler.is_compiling():
        return torch.view_as_real(torch.view_as_complex(table).conj_physical())
    return torch.stack((table[..., 0], -table[..., 1]), dim=-1)


def group_heads(x: Tensor, table: Tensor) -> Tensor:
    """Returns x as (B, H, g, L, D) in the table's dtype; x is (B, H·g, L, D), or has that shape already."""
    num_heads = table.shape[1]
    if x.ndim == 5:
        return x.to(table.dtype)
    return x.unflatten(1, (num_heads, x.shape[1] // num_heads)).to(table.dtype)


def scratch_buffers(x: Tensor) -> Tensor:
    """Returns three flat buffers of x's size for intermediate results: fresh memory costs more time than the arithmetic."""
    return x.new_empty(3, x.numel())


def empty_with_layout_of(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns an empty tensor with x's memory layout, or a contiguous one if x's last dimension has no stride of 1."""
    out = torch.empty_like(x, dtype=dtype)
    return out if out.stride(-1) == 1 else torch.empty(x.shape, dtype=dtype, device=x.device)


def rotate(x: Tensor, table: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns x with each plane rotated by its angle, written into `out` if given: a tensor like x or a flat buffer.

    Eager PyTorch multiplies planes as complex numbers, in one pass. Inductor and ONNX do not support complex numbers, so
    compiled graphs use real arithmetic, which the compiler fuses.
    """
    if torch.compiler.is_compiling():
        (x1, x2), (cos, sin) = coordinates(x), table.unbind(-1)
        return torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).flatten(-2)
    if out is None:
        out = empty_with_layout_of(x, x.dtype)
    elif out.ndim == 1:
        out = out[: x.numel()].view(x.shape)
    elif not _can_view_as_complex(out):
        return out.copy_(rotate(x, table))
    torch.mul(as_complex(x), torch.view_as_complex(table), out=as_complex(out))
    return out


def coordinates(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the first and second coordinates of every plane, (..., D/2) each, as views."""
    return x[..., 0::2], x[..., 1::2]


def as_complex(x: Tensor) -> Tensor:
    """Returns planes as complex numbers, (..., D/2): a view if x's memory layout allows it, else a copy."""
    if not _can_view_as_complex(x):
        x = x.clone(memory_format=torch.contiguous_format)
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _can_view_as_complex(x: Tensor) -> bool:
    """True if the two coordinates of each plane are adjacent in memory and aligned as a complex number must be."""
    return bool(x.stride(-1) == 1 and x.storage_offset() % 2 == 0 and all(s % 2 == 0 for s in x.stride()[:-1]))


def phase_gradient(g: Tensor, z: Tensor, shared: bool, scratch: Tensor) -> Tensor:
    """Returns the gradient in the phases, ⟨g, Jz⟩ of every plane, in float64.

    Its shape is (L, H, D/2), summed over the batch, if the batch shares its phases, else (B, L, H, D/2).
    """
    dims = (0, 2) if shared else (2,)
    if torch.compiler.is_compiling():
        (g1, g2), (z1, z2) = coordinates(g), coordinates(z)
        summed = (g2 * z1 - g1 * z2).sum(dims)
    else:
        product = as_complex(scratch[0, : g.numel()].view(g.shape))
        summed = torch.conj_physical(as_complex(z), out=product).mul_(as_complex(g)).sum(dims).imag
    return summed.transpose(-3, -2).double()


def block_diagonal(blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns blocks (H, m, b, b) as block-diagonal matrices (H, 1, D, D): one large product beats many small ones."""
    num_heads, num_blocks, b, _ = blocks.shape
    eye = torch.eye(num_blocks, dtype=dtype, device=blocks.device).view(num_blocks, 1, num_blocks, 1)
    return (blocks.to(dtype).unsqueeze(-2) * eye).reshape(num_heads, 1, num_blocks * b, num_blocks * b)


def sum_outer_products(left: Tensor, right: Tensor, num_blocks: int) -> Tensor:
    """Returns Σ left · rightᵀ of each block, summed over batch, group and tokens: (H, m, b, b).

    Neighbouring blocks are multiplied together, up to 16 × 16, and only the diagonal blocks are kept: smaller products waste
    time.
    """
    b = left.shape[-1] // num_blocks
    together = max(n for n in range(1, num_blocks + 1) if num_blocks % n == 0 and (n == 1 or n * b <= 16))
    pairs = zip(left.split(together * b, dim=-1), right.split(together * b, dim=-1), strict=True)
    products = torch.stack([(x.mT @ y).sum((0, 2)) for x, y in pairs], dim=1)  # (H, m/together, together·b, together·b)
    blocks = products.unflatten(-1, (together, b)).unflatten(-3, (together, b)).diagonal(dim1=2, dim2=4)
    return blocks.movedim(-1, 2).flatten(1, 2)


def repeat_over_features(per_block: Tensor, b: int) -> Tensor:
    """Returns values (B or none, L, H, m) repeated for each of a block's b features: (B or 1, H, 1, L, D)."""
    if per_block.ndim == 3:
        per_block = per_block.unsqueeze(0)
    return per_block.repeat_interleave(b, dim=-1).transpose(1, 2).unsqueeze(2)


def half_layout(head_dim: int, num_rotated: int | None = None) -> Tensor:
    """Returns the feature order (D,) that makes neighbours of features p and p + r/2, the planes of the "half" layout.

    r is the number of rotated features, D by default; the others stay where they are.
    """
    num_rotated = head_dim if num_rotated is None else num_rotated
    return torch.cat((torch.arange(num_rotated).view(2, -1).T.flatten(), torch.arange(num_rotated, head_dim)))
