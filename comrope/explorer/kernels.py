"""What a rotary encoding does to the score of a query and a key, as a function of their displacement.

Displacements Δ are those of the key from the query, in patches (tokens, for text). Each plane p of a commuting encoding
rotates by w_pᵀΔ, with w in radians per patch, so the score of a query and a key whose content is q and k in the encoding's
basis, as one complex number a plane, is

    s(Δ) = Σ_p Re(q̄_p k_p e^{i w_pᵀΔ}).

The *positional kernel* is this sum for constant weights c_p in place of q̄_p k_p. It does not depend on the place. For angle
matrices that do not commute it does, and `kernel_by_place` takes its mean over all places.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

DEAD = 0.01
"""A plane that rotates by less, in radians per patch, hardly tells patches apart."""
ALIAS = math.pi
"""A plane that rotates by more, in radians per patch, rotates between neighbours as if the other way round."""

_CHUNK = 64
"""Places whose scores are computed together."""


def displacements(grid: Sequence[int]) -> Tensor:
    """Returns all displacements between two patches of a grid, (Π(2n−1), N), float64, in row-major order from −(n−1) on."""
    axes = [torch.arange(1 - n, n, dtype=torch.float64) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def kernel(frequencies: Tensor, weights: Tensor, grid: Sequence[int]) -> Tensor:
    """Returns κ(Δ) = Σ_p Re(c_p e^{i w_pᵀΔ}) at all displacements of a grid.

    Args:
        frequencies: w, (H, P, N), in radians per patch.
        weights: c, (H, P), real or complex.
        grid: patches along each axis, N numbers n.
    Returns:
        (H, 2n−1, …), float64: the middle is Δ = 0.
    """
    rotated = weights.to(torch.complex128).unsqueeze(-1)  # (H, P, displacements along the axes so far)
    for axis, n in enumerate(grid):
        steps = torch.arange(1 - n, n, dtype=torch.float64, device=frequencies.device)
        turn = torch.exp(1j * frequencies[..., axis].double().unsqueeze(-1) * steps)  # (H, P, 2n−1)
        if axis == len(grid) - 1:
            rotated = (rotated.mT @ turn).real  # (H, before, 2n−1)
        else:
            rotated = (rotated.unsqueeze(-1) * turn.unsqueeze(-2)).flatten(-2)
    return rotated.reshape(len(frequencies), *(2 * n - 1 for n in grid))


def kernel_by_place(queries: Tensor, keys: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Returns the mean over places x of ⟨u(x), v(x + Δ)⟩, and its standard deviation.

    With u(x) = R(x)q and v(x) = R(x)k this is the score of content q and k. With the flattened matrices themselves,
    u = v = R/√D, it is tr(R(x)ᵀR(x + Δ)) / D, the mean score over all unit q = k.

    Args:
        queries, keys: u and v at each patch, (L, H, features), patches in row-major order.
        grid: patches along each axis.
    Returns:
        Two tensors (H, 2n−1, …), float64. Places from which x + Δ lies outside of the grid do not count.
    """
    sizes = [2 * n - 1 for n in grid]
    patches = torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"), dim=-1).flatten(0, -2)
    mean = torch.zeros(queries.shape[1], math.prod(sizes), dtype=torch.float64)
    squares, count = torch.zeros_like(mean), torch.zeros(math.prod(sizes), dtype=torch.float64)
    strides = torch.tensor([math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))])
    middle = torch.tensor([n - 1 for n in grid])
    keys = keys.double().cpu().transpose(0, 1)  # (H, L, features)
    queries = queries.double().cpu().transpose(0, 1)
    every_score = (q @ keys.mT for q in queries.split(_CHUNK, dim=1))  # (H, some places, L) each
    for place, scores in zip(patches, (s for some in every_score for s in some.unbind(1)), strict=True):
        where = ((patches - place + middle) * strides).sum(-1)
        count[where] += 1
        change = scores - mean[:, where]  # Welford's algorithm: exact where all scores are the same
        mean[:, where] += change / count[where]
        squares[:, where] += change * (scores - mean[:, where])
    spread = (squares / count).sqrt()
    return mean.view(-1, *sizes), spread.view(-1, *sizes)


def reach(values: Tensor) -> list[float | None]:
    """Returns how far a kernel (H, 2n−1, …) reaches, in patches: the distance from which on it is small.

    |κ| is averaged over all displacements of the same distance, |Δ| rounded to whole patches. The reach is the smallest
    distance from which on this average stays below half of the largest |κ|, up to the length of the longest axis. None if
    there is no such distance: the kernel reaches over the whole grid.
    """
    grid = [(size + 1) // 2 for size in values.shape[1:]]
    distance = displacements(grid).norm(dim=-1).round().long()
    farthest = max(grid) - 1
    size = values.detach().cpu().abs().flatten(1)  # (H, Π(2n−1))
    near = distance <= farthest
    sums = torch.zeros(len(size), farthest + 1, dtype=size.dtype).index_add_(1, distance[near], size[:, near])
    profile = sums / distance[near].bincount(minlength=farthest + 1)
    small = profile < size.amax(1, keepdim=True) / 2
    from_here_on = small.flip(1).cumprod(1).flip(1).bool()
    return [float(row.int().argmax()) if row.any() else None for row in from_here_on]


def speeds(frequencies: Tensor) -> Tensor:
    """Returns |w|, (H, P): how fast each plane rotates along its own direction, in radians per patch."""
    return frequencies.double().norm(dim=-1)
