"""Second derivatives: the engine raises an error however they are requested, and the reference computes them."""

import pytest
import torch

from comrope.errors import SecondDerivativeError
from tests.helpers import (
    ROTARY,
    SPECTRAL,
    assert_close,
    build,
    call,
    draw,
    gradients,
    nonlinear,
    oracle,
    trainable,
)

GRADIENT_TOLERANCE = 1e-6


def _leaves_for_second(pe):
    inputs = {"q": draw(1, 2, 3, 16), "k": draw(1, 2, 3, 16, seed=1), "x": draw(3, 2)}
    for t in inputs.values():
        t.requires_grad_()
    return inputs, inputs | trainable(pe)


def _gradients_with_graph(value, leaves):
    found = torch.autograd.grad(value, list(leaves.values()), create_graph=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _linear(s):
    return (s * draw(*s.shape, seed=9)).sum()


@pytest.mark.parametrize("loss", [nonlinear, _linear])
@pytest.mark.parametrize("name", SPECTRAL)
def test_gradient_penalty_is_refused(name, loss):
    pe = build(name, jitter=0.1, block_size=8)
    inputs, leaves = _leaves_for_second(pe)
    for tensor in leaves.values():
        (first,) = torch.autograd.grad(loss(call(pe, *inputs.values())), tensor, create_graph=True)
        with pytest.raises(SecondDerivativeError, match=r"second derivative.*comrope\.reference\.rotate"):
            first.square().sum().backward()


@pytest.mark.parametrize("name", ROTARY)
def test_every_mixed_second_derivative_is_right_or_refused(name):
    """None may silently be zero or None. Each is computed by itself, so that no other one raises for it."""
    pe = build(name, jitter=0.1, num_heads=1, head_dim=8, block_size=4)
    inputs = {"q": draw(1, 1, 3, 8), "k": draw(1, 1, 3, 8, seed=1), "x": draw(3, 2)}
    leaves = {leaf: t.requires_grad_() for leaf, t in inputs.items()} | trainable(pe)
    wrong = []
    for once in leaves:
        for twice in leaves:
            found = []
            for way in (call, oracle):
                first = _gradients_with_graph(nonlinear(way(pe, *inputs.values())), {once: leaves[once]})[once]
                penalty = first.square().sum() + 0 * leaves[twice].sum()  # differentiable even if it is zero
                try:
                    found.append(gradients(penalty, {twice: leaves[twice]})[twice])
                except SecondDerivativeError:
                    break
            if len(found) == 2 and (found[0] - found[1]).abs().max() > GRADIENT_TOLERANCE * found[1].abs().max():
                wrong.append((once, twice))
    assert wrong == []


@pytest.mark.parametrize("name", SPECTRAL)
def test_second_derivative_is_refused_where_the_incoming_gradient_is_a_constant(name):
    pe = build(name, jitter=0.1, block_size=8)
    inputs, leaves = _leaves_for_second(pe)
    del leaves["k"]  # rotated queries do not depend on it
    constant = draw(1, 2, 3, 16, seed=9)
    for once, first_leaf in leaves.items():
        (first,) = torch.autograd.grad((pe(*inputs.values())[0] * constant).sum(), first_leaf, create_graph=True)
        assert first.requires_grad, once
        with pytest.raises(SecondDerivativeError):
            first.square().sum().backward()


@pytest.mark.parametrize("name", SPECTRAL)
def test_first_derivatives_with_create_graph_are_the_plain_ones(name):
    pe = build(name, jitter=0.1, block_size=8)
    inputs, leaves = _leaves_for_second(pe)
    plain = gradients(nonlinear(call(pe, *inputs.values())), leaves)
    for leaf, gradient in _gradients_with_graph(nonlinear(call(pe, *inputs.values())), leaves).items():
        assert_close(gradient.detach(), plain[leaf], 1e-12, leaf)
