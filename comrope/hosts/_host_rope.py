"""The RoPE that a host model has: its frequencies, from the table that attention layers get, and the order of its planes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from comrope._planes import half_layout


def frequencies_from_table(
    table: Sequence[Tensor] | None, positions: Tensor, head_dim: int, known: Tensor | None = None
) -> list[tuple[Tensor, Tensor | None]]:
    """Returns frequencies ω (N, 1, D/2) with their feature order, for each of the two usual layouts.

    The phases of two tokens that are one step apart on one axis differ by ω there, which must be less than π.

    Args:
        table: cos and sin, (…, L, …, r), of r ≤ head_dim rotated features; the others are not rotated.
        positions: (L, N), whole numbers.
        head_dim: D.
        known: frequencies as the model stores them, which replace those found where they agree.
    Returns:
        The "half" layout first, then that of neighbouring features. Empty if the table does not belong to these tokens, or
        no two tokens are one step apart.
    """
    if table is None or positions.ndim != 2:
        return []
    cos, sin = (each.double().reshape(-1, each.shape[-1]) for each in table)
    num_rotated = cos.shape[-1]
    if len(cos) != len(positions) or num_rotated > head_dim or num_rotated % 2:
        return []
    found = []
    for planes, order in (
        (slice(0, num_rotated // 2), half_layout(head_dim, num_rotated)),
        (slice(0, num_rotated, 2), None),
    ):
        differences = []
        for axis in range(positions.shape[-1]):
            pair = _adjacent_tokens(positions, axis)
            if pair is None:
                return []
            (c, d), (s, t) = (each[list(pair)][:, planes] for each in (cos, sin))
            differences.append(torch.atan2(t * c - d * s, d * c + t * s))
        frequencies = torch.stack(differences)
        frequencies = torch.where(frequencies.abs() < 1e-6, 0.0, frequencies)
        if known is not None:
            frequencies = _snap(frequencies, known.double())
        unrotated = frequencies.new_zeros(len(frequencies), (head_dim - num_rotated) // 2)
        found.append((torch.cat((frequencies, unrotated), dim=1).unsqueeze(1), order))
    return found


def _adjacent_tokens(positions: Tensor, axis: int) -> tuple[int, int] | None:
    """Returns two tokens that are one step apart on an axis, and equal on the others; None if there are none."""
    step = torch.zeros_like(positions[0])
    step[axis] = 1
    for first in range(len(positions)):
        second = (positions == positions[first] + step).all(-1).nonzero()
        if len(second):
            return first, int(second[0])
    return None


def _snap(frequencies: Tensor, known: Tensor) -> Tensor:
    """Replaces each frequency by the nearest known one, if they differ by rounding only."""
    gaps = (frequencies.unsqueeze(-1) - known).abs()
    gap, which = gaps.min(-1)
    return torch.where((gap < 1e-5) & (frequencies != 0), known[which], frequencies)


def one_axis_per_block(frequencies: Tensor, block_size: int) -> Tensor | None:
    """Returns an order of the planes, (D/2,), in which block j rotates with axis j mod N only, as in ComRoPE-AP.

    Args:
        frequencies: ω (N, H or 1, D/2), where each plane rotates with one axis (axial RoPE).
        block_size: b, the features in a block.
    Returns:
        None if there is no such order.
    """
    num_axes, h = len(frequencies), block_size // 2
    rotates = frequencies.ne(0).any(1)  # (N, D/2)
    axis = rotates.int().argmax(0)
    planes = [(axis == i).nonzero().squeeze(1) for i in range(num_axes)]
    if rotates.sum(0).gt(1).any() or any(len(p) != len(planes[0]) or len(p) % h for p in planes):
        return None
    return torch.stack([p.view(-1, h) for p in planes], dim=1).flatten()  # (blocks per axis, N, h)
