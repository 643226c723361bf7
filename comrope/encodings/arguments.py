"""What encodings are given, checked: each function returns its argument as it is worked with, or says what is wrong."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from comrope.errors import ConfigurationError, InputError

FARTHEST = 1e15
"""Of positions: farther out float64 does not tell a whole radian from the next."""


def check_positions(positions: Tensor, name: str, num_axes: int) -> Tensor:
    """`positions` if they are finite, precise and of `num_axes` axes (integers as float64); InputError otherwise.

    Whether they are finite cannot be asked where they differ within a vmap: what is not gives NaN there.
    """
    if not isinstance(positions, Tensor) or positions.ndim not in (2, 3) or positions.shape[-1] != num_axes:
        came = tuple(positions.shape) if isinstance(positions, Tensor) else type(positions).__name__
        raise InputError(
            f"{name}: got {came}, expected a tensor (L, N) or (B, L, N) with N=num_axes={num_axes}, as "
            "comrope.positions.grid or .sequence makes."
        )
    if positions.dtype.is_complex or positions.dtype == torch.bool or positions.layout != torch.strided:
        raise InputError(f"{name}: got {positions.dtype}, {positions.layout}; expected real numbers in a dense tensor.")
    if not positions.is_floating_point():
        positions = positions.double()
    if positions.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{name}: got {positions.dtype}, which merges neighbouring tokens. Keep positions in float32 or float64; they "
            "are no part of what a cast to lower precision saves."
        )
    message = f"{name}: some are NaN, infinite or beyond 1e15, but every token needs a finite place."
    finite = (positions.abs() <= FARTHEST).all()
    if torch.compiler.is_compiling() or positions.device.type not in ("cpu", "meta"):
        torch._assert_async(finite, message)  # no synchronisation with the device
    elif positions.device.type == "cpu" and not _true_or_unknown(finite):
        raise InputError(message)
    return positions


def _true_or_unknown(condition: Tensor) -> bool:
    """Whether a condition is true, or cannot be asked since it differs between the samples of a vmap."""
    try:
        return bool(condition)
    except RuntimeError:
        return True


def check_std(std: float) -> float:
    """`std` if it is a standard deviation; ConfigurationError otherwise."""
    if not (isinstance(std, Real) and math.isfinite(std) and std >= 0):
        raise ConfigurationError(f"std={std!r}: expected a finite number, 0 or more.")
    return float(std)


def check_sizes(**sizes: int) -> None:
    """ConfigurationError unless every size is a whole number, 1 or more."""
    for name, value in sizes.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{name}={value!r}: expected a whole number, 1 or more.")


def check_parameter_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of angles, for None torch's default but float32 at least; ConfigurationError unless float32 or float64."""
    if dtype is None:
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    if dtype not in (torch.float32, torch.float64):
        raise ConfigurationError(f"dtype={dtype}: angles are kept in float32 or float64; cast the model, not them.")
    return dtype


def check_rope(base: float, max_frequency: float, head_dim: int, num_axes: int) -> tuple[float, float]:
    """`base` and `max_frequency` if vanilla RoPE can be made with them in these sizes; ConfigurationError otherwise."""
    for name, value in (("base", base), ("max_frequency", max_frequency)):
        if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
            raise ConfigurationError(f"{name}={value!r}: expected a finite number above 0.")
    if head_dim % (2 * num_axes):
        raise ConfigurationError(
            f"head_dim={head_dim} with num_axes={num_axes}: vanilla RoPE gives each axis the same number of planes, so "
            f"head_dim must be a multiple of {2 * num_axes}."
        )
    return float(base), float(max_frequency)
