"""Directions that planes rotate along: evenly spread over the half sphere, since ω and −ω are one direction."""

import math
from typing import Any

import torch
from torch import Tensor


def golden_ratio(power: int) -> float:
    """Returns g > 1 with g^power = g + 1: the golden ratio for a power of 2, and its kin for others."""
    golden = 2.0
    for _ in range(60):
        golden = (1 + golden) ** (1 / power)
    return golden


def spread_directions(count: int, num_axes: int) -> Tensor:
    """Returns `count` unit vectors (count, N), float64 on the CPU, evenly spread over half of the sphere in N dimensions.

    They are a Kronecker sequence in [0, 1]^(N−1), with the powers of 1/g where g^N = g + 1, mapped to the sphere by the inverse
    of each polar angle's cumulative distribution, of density sin^k. With two axes that is the golden angle, with three nearly
    the Fibonacci sphere. Any first few of them are spread, too.

    >>> spread_directions(3, 2).round(decimals=2).tolist()
    [[0.0, 1.0], [0.93, 0.36], [-0.68, 0.74]]
    """
    golden = golden_ratio(num_axes)
    options: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    index = torch.arange(count, **options)
    directions = torch.ones(count, 1, **options)
    for k in range(num_axes - 1):
        end = math.pi if k else 2 * math.pi
        angles = torch.linspace(0, end / 2 if k == num_axes - 2 else end, 2**12 + 1, **options)
        below = torch.cumulative_trapezoid(angles.sin().abs() ** k, angles)
        below = torch.cat((below.new_zeros(1), below / below[-1]))
        share = (0.5 + index * golden ** -(k + 1)) % 1
        after = torch.searchsorted(below, share, right=True).clamp(max=len(angles) - 1)
        within = (share - below[after - 1]) / (below[after] - below[after - 1])
        angle = torch.lerp(angles[after - 1], angles[after], within).unsqueeze(1)
        directions = torch.cat((angle.cos(), angle.sin() * directions), 1)
    return directions
