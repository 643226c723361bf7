"""Numbers, tokens and places that are given: what is one, for the checks of every part of the library."""

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from comrope.errors import InputError

FARTHEST = 1e15
"""Of positions and of all that they are multiplied by: farther out float64 does not tell a whole radian from the next."""
MOST = 2**48
"""Of anything that is counted: no memory holds more."""


def is_whole(value: Any, least: int = 0, most: int = MOST) -> bool:
    """Whether a value is a whole number from `least` to `most`. True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def is_number(value: Any, least: float = 0.0, most: float = FARTHEST) -> bool:
    """Whether a value is a real number from `least` to `most`, which NaN is not. True and False are no numbers."""
    return isinstance(value, Real) and not isinstance(value, bool) and least <= value <= most  # pyright: ignore


def is_dense(value: Any) -> bool:
    """Whether a value is a tensor with all its elements in a row: neither sparse nor nested."""
    return isinstance(value, Tensor) and not value.is_nested and value.layout == torch.strided


def shape_of(value: Any) -> tuple[int, ...] | str:
    """What a value is, in a message: the shape of a tensor, the type of anything else."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return "a nested tensor" if value.is_nested else tuple(value.shape)


def described(value: Any) -> str:
    """The same with a tensor's dtype and device."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype}, {value.layout} on {value.device}, {shape_of(value)}"


def is_floating(value: Any) -> bool:
    """Whether a value is a dense tensor of floating-point numbers of 16 bits or more, with which torch can reckon."""
    return is_dense(value) and value.is_floating_point() and value.dtype.itemsize >= 2


def check_finite(positions: Tensor, name: str) -> None:
    """InputError unless every token has a finite place.

    That cannot be asked where places differ within a vmap: what is not finite gives NaN there.
    """
    message = f"{name}: some are NaN, infinite or beyond 1e15, but every token needs a finite place."
    finite = (positions.abs() <= FARTHEST).all()
    if torch.compiler.is_compiling() or positions.device.type not in ("cpu", "meta"):
        torch._assert_async(finite, message)  # no synchronisation with the device
    elif positions.device.type == "cpu" and not _true_or_unknown(finite):
        raise InputError(message)


def _true_or_unknown(condition: Tensor) -> bool:
    """Whether a condition is true, or cannot be asked since it differs between the samples of a vmap."""
    try:
        return bool(condition)
    except RuntimeError:
        return True
