"""What only one rival without a spectrum does: HARoPE, GRAPE-M, Spherical RoPE, GeoPE, Selective RoPE."""

import copy
import math

import pytest
import torch

import comrope
from comrope.errors import InputError, NoSpectrumError
from tests.helpers import assert_close, call, draw, scores
from tests.rivals.cases import DENSE, make


def _jittered(name, **settings):
    pe = make(name, **settings)
    with torch.no_grad():
        for parameter in pe.parameters():
            parameter.add_(draw(*parameter.shape), alpha=0.3)
    return pe


# HARoPE


def test_harope_starts_as_axial_rope():
    pe = make("harope")
    query_map, key_map, omega = pe.folded()
    for each in (query_map, key_map):
        assert_close(each, torch.eye(16).double().expand_as(each), 1e-12)
    speeds = torch.tensor([10000 ** (-j / 4) for j in range(4)], dtype=torch.float64)
    assert_close(omega[:, 0, 0], torch.block_diag(speeds.unsqueeze(0), speeds.unsqueeze(0)), 1e-12)


@pytest.mark.parametrize("same_map", [False, True])
def test_harope_leaves_scores_of_tokens_at_one_place_unless_keys_have_the_map_of_queries(same_map):
    pe = _jittered("harope", same_map=same_map)
    query_map, key_map, _ = pe.folded()
    assert (query_map - torch.eye(16)).abs().max() > 0.1
    q, k, x = draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(1, 2).expand(5, 2)
    assert torch.allclose(call(pe, q, k, x), scores(q, k), atol=1e-12) == (not same_map)
    assert torch.equal(query_map, key_map) == same_map


def test_harope_with_singular_values_of_one_is_the_same_either_way():
    q, k, x = draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(5, 2)
    found = []
    for same_map in (False, True):
        pe = make("harope", same_map=same_map)
        with torch.no_grad():
            pe.left_generator.copy_(draw(2, 16, 16, seed=2))
            pe.right_generator.copy_(draw(2, 16, 16, seed=3))
        found.append(call(pe, q, k, x))
    assert_close(*found, 1e-12)
    with pytest.raises(NoSpectrumError):
        make("harope").spectrum()


# GRAPE-M


def test_grape_m_starts_as_rope_and_holds_the_equation_there():
    pe, rope = make("grape-m"), comrope.encoding("rope", num_heads=2, head_dim=16, num_axes=2)
    q, k, x = draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(5, 2)
    assert_close(call(pe, q, k, x), call(rope, q, k, x), 1e-12)
    assert comrope.check(pe).holds


def test_grape_ms_closed_form_is_the_exponential_of_its_generators():
    pe = _jittered("grape-m", num_axes=3, head_dim=24)
    x = draw(5, 3)
    expected = torch.eye(24).double()
    for axis in range(3):
        a, b = pe.planes(axis)  # (H, D, planes)
        assert_close(a.mT @ a, torch.eye(4).double().expand(2, 4, 4), 1e-12)
        assert (a.mT @ b).abs().max() < 1e-12
        generator = torch.einsum("hf,hcf,hdf->hcd", pe.frequencies(axis), b, a)
        generator = generator - generator.mT
        expected = expected @ torch.linalg.matrix_exp(x[:, axis, None, None, None] * generator)
    assert_close(pe.rotation_matrices(x).squeeze(-3), expected, 1e-11)


def test_grape_m_holds_the_equation_on_one_axis_whatever_it_learned():
    """And not on two, once the planes of the axes overlap."""
    assert comrope.check(_jittered("grape-m", num_axes=1)).holds
    assert not comrope.check(_jittered("grape-m", num_axes=2)).holds


def test_grape_m_with_one_basis_for_all_axes_commutes():
    pe = _jittered("grape-m")
    with torch.no_grad():
        pe.basis_generator.copy_(pe.basis_generator[:1].expand_as(pe.basis_generator))
    assert comrope.check(pe).holds


def test_grape_m_keeps_frequencies_positive_under_any_step():
    pe = make("grape-m")
    with torch.no_grad():
        pe.log_frequencies.sub_(1000.0)
    assert (pe.frequencies(0) > 0).all()


# Spherical RoPE, GeoPE


@pytest.mark.parametrize("name", DENSE)
def test_the_rope_equation_fails(name):
    pe = _jittered(name)
    x, y = draw(2, 6, 2)
    rx, ry, between = (pe.rotation_matrices(each) for each in (x, y, y - x))
    assert (rx.mT @ ry - between).abs().max() > 0.05


def test_spherical_rope_is_yaw_by_the_column_after_roll_by_the_row():
    pe = make("spherical-rope", max_frequency=1.0)
    matrices = pe.rotation_matrices(torch.tensor([[0.7, 0.0], [0.0, 0.4], [0.7, 0.4]]))[:, 0, 0]  # (3, 16, 16)
    c, s = math.cos, math.sin
    roll = torch.tensor([[1, 0, 0], [0, c(0.7), -s(0.7)], [0, s(0.7), c(0.7)]])
    yaw = torch.tensor([[c(0.4), -s(0.4), 0], [s(0.4), c(0.4), 0], [0, 0, 1]])
    for found, expected in zip(matrices[:, :3, :3], (roll, yaw, yaw @ roll), strict=True):
        assert_close(found, expected.double(), 1e-6)
    speed = 100 ** (-2 / 16)  # of the second triple
    assert matrices[1, 4, 3].item() == pytest.approx(s(0.4 * speed))
    assert torch.equal(matrices[:, 15], torch.eye(16)[15].double().expand(3, 16))  # what is left over of 5 triples


