"""The RoPE of a model where an encoding has taken its place: still called, and turning nothing.

The attention layers of transformers and diffusers rotate by a table, q · cos + rotate_half(q) · sin, and have no switch for it.
They get a table of ones and zeros. Arithmetic with those would cost as much as the rotation itself, so such tables know that
they are ones and zeros, and give q back.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MULTIPLY = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
ADD = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
LAY_OUT = {
    torch.unsqueeze,
    Tensor.unsqueeze,
    Tensor.__getitem__,
    Tensor.expand,
    Tensor.to,
    Tensor.float,
    Tensor.view,
    Tensor.transpose,
}
"""What keeps ones ones and zeros zeros; after anything else they are tensors like others."""


def stilled(table: Sequence[Tensor], how: str) -> tuple[Tensor, Tensor] | None:
    """What an attention layer is to be given in place of a table (cos, sin), as its `Reading` says."""
    if how == "none":
        return None
    cos, sin = table
    if how == "origin":
        return (cos.square() + sin.square()).sqrt(), torch.zeros_like(sin)
    one, zero = torch.ones_like(cos), torch.zeros_like(sin)
    if torch.compiler.is_compiling():  # which leaves that arithmetic out itself
        return one, zero
    return one.as_subclass(Ones), zero.as_subclass(Zeros)


def scales(table: Sequence[Tensor]) -> bool:
    """Whether a table (cos, sin) stretches what it turns, as that of YaRN does."""
    cos, sin = (each.float() for each in table)
    return bool((cos.square() + sin.square() - 1).abs().max() > 0.02)  # bfloat16 rounds to 0.008


class _Known(Tensor):
    """A tensor all of whose numbers are known. Functions that do not care see a tensor like others."""

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in LAY_OUT:
                return func(*args, **(kwargs or {})).as_subclass(cls)
            if not kwargs and len(args) == 2 and (func in MULTIPLY or func in ADD):
                known, x = args if isinstance(args[0], _Known) else (args[1], args[0])
                if _keeps(x, known):
                    found = known.times(x) if func in MULTIPLY else known.plus(x)
                    if found is not None:
                        return found
            return func(*args, **(kwargs or {}))

    def times(self, x: Tensor) -> Tensor | None:
        """x multiplied by it, where that costs nothing."""
        return None

    def plus(self, x: Tensor) -> Tensor | None:
        """x with it added, where that costs nothing."""
        return None


class Ones(_Known):
    """1 everywhere."""

    def times(self, x):
        return x


class Zeros(_Known):
    """0 everywhere."""

    def times(self, x):
        return x.new_zeros(()).expand(x.shape).as_subclass(Zeros)

    def plus(self, x):
        return x


def _keeps(x: Any, known: Tensor) -> bool:
    """Whether arithmetic of both has the shape and dtype of x."""
    if not isinstance(x, Tensor) or isinstance(x, _Known) or x.dtype != known.dtype or x.device != known.device:
        return False
    sizes = zip(reversed(known.shape), reversed(x.shape), strict=False)
    return known.ndim <= x.ndim and all(size in (1, of_x) for size, of_x in sizes)
