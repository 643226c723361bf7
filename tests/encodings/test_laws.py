"""The laws of encodings, in float64: skew, orthogonal, commuting, R(x)ᵀR(y) = R(y − x), identity at zero."""

import pytest
import torch

from comrope.errors import NoSpectrumError
from comrope.testing import laws
from tests.helpers import (
    COMMUTING,
    LEARNED,
    ROTARY,
    assert_close,
    build,
    call,
    draw,
    oracle,
    planes,
    trainable,
)

SIZES = [(2, 1), (2, 3), (4, 2), (8, 1), (8, 2), (4, 4), (16, 3)]
EYE = torch.eye(64, dtype=torch.float64)


def _encoding(name, size, **settings):
    block_size, num_axes = size
    sizes = {"head_dim": 2 * block_size * num_axes, "num_axes": num_axes, "block_size": block_size}
    return build(name, jitter=0.2, **sizes, **settings)


def _by_hand(name, pe):
    """Returns B_ij from the parameters, in loops, as the paper that introduced the encoding defines it."""
    axes, heads, blocks, b = pe.num_axes, pe.num_heads, pe.num_blocks, pe.block_size
    out = torch.zeros(axes, heads, blocks, b, b, dtype=torch.float64)
    eye = torch.eye(b, dtype=torch.float64)
    for i in range(axes):
        for h in range(heads):
            for j in range(blocks):
                if name == "rope":
                    for plane in range(b // 2):
                        p = j * (b // 2) + plane
                        if p % axes == i:
                            angle = 10000.0 ** (-2 * axes * (p // axes) / pe.head_dim)
                            out[i, h, j, 2 * plane + 1, 2 * plane] = angle
                            out[i, h, j, 2 * plane, 2 * plane + 1] = -angle
                elif name == "rope-mixed":
                    out[i, h, j] = planes(pe.frequencies[i, h, j])
                elif name == "liere":
                    out[i, h, j] = pe.base_matrices[i, h, j] - pe.base_matrices[i, h, j].T
                elif name == "comrope-ap" and j % axes == i:
                    out[i, h, j] = pe.base_matrices[h, j] - pe.base_matrices[h, j].T
                elif name == "comrope-ld":
                    out[i, h, j] = pe.axis_scale[i, h, j] * (pe.base_matrices[h, j] - pe.base_matrices[h, j].T)
                elif name in ("string", "comrope-mt"):
                    s = pe.basis_generator[h, j] - pe.basis_generator[h, j].T
                    basis = (eye - s) @ torch.linalg.inv(eye + s)
                    if name == "comrope-mt":
                        basis = pe.initial_basis[h, j] @ basis
                    out[i, h, j] = basis @ planes(pe.frequencies[i, h, j]) @ basis.T
    return out


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ROTARY)
def test_angle_matrices_follow_their_definition(name, size):
    pe = _encoding(name, size)
    with torch.no_grad():
        expected = _by_hand(name, pe)
        assert (expected != 0).any() == (name != "none")
        assert_close(pe.angle_matrices(), expected, 1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ROTARY)
def test_the_laws_of_its_kind_hold(name, size):
    block_size, num_axes = size
    for law in laws.of(name, head_dim=2 * block_size * num_axes, num_axes=num_axes, block_size=block_size):
        law()


@pytest.mark.parametrize("name", LEARNED)
def test_angle_matrices_are_differentiable_in_every_parameter(name):
    pe = build(name, jitter=0.2, block_size=8)
    leaves = trainable(pe)
    found = torch.autograd.grad((pe.angle_matrices() * draw(2, 2, 2, 8, 8, seed=4)).sum(), list(leaves.values()))
    assert all(gradient.abs().max() > 1e-3 for gradient in found)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ROTARY)
def test_scores_at_position_zero_equal_those_of_no_encoding(name, size):
    pe = _encoding(name, size)
    q, k = draw(2, 2, 5, pe.head_dim, seed=1), draw(2, 2, 5, pe.head_dim, seed=2)
    assert_close(call(pe, q, k, torch.zeros(5, pe.num_axes)), q @ k.mT, 1e-13)


def _bracket(angles):
    first, second = angles.unsqueeze(0), angles.unsqueeze(1)
    return (first @ second - second @ first).abs().max()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", COMMUTING)
def test_scores_depend_only_on_differences_of_positions(name, size):
    """⟨R(x)q, R(y)k⟩ = ⟨q, R(y − x)k⟩, pair by pair."""
    pe = _encoding(name, size)
    q, k = draw(1, 2, 4, pe.head_dim, seed=1), draw(1, 2, 4, pe.head_dim, seed=2)
    x, y = draw(4, pe.num_axes, seed=3), draw(4, pe.num_axes, seed=4)
    found = call(pe, q, k, x, y)
    for n in range(4):
        at_zero = call(pe, q[:, :, n : n + 1], k, torch.zeros(1, pe.num_axes), y - x[n])
        assert_close(found[:, :, n : n + 1], at_zero, 1e-12)


@pytest.mark.parametrize("size", [0.3, 100.0, 1e5])
@pytest.mark.parametrize("name", COMMUTING)
def test_no_offset_changes_the_scores(name, size):
    pe = build(name, jitter=0.2, block_size=8)
    q, k, x = draw(2, 4, 6, 16, seed=1), draw(2, 2, 6, 16, seed=2), draw(6, 2, seed=3)
    shift = size * draw(2, 1, 2, seed=4)  # a different one for each sample
    # Phases are about size × frequency, with a relative rounding error of 1e-16.
    assert_close(call(pe, q, k, x + shift), call(pe, q, k, x), 1e-13 * max(1.0, size))


def test_liere_breaks_every_one_of_these_laws():
    pe = build("liere", block_size=8)
    q, k, x, y = draw(2, 2, 6, 16, seed=1), draw(2, 2, 6, 16, seed=2), draw(6, 2, seed=3), draw(6, 2, seed=4)
    rx, ry, between = (pe.rotation_matrices(p) for p in (x, y, y - x))
    assert _bracket(pe.angle_matrices()) > 1e-2
    assert (rx.mT @ ry - between).abs().max() > 1e-2
    shifted, still = call(pe, q, k, x + torch.tensor([0.5, -0.3])), call(pe, q, k, x)
    assert (shifted - still).abs().max() > 1e-2 * still.abs().max()
    assert_close(still, oracle(pe, q, k, x), 1e-12)  # though its scores are computed correctly


def test_liere_has_no_spectrum():
    with pytest.raises(NoSpectrumError, match=r"do not commute.*comrope-ld.*angle_matrices\(\)"):
        build("liere").spectrum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", COMMUTING)
def test_the_spectrum_is_a_copy_without_gradient(name, dtype):
    pe = build(name, dtype=dtype)
    before = pe.angle_matrices().detach().clone()
    spectrum = pe.spectrum()
    assert [t.dtype for t in spectrum] == [torch.float64, torch.float64]
    assert [t.requires_grad for t in spectrum] == [False, False]
    for tensor in spectrum:
        tensor.zero_()
    assert torch.equal(pe.angle_matrices(), before)
