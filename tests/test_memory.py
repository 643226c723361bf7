"""Tokens and gradients with any memory layout: expanded, at odd storage offsets, empty, changed in place."""

import pytest
import torch

from comrope.errors import InputError
from tests.helpers import (
    LEARNED,
    ROTARY,
    SPECTRAL,
    assert_close,
    build,
    draw,
    gradients,
    trainable,
)


@pytest.mark.parametrize("name", ROTARY)
def test_incoming_gradients_may_be_expanded(name):
    pe = build(name, jitter=0.3, block_size=8)
    q, k, x = draw(2, 2, 5, 16).requires_grad_(), draw(2, 2, 5, 16, seed=1), draw(5, 2)
    weight = torch.ones(2, 2, 5, 16, dtype=torch.float64)
    leaves = {"q": q} | trainable(pe)
    plain = gradients((pe(q, k, x)[0] * weight).sum(), leaves)
    expanded = gradients(pe(q, k, x)[0].sum(), leaves)
    for leaf in leaves:
        assert_close(expanded[leaf], plain[leaf], 1e-12, leaf)


@pytest.mark.parametrize(
    ("tokens", "positions"),
    [((3, 2, 0, 16), (0, 2)), ((3, 2, 0, 16), (3, 0, 2)), ((0, 2, 5, 16), (5, 2)), ((0, 2, 5, 16), (0, 5, 2))],
    ids=str,
)
@pytest.mark.parametrize("name", ROTARY)
def test_empty_inputs_give_empty_results(name, tokens, positions):
    """No tokens or no samples, as in the last batch of a sharded data set: empty results, and gradients of zero."""
    pe = build(name, block_size=8)
    inputs = {"q": torch.zeros(tokens), "k": torch.zeros(tokens), "x": torch.zeros(positions)}
    leaves = {leaf: t.requires_grad_() for leaf, t in inputs.items()} | trainable(pe)
    rotated = pe(*inputs.values())
    assert [t.shape for t in rotated] == [tokens, tokens]
    assert not any(g.any() for g in gradients(sum(t.sum() for t in rotated), leaves).values())


def _at_an_odd_offset(t: torch.Tensor) -> torch.Tensor:
    """Returns a copy with storage offset 3, like a slice of parameters in a flat buffer."""
    buffer = torch.zeros(t.numel() + 3, dtype=t.dtype)
    return buffer[3:].view(t.shape).copy_(t)


@pytest.mark.parametrize("name", ROTARY)
def test_tokens_and_gradients_may_have_any_storage_offset(name):
    pe = build(name, jitter=0.3, block_size=8)
    q, k, x = draw(2, 4, 5, 16), draw(2, 2, 5, 16, seed=1), draw(5, 2)
    weight = draw(q.numel() + k.numel() + 7, seed=2)

    def everything(q, k):
        leaves = {"q": q.requires_grad_(), "k": k.requires_grad_()} | trainable(pe)
        rotated = pe(q, k, x)
        # The backward of torch.cat returns slices at any storage offset.
        value = (torch.cat([rotated[0].flatten()[:7], rotated[0].flatten(), rotated[1].flatten()]) * weight).sin().sum()
        return [*rotated, *gradients(value, leaves).values()]

    for odd, even in zip(everything(_at_an_odd_offset(q), _at_an_odd_offset(k)), everything(q, k), strict=True):
        assert_close(odd, even, 1e-14)


@pytest.mark.parametrize("name", [name for name in SPECTRAL if name in LEARNED])
def test_changing_a_result_of_learned_angles_in_place_raises(name):
    pe = build(name, block_size=8)
    rotated, _ = pe(draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(5, 2))
    rotated.mul_(2)
    with pytest.raises(InputError, match=r"changed in place.*q = q \* scale"):
        rotated.sum().backward()


@pytest.mark.parametrize("name", ["rope", "liere"])
def test_other_results_may_be_changed_in_place(name):
    pe = build(name, **({} if name == "rope" else {"block_size": 8}))
    q, k, x = draw(1, 2, 5, 16).requires_grad_(), draw(1, 2, 5, 16, seed=1), draw(5, 2)
    (expected,) = torch.autograd.grad((2 * pe(q, k, x)[0]).sin().sum(), q)
    (found,) = torch.autograd.grad(pe(q, k, x)[0].mul_(2).sin().sum(), q)
    assert_close(found, expected, 1e-14)
