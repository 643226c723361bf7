"""The RoPE of a model, read off the table that its attention layers get."""

from collections.abc import Sequence

import torch
from torch import Tensor

from comrope.hosts._attention import half_layout


def measured(
    table: Sequence[Tensor] | None, positions: Tensor, head_dim: int, known: Tensor | None = None
) -> list[tuple[Tensor, Tensor | None]]:
    """Frequencies ω (N, 1, D/2), and the order of features that makes neighbours of each plane's, in both usual layouts.

    Neighbouring tokens differ by one step on one axis, and the phases of their rows by ω there: less than half a turn.

    Args:
        table: cos and sin, (…, L, …, r) of r turned features, r ≤ head_dim; the rest stands still.
        positions: (L, N), in steps.
        head_dim: D.
        known: frequencies as the model keeps them, which are more exact than what can be read off.
    Returns:
        "Half" layout first, then neighbours; nothing where the table is not of these tokens or has no neighbouring ones.
    """
    if table is None or positions.ndim != 2:
        return []
    cos, sin = (each.double().reshape(-1, each.shape[-1]) for each in table)
    turned = cos.shape[-1]
    if len(cos) != len(positions) or turned > head_dim or turned % 2:
        return []
    found = []
    for planes, order in (
        (slice(0, turned // 2), half_layout(head_dim, turned)),
        (slice(0, turned, 2), None),
    ):
        rates = []
        for axis in range(positions.shape[-1]):
            pair = _neighbours(positions, axis)
            if pair is None:
                return []
            (c, d), (s, t) = (each[list(pair)][:, planes] for each in (cos, sin))
            rates.append(torch.atan2(t * c - d * s, d * c + t * s))
        frequencies = torch.stack(rates)
        frequencies = torch.where(frequencies.abs() < 1e-6, 0.0, frequencies)
        if known is not None:
            frequencies = _nearest(frequencies, known.double())
        still = frequencies.new_zeros(len(frequencies), (head_dim - turned) // 2)
        found.append((torch.cat((frequencies, still), dim=1).unsqueeze(1), order))
    return found


def _neighbours(positions: Tensor, axis: int) -> tuple[int, int] | None:
    """Two tokens of which the second is one step further on an axis, and as far on the others."""
    step = torch.zeros_like(positions[0])
    step[axis] = 1
    for first in range(len(positions)):
        second = (positions == positions[first] + step).all(-1).nonzero()
        if len(second):
            return first, int(second[0])
    return None


def _nearest(frequencies: Tensor, known: Tensor) -> Tensor:
    """Each frequency as it is known, where one is so near that it must be meant."""
    gaps = (frequencies.unsqueeze(-1) - known).abs()
    gap, which = gaps.min(-1)
    return torch.where((gap < 1e-5) & (frequencies != 0), known[which], frequencies)
