"""`comrope.reference` against Algorithm 1 written token by token, and its first and second derivatives."""

import pytest
import torch

from comrope import reference
from comrope.errors import InputError
from tests.helpers import assert_close, draw, scores

HEADS, AXES, BLOCKS, B = 2, 3, 2, 4


def _angles(seed=0, **kwargs):
    base = draw(AXES, HEADS, BLOCKS, B, B, seed=seed, **kwargs)
    return base - base.mT


def _one_by_one(x, angles, positions):
    """Returns R(x)x with one dense D × D matrix for each sample, head and token; queries are grouped by key head."""
    batch, heads, length, _ = x.shape
    out = torch.empty_like(x)
    for b in range(batch):
        for h in range(heads):
            for n in range(length):
                at = positions[b, n] if positions.ndim == 3 else positions[n]
                own = angles[:, h // (heads // angles.shape[1])]  # (N, m, b, b)
                generator = torch.block_diag(*sum(at[i] * own[i] for i in range(AXES)))
                out[b, h, n] = torch.linalg.matrix_exp(generator) @ x[b, h, n]
    return out


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", [(5, AXES), (2, 5, AXES)], ids=["shared", "per sample"])
def test_rotate_is_algorithm_1(shape, groups):
    q, k = draw(2, HEADS * groups, 5, BLOCKS * B, seed=1), draw(2, HEADS, 5, BLOCKS * B, seed=2)
    x = draw(*shape, seed=3)
    turned_q, turned_k = reference.rotate(q, k, _angles(), x)
    assert_close(turned_q, _one_by_one(q, _angles(), x), 1e-13)
    assert_close(turned_k, _one_by_one(k, _angles(), x), 1e-13)


def test_one_plane_by_hand():
    angles = torch.tensor([[0.0, -2.0], [2.0, 0.0]], dtype=torch.float64).view(1, 1, 1, 2, 2)
    q = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    rotated, _ = reference.rotate(q, q, angles, torch.tensor([[torch.pi / 4]], dtype=torch.float64))
    assert_close(rotated.flatten(), torch.tensor([0.0, 1.0], dtype=torch.float64), 1e-15)


@pytest.mark.parametrize("shape", [(5, AXES), (2, 5, AXES)], ids=["shared", "per sample"])
def test_rotation_matrices_are_rotations_for_every_token_head_and_block(shape):
    rotation = reference.rotation_matrices(_angles(), draw(*shape))
    assert rotation.shape == (*shape[:-1], HEADS, BLOCKS, B, B)
    assert (rotation.mT @ rotation - torch.eye(B)).abs().max() < 1e-13
    assert (torch.linalg.det(rotation) - 1).abs().max() < 1e-13


def test_the_result_has_the_dtype_of_the_angles():
    q = draw(1, HEADS, 5, BLOCKS * B, dtype=torch.float32)
    assert [t.dtype for t in reference.rotate(q, q, _angles(), draw(5, AXES))] == [torch.float64] * 2


@pytest.mark.parametrize("scale", [0.0, 1.0], ids=["zero", "random"])
def test_first_and_second_derivatives(scale):
    base = (scale * draw(2, 1, 1, 4, 4)).requires_grad_()
    q, k, x = (t.requires_grad_() for t in (draw(1, 2, 2, 4, seed=1), draw(1, 1, 2, 4, seed=2), draw(2, 2, seed=3)))

    def through(q, k, base, x):
        return scores(*reference.rotate(q, k, base - base.mT, x))

    assert torch.autograd.gradcheck(through, (q, k, base, x))
    assert torch.autograd.gradgradcheck(lambda *inputs: through(*inputs).sin(), (q, k, base, x))


@pytest.mark.parametrize(
    ("angles", "positions", "message"),
    [
        ((2, 1, 4, 4), (5, 2), r"angle_matrices: got \(2, 1, 4, 4\), expected \(N, H, m, b, b\)"),
        ((2, 1, 1, 4, 3), (5, 2), r"angle_matrices: got \(2, 1, 1, 4, 3\), expected \(N, H, m, b, b\)"),
        ((2, 1, 1, 4, 4), (5, 3), r"positions: got \(5, 3\), expected \(L, N\) or \(B, L, N\) with N=2 axes"),
        ((2, 1, 1, 4, 4), (5,), r"positions: got \(5,\), expected \(L, N\) or \(B, L, N\) with N=2 axes"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(angles, positions, message):
    with pytest.raises(InputError, match=message):
        reference.rotation_matrices(torch.zeros(angles), torch.zeros(positions))
