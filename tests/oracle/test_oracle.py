"""The 400-bit oracle itself: against finite differences, closed forms, mpmath's own exponential and `comrope.reference`."""

import mpmath
import numpy as np
import pytest
import torch

import comrope
from tests import oracle
from tests.helpers import ROTARY, assert_close, build, draw, gradients, trainable
from tests.helpers import oracle as by_matrix_exp
from tests.oracle import Oracle, context, exact

STEP = context.mpf(10) ** -50
"""Central differences are off by its square, and by 2⁻⁴⁰⁰ ≈ 10⁻¹²⁰ over it."""


def _skew(size, norm, seed=0):
    matrix = draw(size, size, seed=seed)
    matrix = matrix - matrix.mT
    return exact(matrix * (norm / torch.linalg.matrix_norm(matrix, ord=2)))


def _largest(values: np.ndarray):
    return max(abs(values).ravel())


@pytest.mark.parametrize("norm", [0.0, 1e-12, 1.0, 40.0, 1e4])
def test_the_exponential_agrees_with_that_of_mpmath(norm):
    exponent = _skew(4, norm) if norm else oracle.zeros(4, 4)
    with context.workprec(oracle.BITS + 64):
        theirs = np.array(context.expm(context.matrix(exponent.tolist())).tolist(), dtype=object)
    assert _largest(oracle.Exponential(exponent).value - theirs) < context.mpf(10) ** -110


@pytest.mark.parametrize("norm", [1.0, 1e6, 1e9])
def test_the_exponential_is_a_rotation_however_large_its_exponent(norm):
    exponent = _skew(6, norm)
    once, twice = oracle.Exponential(exponent).value, oracle.Exponential(2 * exponent).value
    assert _largest(once.T @ once - oracle.eye(6)) < context.mpf(10) ** -110
    assert _largest(once @ once - twice) < context.mpf(10) ** -110


@pytest.mark.parametrize("norm", [1e-6, 1.0, 1e6])
def test_the_adjoint_of_the_exponential_against_the_block_triangular_one(norm):
    """⟨W, L(X, E)⟩ = ⟨L*(W), E⟩, with L(X, E) read off exp([[X, E], [0, X]])."""
    exponent, change, weight = _skew(4, norm), exact(draw(4, 4, seed=1)), exact(draw(4, 4, seed=2))
    blocks = np.block([[exponent, change], [oracle.zeros(4, 4), exponent]])
    derivative = oracle.Exponential(blocks).value[:4, 4:]
    ours = (oracle.Exponential(exponent).adjoint(weight) * change).sum()
    assert abs(ours - (weight * derivative).sum()) < context.mpf(10) ** -105


def _small(name, **settings):
    pe = build(name, jitter=0.3, num_heads=1, head_dim=8, block_size=4, **settings)
    x, y = draw(3, 2, seed=3), draw(2, 2, 2, seed=4)
    return pe, draw(2, 2, 3, 8, seed=1), draw(2, 1, 2, 8, seed=2), x, y


@pytest.mark.slow
@pytest.mark.parametrize("detached_keys", [False, True], ids=["attached", "detached keys"])
@pytest.mark.parametrize("name", ROTARY)
def test_gradients_agree_with_finite_differences(name, detached_keys):
    """Along one random direction in all inputs and parameters at once, and along each of them alone."""
    pe, q, k, x, y = _small(name)
    weight = exact(draw(2, 2, 3, 2, seed=5))
    base = Oracle(pe, q, k, x, y)
    rotated_k = base.rotated()[1]
    found = base.gradients(weight, detached_keys=detached_keys)
    assert set(found) == {"q", "k", "positions", "key_positions", *dict(pe.named_parameters())}
    directions = {name: exact(draw(*np.shape(g), seed=6)) for name, g in found.items()}

    def loss(step, names):
        moved = Oracle(pe, q, k, x, y)
        for values in (moved.inputs, moved.parameters):
            for leaf in values.keys() & names:
                values[leaf] = values[leaf] + step * directions[leaf]
        moved_q, moved_k = moved.rotated()
        return (weight * oracle.inner_products(moved_q, rotated_k if detached_keys else moved_k)).sum()

    for names in ({*found}, *({leaf} for leaf in found)):
        difference = (loss(STEP, names) - loss(-STEP, names)) / (2 * STEP)
        slope = sum((found[leaf] * directions[leaf]).sum() for leaf in names)
        assert abs(difference - slope) < context.mpf(10) ** -60, names