def test_spherical_rope_is_relative_within_a_column_only():
    pe = make("spherical-rope")
    row, column = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])

    def between(a, b):
        return pe.rotation_matrices(a).mT @ pe.rotation_matrices(b)

    for start in (torch.tensor([[3.0, 5.0]]), torch.tensor([[-2.0, 4.0]])):
        assert_close(between(start, start + row), pe.rotation_matrices(row), 1e-6)
        assert (between(start, start + column) - pe.rotation_matrices(column)).abs().max() > 0.1


def test_spherical_rope_can_learn_its_frequencies():
    pe, fixed = make("spherical-rope", learn_frequencies=True), make("spherical-rope")
    x = draw(5, 2)
    assert pe.frequencies.shape == (2, 2, 5)
    assert torch.equal(pe.rotation_matrices(x), fixed.rotation_matrices(x))
    assert not list(fixed.parameters())


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_geope_rotates_about_the_mean_vector_by_its_length(axes):
    pe, x = make("geope", num_axes=axes, max_frequency=2.0), draw(5, axes)
    matrices = pe.rotation_matrices(x)[:, 0, 0, :3, :3]
    vector = torch.nn.functional.pad(2 * x / axes, (0, 3 - axes))
    assert_close((matrices @ vector.unsqueeze(-1)).squeeze(-1), vector, 1e-12)
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert_close(trace, 1 + 2 * vector.norm(dim=-1).cos(), 1e-12)


def test_geope_is_symmetric_in_the_axes_and_relative_along_lines_through_the_origin():
    pe = make("geope")
    x, swap = draw(1, 2), torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, -1.0]], dtype=torch.float64)
    found, other = (pe.rotation_matrices(each)[0, 0, 0, :3, :3] for each in (x, x.flip(-1)))
    assert_close(swap @ found @ swap.mT, other, 1e-12)
    assert_close(pe.rotation_matrices(x).mT @ pe.rotation_matrices(3 * x), pe.rotation_matrices(2 * x), 1e-12)


# Selective RoPE


def _tokens(length=7):
    return draw(2, length, 32, seed=5)


def test_selective_rope_starts_as_rope_if_asked_to():
    pe = make("selective-rope", num_axes=1, init="rope", base=10000.0)
    rope = comrope.encoding("rope", num_heads=2, head_dim=16, num_axes=1)
    q, k, x = draw(2, 4, 7, 16), draw(2, 2, 7, 16, seed=1), comrope.positions.sequence(7)
    assert_close(scores(*pe(q, k, x, tokens=_tokens())), call(rope, q, k, x), 1e-12)
    assert make("selective-rope", num_axes=1, init="rope").base == 500000.0


@pytest.mark.parametrize("init", ["normal", "rope"])
def test_selective_rope_is_causal_and_sees_four_tokens_at_a_step(init):
    pe = _jittered("selective-rope", num_axes=1, init=init)
    tokens = _tokens()
    other = tokens.clone()
    other[:, 2] += 1
    changed = (pe.steps(other) - pe.steps(tokens)).abs().amax((0, 2, 3)) > 1e-9
    assert changed.tolist() == [False, False, True, True, True, True, False]
    phases = (pe.rotation(torch.zeros(7, 1), tokens=each).phases[0] for each in (tokens, other))
    first, second = phases
    assert torch.equal(first[:, :2], second[:, :2])
    assert (first[:, 6] - second[:, 6]).abs().max() > 1e-6  # angles accumulate


def test_selective_ropes_steps_are_those_of_its_equation():
    """One token after the other, with matrices as they stand there."""
    pe = _jittered("selective-rope", num_axes=1)
    tokens = _tokens()
    parts = tokens.unflatten(-1, (2, 16))
    parts = (parts / parts.norm(dim=-1, keepdim=True)).flatten(-2)
    proposed = parts @ pe.down.weight.mT @ pe.up.weight.mT
    steps = torch.zeros_like(proposed)
    for t in range(7):
        for back in range(min(t, 3) + 1):
            steps[:, t] += pe.conv.weight[:, 0, 3 - back] * proposed[:, t - back]
    gate = torch.sigmoid(parts @ pe.gate.weight.mT + pe.gate.bias)
    expected = (steps * torch.sigmoid(steps)).unflatten(-1, (2, 8)) * gate.unsqueeze(-1)
    assert_close(pe.steps(tokens), expected, 1e-12)
    speeds = torch.tensor([500000 ** (-f / 8) for f in range(8)], dtype=torch.float64)
    phases = pe.rotation(torch.zeros(7, 1), tokens=tokens).phases[0]
    assert_close(phases[:, -1], expected.sum(1) * speeds, 1e-12)


def test_selective_rope_does_not_depend_on_the_length_of_tokens_and_stays_precise_in_bfloat16():
    pe = _jittered("selective-rope", num_axes=1)
    assert_close(pe.steps(3 * _tokens()), pe.steps(_tokens()), 1e-12)
    cast = copy.deepcopy(pe).bfloat16()
    assert {p.dtype for p in cast.parameters()} == {torch.float64}


def test_selective_rope_wants_tokens_of_queries_and_keys():
    pe = make("selective-rope", num_axes=1)
    q, k, x = draw(2, 2, 7, 16), draw(2, 2, 7, 16, seed=1), comrope.positions.sequence(7)
    with pytest.raises(InputError, match=r"tokens: got NoneType; expected floating-point numbers \(B, 7, 32\)"):
        pe(q, k, x)
    with pytest.raises(InputError, match="rotates queries and keys of the same tokens"):
        pe(q, k, x, x, tokens=_tokens())
