"""Speeds and directions that several rivals share, float64 on the CPU."""

import torch
from torch import Tensor


def geometric_speeds(fastest: float, base: float, count: int) -> Tensor:
    """Returns fastest · base^(−j/count) for j = 0 … count − 1, (count,)."""
    return fastest * base ** (-torch.arange(count, dtype=torch.float64, device="cpu") / count)


def along_axes(speeds: Tensor, num_axes: int) -> Tensor:
    """Returns axial ω (N, N·n): n planes at `speeds` (n,) along the first axis, then n along the second, and so on."""
    return torch.block_diag(*[speeds.unsqueeze(0)] * num_axes)


def random_rotations(count: int, num_axes: int) -> Tensor:
    """Returns matrices (count, N, N), uniform in SO(N), drawn from torch's default generator."""
    draws = torch.randn(count, num_axes, num_axes, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(draws)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # uniform in O(N)
    return torch.cat((q[..., :1] * torch.linalg.det(q)[:, None, None], q[..., 1:]), dim=-1)
