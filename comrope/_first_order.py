"""Derivatives that are right to first order: each is an autograd function of its own, and differentiating that raises.

Without this a derivative would count as a constant under create_graph=True, and second derivatives be silently wrong.
"""

from typing import NoReturn

import torch
from torch.autograd import Function, forward_ad

from comrope.errors import InputError, SecondDerivativeError


def takes_forward_mode() -> bool:
    """Whether a function with a rule for forward mode may be applied: everywhere but in a graph that is being compiled.

    torch.compile takes none, and where nothing needs a gradient it would look past the rule and return a derivative of zero.

    Raises:
        InputError: such a derivative is asked for within the graph. Without fullgraph=True torch.compile then goes on without
            compiling that function.
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
    """Base of functions that work out a derivative; subclasses give `forward`, and `vmap` or `generate_vmap_rule`."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        return

    @staticmethod
    def backward(ctx, *grads):
        _refuse()

    @staticmethod
    def jvp(ctx, *tangents):
        _refuse()


def _refuse() -> NoReturn:
    raise SecondDerivativeError(
        "a second derivative was asked of comrope's rotation, whose derivative is exact to first order only. Use "
        "comrope.reference.rotate(q, k, pe.angle_matrices(), positions), which can be differentiated twice."
    )
