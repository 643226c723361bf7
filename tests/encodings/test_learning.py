"""init="identity": scores are unchanged at first, and every angle can be learned."""

import pytest
import torch

from tests.helpers import LEARNED, assert_close, build, call, draw, gradients, nonlinear, oracle, scores, trainable


@pytest.mark.parametrize("block_size", [2, 8])
@pytest.mark.parametrize("name", LEARNED)
def test_at_the_identity_scores_equal_those_without_an_encoding(name, block_size):
    pe = build(name, block_size=block_size, init="identity")
    q, k, x = draw(2, 4, 6, 16, seed=1), draw(2, 2, 6, 16, seed=2), 100 * draw(6, 2, seed=3)
    assert torch.equal(pe.angle_matrices(), torch.zeros(2, 2, pe.num_blocks, block_size, block_size))
    assert_close(call(pe, q, k, x), q @ k.repeat_interleave(2, dim=1).mT, 1e-14)


@pytest.mark.parametrize("block_size", [2, 8])
@pytest.mark.parametrize("name", LEARNED)
def test_at_the_identity_gradients_are_exact_and_not_zero(name, block_size):
    pe = build(name, block_size=block_size, init="identity")
    q, k, x = draw(2, 4, 6, 16, seed=1), draw(2, 2, 6, 16, seed=2), draw(6, 2, seed=3)
    ours = gradients(nonlinear(call(pe, q, k, x)), trainable(pe))
    theirs = gradients(nonlinear(oracle(pe, q, k, x)), trainable(pe))
    angles = "frequencies" if "frequencies" in ours else "base_matrices"
    assert ours[angles].abs().max() > 1e-2
    assert_close(ours[angles], theirs[angles], 1e-6)
    for leaf in set(ours) - {angles}:  # with zero angles, the gradient in a basis or scale is zero
        assert max(ours[leaf].abs().max(), theirs[leaf].abs().max()) < 1e-12


@pytest.mark.parametrize("in_weights", [False, True], ids=["on tokens", "in the weights"])
@pytest.mark.parametrize("name", ["comrope-mt", "string"])
def test_at_the_identity_a_basis_does_not_move(name, in_weights):
    """With zero angles its gradient is zero; if it were rounding error, AdamW would step by 0.8 times the learning rate."""
    pe = build(name, block_size=8, init="identity", dtype=torch.float32)
    tokens, x = draw(2, 9, 12, seed=1, dtype=torch.float32), draw(9, 2, seed=2)
    weights = [draw(32, 12, seed=i, dtype=torch.float32) for i in (3, 4)]
    rotation = pe.rotation(x)
    q, k = (
        (tokens @ (rotation.into_basis(w) if in_weights else w).mT).unflatten(-1, (2, 16)).transpose(1, 2)
        for w in weights
    )
    optimiser = torch.optim.AdamW(pe.parameters(), lr=0.01)
    nonlinear(scores(*rotation.rotate(q, k, in_basis=in_weights))).backward()
    optimiser.step()
    assert not pe.basis_generator.any()
    assert pe.frequencies.any()


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_from_the_identity_another_encodings_scores_are_learned(name):
    """The loss falls at least a hundredfold, to scores made by other parameters of the same family."""
    sizes = {"num_heads": 1, "head_dim": 8, "num_axes": 2, "block_size": 4}
    teacher, student = build(name, seed=1, std=0.2, **sizes), build(name, seed=2, init="identity", **sizes)
    q, k, x = draw(8, 1, 6, 8, seed=1), draw(8, 1, 6, 8, seed=2), 0.5 * draw(6, 2, seed=3)
    with torch.no_grad():
        target = call(teacher, q, k, x)
    optimiser = torch.optim.Adam(student.parameters(), lr=0.03)
    losses = []
    for _ in range(300):
        loss = (call(student, q, k, x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.1
    assert losses[-1] < losses[0] / 100
