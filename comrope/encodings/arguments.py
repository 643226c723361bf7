"""Checks of the arguments of encodings. Each function returns its argument, converted if necessary, or raises an error."""

import torch
from torch import Tensor

from comrope._values import FARTHEST, check_finite, is_dense, is_number, is_whole, shape_of
from comrope.errors import ConfigurationError, InputError

MAX_FEATURES = 2**20
"""Largest number of heads, features per head and axes. A larger number is a mistake, and would exhaust the memory."""


def check_positions(positions: Tensor, name: str, num_axes: int) -> Tensor:
    """Returns `positions`, with integers as float64. InputError unless they are finite, precise and of `num_axes` axes."""
    is_tensor = isinstance(positions, Tensor) and not positions.is_nested
    if not is_tensor or positions.ndim not in (2, 3) or positions.shape[-1] != num_axes:
        raise InputError(
            f"{name}: got {shape_of(positions)}, expected a tensor (L, N) or (B, L, N) with N=num_axes={num_axes}, as "
            "comrope.positions.grid or .sequence makes."
        )
    if positions.dtype.is_complex or positions.dtype == torch.bool or not is_dense(positions):
        raise InputError(f"{name}: got {positions.dtype}, {positions.layout}; expected real numbers in a dense tensor.")
    if not positions.is_floating_point():
        positions = positions.double()
    if positions.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{name}: got {positions.dtype}, which merges neighbouring tokens. Keep positions in float32 or float64; they "
            "are no part of what a cast to lower precision saves."
        )
    check_finite(positions, name)
    return positions


def check_std(std: float) -> float:
    """Returns `std` as a float; ConfigurationError unless it is a finite number, 0 or more."""
    if not is_number(std):
        raise ConfigurationError(f"std={std!r}: expected a finite number, 0 or more, up to {FARTHEST:g}.")
    return float(std)


def check_sizes(**sizes: int) -> None:
    """Raises ConfigurationError unless every size is an integer from 1 to MAX_FEATURES."""
    for name, value in sizes.items():
        if not is_whole(value, 1, MAX_FEATURES):
            raise ConfigurationError(f"{name}={value!r}: expected a whole number, 1 or more, up to {MAX_FEATURES}.")


def check_flag(**flags: bool) -> None:
    """Raises ConfigurationError unless every setting is True or False: the string "False" is truthy."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ConfigurationError(f"{name}={value!r}: expected True or False.")


def check_parameter_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """Returns the dtype of the parameters; ConfigurationError unless it is float32 or float64.

    None stands for torch's default dtype, but float32 at least.
    """
    if dtype is None:
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
        raise ConfigurationError(f"dtype={dtype}: angles are kept in float32 or float64; cast the model, not them.")
    return dtype


def check_rotation_dtype(dtype: torch.dtype) -> None:
    """Raises InputError unless tokens can be rotated in this dtype: float32 or float64."""
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"dtype={dtype}: tokens are rotated in float32 or float64, whatever their own dtype: use one of these."
        )


def check_directions(directions: str) -> str:
    """Returns `directions`; ConfigurationError unless it is "axes" or "spread"."""
    if directions not in ("axes", "spread"):
        raise ConfigurationError(f"directions={directions!r}: expected 'axes' or 'spread'.")
    return directions


def check_positive(**settings: float) -> list[float]:
    """Returns the settings as floats; ConfigurationError unless every one is a finite number above 0."""
    for name, value in settings.items():
        if not is_number(value, 1 / FARTHEST):
            raise ConfigurationError(
                f"{name}={value!r}: expected a finite number above 0, from {1 / FARTHEST:g} to {FARTHEST:g}."
            )
    return [float(value) for value in settings.values()]


def check_even_planes(what: str, head_dim: int, num_axes: int) -> int:
    """Returns the number of planes of each axis; ConfigurationError unless all axes have the same number."""
    if head_dim % (2 * num_axes):
        raise ConfigurationError(
            f"head_dim={head_dim} with num_axes={num_axes}: {what} gives each axis the same number of planes, so "
            f"head_dim must be a multiple of {2 * num_axes}."
        )
    return head_dim // (2 * num_axes)


def check_rope(base: float, max_frequency: float, head_dim: int, num_axes: int) -> tuple[float, float]:
    """Returns `base` and `max_frequency` as floats; ConfigurationError unless vanilla RoPE exists for them and these sizes."""
    base, max_frequency = check_positive(base=base, max_frequency=max_frequency)
    check_even_planes("vanilla RoPE", head_dim, num_axes)
    return base, max_frequency
