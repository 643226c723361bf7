"""Disables the RoPE of a host model: tables (cos, sin) that rotate by nothing, at no cost.

The attention layers of transformers and diffusers rotate by a table, q · cos + rotate_half(q) · sin, and cannot skip it. With
an encoding they get a table of ones and zeros. To save the arithmetic, these are tensor subclasses that know their value:
multiplying q by ones, or adding zeros to it, returns q.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MULTIPLY = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
ADD = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
VALUE_PRESERVING = {
    torch.unsqueeze,
    Tensor.unsqueeze,
    Tensor.__getitem__,
    Tensor.expand,
    Tensor.to,
    Tensor.float,
    Tensor.view,
    Tensor.transpose,
}
"""Functions after which ones are still ones and zeros still zeros. All others return plain tensors."""


def identity_table(table: Sequence[Tensor], how: str) -> tuple[Tensor, Tensor] | None:
    """Returns what an attention layer gets in place of a table (cos, sin); `how` is `Convention.disable_rope`."""
    if how == "none":
        return None
    cos, sin = table
    if how == "origin":
        return (cos.square() + sin.square()).sqrt(), torch.zeros_like(sin)
    one, zero = torch.ones_like(cos), torch.zeros_like(sin)
    if torch.compiler.is_compiling():  # the compiler removes that arithmetic itself
        return one, zero
    return one.as_subclass(Ones), zero.as_subclass(Zeros)


def table_scales(table: Sequence[Tensor]) -> bool:
    """Returns whether a table (cos, sin) also scales what it rotates, as that of YaRN does."""
    cos, sin = (each.float() for each in table)
    return bool((cos.square() + sin.square() - 1).abs().max() > 0.02)  # bfloat16 rounds to 0.008


class _Constant(Tensor):
    """A tensor with the same known number everywhere. Most functions treat it as any other tensor."""

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in VALUE_PRESERVING:
                return func(*args, **(kwargs or {})).as_subclass(cls)
            if not kwargs and len(args) == 2 and (func in MULTIPLY or func in ADD):
                constant, x = args if isinstance(args[0], _Constant) else (args[1], args[0])
                if _result_is_like(x, constant):
                    found = constant.multiply_by(x) if func in MULTIPLY else constant.add_to(x)
                    if found is not None:
                        return found
            return func(*args, **(kwargs or {}))

    def multiply_by(self, x: Tensor) -> Tensor | None:
        """Returns the product with x, if it needs no arithmetic."""
        return None

    def add_to(self, x: Tensor) -> Tensor | None:
        """Returns the sum with x, if it needs no arithmetic."""
        return None


class Ones(_Constant):
    """1 everywhere."""

    def multiply_by(self, x):
        return x


class Zeros(_Constant):
    """0 everywhere."""

    def multiply_by(self, x):
        return x.new_zeros(()).expand(x.shape).as_subclass(Zeros)

    def add_to(self, x):
        return x


def _result_is_like(x: Any, constant: Tensor) -> bool:
    """Returns whether the product or sum of both has the shape and dtype of x."""
    if (
        not isinstance(x, Tensor)
        or isinstance(x, _Constant)
        or x.dtype != constant.dtype
        or x.device != constant.device
    ):
        return False
    sizes = zip(reversed(constant.shape), reversed(x.shape), strict=False)
    return constant.ndim <= x.ndim and all(size in (1, of_x) for size, of_x in sizes)
