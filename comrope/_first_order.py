"""Derivatives that are right to first order: each is an autograd function of its own, and differentiating that raises.

Without this a derivative would count as a constant under create_graph=True, and second derivatives be silently wrong.
"""

from typing import NoReturn

from torch.autograd import Function

from comrope.errors import SecondDerivativeError


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