@pytest.mark.parametrize("name", ROTARY)
def test_scores_and_gradients_agree_with_matrix_exp(name):
    pe, q, k, x, y = _small(name)
    weight = draw(2, 2, 3, 2, seed=5)
    leaves = {"q": q, "k": k, "positions": x, "key_positions": y}
    for leaf in leaves.values():
        leaf.requires_grad_()
    theirs = by_matrix_exp(pe, *leaves.values())
    assert_close(oracle.scores(pe, *leaves.values()), theirs, 1e-13, "scores")
    expected = gradients((weight * theirs).sum(), leaves | trainable(pe))
    found = oracle.gradients(pe, *leaves.values(), weight)
    assert set(found) == set(expected)
    for leaf, gradient in expected.items():
        assert_close(found[leaf], gradient, 1e-12, leaf)


@pytest.mark.parametrize("name", ROTARY)
def test_keys_at_the_positions_of_the_queries(name):
    """The gradient in shared positions is the sum of that in the queries' and that in the keys'."""
    pe, q, k, x, _ = _small(name)
    k, weight = k[:, :, [0, 1, 0]], draw(2, 2, 3, 3, seed=5)
    assert torch.equal(oracle.scores(pe, q, k, x), oracle.scores(pe, q, k, x, x))
    shared, apart = oracle.gradients(pe, q, k, x, None, weight), oracle.gradients(pe, q, k, x, x, weight)
    apart["positions"] = apart["positions"] + apart.pop("key_positions")
    assert set(shared) == set(apart)
    for leaf, gradient in apart.items():
        assert_close(shared[leaf], gradient, 1e-14, leaf)


@pytest.mark.parametrize("name", ROTARY)
def test_angle_matrices(name):
    pe = _small(name)[0]
    assert_close(oracle.angle_matrices(pe), pe.angle_matrices(), 1e-14)


@pytest.mark.parametrize("distance", [1.0, 1e6])
def test_one_plane_in_closed_form(distance):
    """q = k = (1, 0) in RoPE-Mixed: the score is cos(ω(y − x)), with the derivatives that it has."""
    pe = build("rope-mixed", num_heads=1, head_dim=2, num_axes=1, block_size=2)
    token = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    x, y = torch.full((1, 1), 0.3, dtype=torch.float64), torch.full((1, 1), 0.3 + distance, dtype=torch.float64)
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    gap = context.mpf(y.item()) - context.mpf(x.item())
    frequency = context.mpf(pe.frequencies.item())
    phase = frequency * gap
    assert oracle.scores(pe, token, token, x, y).item() == float(context.cos(phase))
    found = oracle.gradients(pe, token, token, x, y, weight)
    assert found["positions"].item() == float(frequency * context.sin(phase))
    assert found["key_positions"].item() == float(-frequency * context.sin(phase))
    assert found["frequencies"].item() == float(-gap * context.sin(phase))
    assert found["q"].flatten().tolist() == [float(context.cos(phase)), float(context.sin(phase))]


def test_one_parameter_in_closed_form():
    """P = [[0, p], [0, 0]] in AP turns by −p per unit."""
    pe = build("comrope-ap", num_heads=1, head_dim=2, num_axes=1, block_size=2)
    with torch.no_grad():
        pe.base_matrices.copy_(torch.tensor([[0.0, 0.7], [0.0, 0.0]]))
    token = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 1e4, dtype=torch.float64)
    phase = context.mpf(pe.base_matrices[0, 0, 0, 1].item()) * 10**4
    slope = float(-(10**4) * context.sin(phase))
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    found = oracle.gradients(pe, token, token, x, y, weight)["base_matrices"]
    assert found.flatten().tolist() == [0.0, slope, -slope, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_are_read_exactly(dtype):
    values = torch.tensor([1 / 3, -7e-5, 1e4, 0.0], dtype=torch.float64).to(dtype)
    assert [mpmath.mpf(v) for v in values.tolist()] == list(exact(values))
    assert torch.equal(oracle.rounded(exact(values)), values.double())


def test_vanilla_rope_is_that_of_the_paper():
    pe = comrope.encoding("rope", num_heads=1, head_dim=8, num_axes=2, block_size=2, base=100.0, dtype=torch.float64)
    frequencies = oracle.angle_matrices(pe)[:, 0, :, 1, 0]
    expected = torch.tensor([[1.0, 0.0, 0.1, 0.0], [0.0, 1.0, 0.0, 0.1]], dtype=torch.float64)
    assert_close(frequencies, expected, 1e-15)
