"""Base class of autograd functions that compute a derivative: differentiating them again raises an error.

Without it, a derivative would be a constant under create_graph=True, and second derivatives would be silently wrong.
"""

from typing import NoReturn

import torch
from torch.autograd import Function, forward_ad

from comrope.errors import InputError, SecondDerivativeError


def supports_forward_mode() -> bool:
    """True if a Function with a `jvp` may be applied, which is everywhere but in a graph that is being compiled.

    torch.compile does not support `jvp`: where no input requires a gradient it would ignore it and return a tangent of zero.

    Raises:
        InputError: forward mode is active within the compiled graph. Without fullgraph=True torch.compile then runs that
            function uncompiled.
    """
    if not torch.compiler.is_compiling():
        return True
    if forward_ad._current_level >= 0:
        raise InputError(
            "a derivative in forward mode was asked for inside of a compiled function, where torch.compile would make it zero: "
            "leave the call of jvp uncompiled, torch.func.jvp(torch.compile(f), …)."
        )
    return False


class FirstOrderOnly(Function):
    """Base class of functions that compute a derivative.

    Subclasses define `forward`, and `vmap` or `generate_vmap_rule`.
    """

    @staticmethod
    def setup_context(ctx, inputs, output):
        return

    @staticmethod
    def backward(ctx, *grads):
        _raise_second_derivative_error()

    @staticmethod
    def jvp(ctx, *tangents):
        _raise_second_derivative_error()


def _raise_second_derivative_error() -> NoReturn:
    raise SecondDerivativeError(
        "a second derivative was asked of comrope's rotation, whose derivative is exact to first order only. Use "
        "comrope.reference.rotate(q, k, pe.angle_matrices(), positions), which can be differentiated twice."
    )
