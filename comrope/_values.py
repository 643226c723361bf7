"""Checks of values that users pass in: numbers, tensors and positions. Every part of the library uses them."""

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from comrope.errors import InputError

FARTHEST = 1e15
"""Largest accepted position, and largest accepted factor of one. Beyond it float64 does not resolve a radian."""
MOST = 2**48
"""Largest accepted count; no memory holds more elements."""


def is_whole(value: Any, least: int = 0, most: int = MOST) -> bool:
    """True if the value is an integer from `least` to `most`, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def is_number(value: Any, least: float = 0.0, most: float = FARTHEST) -> bool:
    """True if the value is a real number from `least` to `most`, and neither NaN nor a bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and least <= value <= most  # pyright: ignore


def is_dense(value: Any) -> bool:
    """True if the value is a strided tensor: neither sparse nor nested."""
    return isinstance(value, Tensor) and not value.is_nested and value.layout == torch.strided


def shape_of(value: Any) -> tuple[int, ...] | str:
    """Returns the shape of a tensor, or the type of anything else, for error messages."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return "a nested tensor" if value.is_nested else tuple(value.shape)


def described(value: Any) -> str:
    """Returns dtype, layout, device and shape of a tensor, or the type of anything else, for error messages."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype}, {value.layout} on {value.device}, {shape_of(value)}"


def is_floating(value: Any) -> bool:
    """True if the value is a strided floating-point tensor of 16 bits or more. torch has no arithmetic for fewer bits."""
    return is_dense(value) and value.is_floating_point() and value.dtype.itemsize >= 2


def check_finite(positions: Tensor, name: str) -> None:
    """Raises InputError unless all positions are finite and within ±1e15.

    Under vmap over positions the check is skipped, and positions that are not finite give NaN.
    """
    message = f"{name}: some are NaN, infinite or beyond 1e15, but every token needs a finite place."
    finite = (positions.abs() <= FARTHEST).all()
    if torch.compiler.is_compiling() or positions.device.type not in ("cpu", "meta"):
        torch._assert_async(finite, message)  # no synchronisation with the device
    elif positions.device.type == "cpu" and not _true_or_unknown(finite):
        raise InputError(message)


def _true_or_unknown(condition: Tensor) -> bool:
    """Returns the truth of a condition, or True under vmap, where it may differ between samples."""
    try:
        return bool(condition)
    except RuntimeError:
        return True
