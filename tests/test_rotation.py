"""The spectral engine compared with the paper's Algorithm 1 by matrix_exp, in float64: values and gradients."""

import pytest
import torch

from comrope import reference
from tests.helpers import (
    DECOMPOSED,
    LEARNED,
    ROTARY,
    SPECTRA,
    SPECTRAL,
    assert_close,
    build,
    call,
    draw,
    gradients,
    nonlinear,
    oracle,
    scores,
    set_skew,
    spectra_for,
    trainable,
)

SCORE_TOLERANCE = 1e-10
GRADIENT_TOLERANCE = 1e-6


def _compare(pe, q, k, x, y=None):
    """Compares scores, and their gradients in all inputs and parameters, between the engine and matrix_exp."""
    leaves = {"q": q, "k": k, "positions": x} | ({} if y is None else {"key positions": y})
    leaves = {name: t.detach().requires_grad_(t.is_floating_point()) for name, t in leaves.items()}
    inputs = tuple(leaves.values())
    leaves = {name: t for name, t in leaves.items() if t.requires_grad} | trainable(pe)
    ours, theirs = call(pe, *inputs), oracle(pe, *inputs)
    assert_close(ours, theirs, SCORE_TOLERANCE, "scores")
    expected = gradients(nonlinear(theirs), leaves)
    # A gradient that is exactly zero in theory, such as that of the basis of a single plane, is rounding error in both.
    rounding = 1e-13 * max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in gradients(nonlinear(ours), leaves).items():
        if max(gradient.abs().max(), expected[name].abs().max()) > rounding:
            assert_close(gradient, expected[name], GRADIENT_TOLERANCE, f"gradient in {name}")


@pytest.mark.parametrize("num_axes", [1, 2, 3, 4])
@pytest.mark.parametrize(("block_size", "spectrum"), [(b, s) for b in (2, 4, 8, 16, 64) for s in spectra_for(b)])
@pytest.mark.parametrize("name", DECOMPOSED)
def test_engine_equals_reference_whatever_the_spectrum(name, block_size, spectrum, num_axes):
    num_heads = 1 if block_size == 64 else 2
    pe = build(name, num_heads=num_heads, head_dim=block_size * num_axes, num_axes=num_axes, block_size=block_size)
    set_skew(pe, spectrum)
    q, k = draw(2, num_heads, 4, pe.head_dim, seed=1), draw(2, num_heads, 4, pe.head_dim, seed=2)
    _compare(pe, q, k, 2 * draw(4, num_axes, seed=3))


@pytest.mark.parametrize("name", DECOMPOSED)
def test_engine_equals_reference_for_blocks_of_different_spectra(name):
    pe = build(name, head_dim=8 * 2 * len(SPECTRA), block_size=8)
    with torch.no_grad():
        for block, make in enumerate(2 * list(SPECTRA.values())):
            pe.base_matrices[:, block] = make(2, 8) / 2
    q, k = draw(2, 2, 5, pe.head_dim, seed=1), draw(2, 2, 5, pe.head_dim, seed=2)
    _compare(pe, q, k, draw(5, 2, seed=3))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", DECOMPOSED)
def test_engine_equals_reference_far_from_the_origin(name, spectrum):
    pe = build(name, block_size=8)
    set_skew(pe, spectrum)
    q, k = draw(1, 2, 5, 16, seed=1), draw(1, 2, 5, 16, seed=2)
    _compare(pe, q, k, 300 * draw(5, 2, seed=3))


@pytest.mark.parametrize("far", ["queries", "keys"])
@pytest.mark.parametrize("name", DECOMPOSED)
def test_engine_equals_reference_where_one_side_is_far(name, far):
    """A gap of 1e-4 is closed for tokens within 0.05 of the origin, and open for tokens 3000 away."""
    pe = build(name, block_size=8)
    set_skew(pe, "gaps of 1e-4")
    q, k = draw(2, 2, 5, 16, seed=1), draw(2, 2, 5, 16, seed=2)
    x, y = 0.01 * draw(5, 2, seed=3), 3000 * draw(2, 5, 2, seed=4)
    _compare(pe, q, k, *((y, x) if far == "queries" else (x, y)))


@pytest.mark.parametrize(("block_size", "num_axes"), [(2, 1), (2, 3), (4, 4), (8, 2), (16, 1), (64, 2)])
@pytest.mark.parametrize("name", ROTARY)
def test_engine_equals_reference_for_every_size(name, block_size, num_axes):
    pe = build(name, jitter=0.3, head_dim=block_size * num_axes, num_axes=num_axes, block_size=block_size)
    q, k = draw(2, 2, 4, pe.head_dim, seed=1), draw(2, 2, 4, pe.head_dim, seed=2)
    _compare(pe, q, k, draw(4, num_axes, seed=3))


def _strided(*shape: int, seed: int):
    """Returns (B, H, L, D) as a transposed view of (B, L, H, D), as attention layers make it."""
    batch, heads, length, head_dim = shape
    return draw(batch, length, heads, head_dim, seed=seed).transpose(1, 2)


LAYOUTS = {
    "shared positions": lambda: (draw(3, 2, 5, 16), draw(3, 2, 5, 16, seed=1), draw(5, 2)),
    "positions per sample": lambda: (draw(3, 2, 5, 16), draw(3, 2, 5, 16, seed=1), draw(3, 5, 2)),
    "grouped queries": lambda: (draw(3, 6, 5, 16), draw(3, 2, 5, 16, seed=1), draw(5, 2)),
    "grouped queries, per sample": lambda: (draw(3, 4, 5, 16), draw(3, 2, 5, 16, seed=1), draw(3, 5, 2)),
    "keys at other positions": lambda: (draw(3, 2, 5, 16), draw(3, 2, 4, 16, seed=1), draw(5, 2), draw(4, 2, seed=3)),
    "keys at other positions, per sample": lambda: (
        *(draw(3, 4, 2, 16), draw(3, 2, 6, 16, seed=1)),
        *(draw(3, 2, 2), draw(3, 6, 2, seed=3)),
    ),
    "queries shared, keys per sample": lambda: (
        *(draw(3, 2, 2, 16), draw(3, 2, 6, 16, seed=1)),
        *(draw(2, 2), draw(3, 6, 2, seed=3)),
    ),
    "one query at the end": lambda: (draw(3, 4, 1, 16), draw(3, 2, 6, 16, seed=1), draw(6, 2)[-1:], draw(6, 2)),
    "one sample": lambda: (draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(1, 5, 2)),
    "transposed views": lambda: (_strided(3, 4, 5, 16, seed=0), _strided(3, 2, 5, 16, seed=1), draw(3, 5, 2)),
    "whole-number positions": lambda: (
        *(draw(3, 2, 4, 16), draw(3, 2, 4, 16, seed=1)),
        torch.tensor([[0, 0], [0, 1], [7, 0], [-2, 3]]),
    ),
    "repeated positions": lambda: (draw(3, 2, 4, 16), draw(3, 2, 4, 16, seed=1), draw(2, 2).repeat(2, 1)),
    "repeated positions per sample": lambda: (
        *(draw(3, 2, 4, 16), draw(3, 2, 4, 16, seed=1)),
        draw(4, 2).expand(3, -1, -1).contiguous(),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ROTARY)
def test_engine_equals_reference_in_every_layout(name, layout):
    _compare(build(name, jitter=0.3, block_size=8), *LAYOUTS[layout]())


@pytest.mark.parametrize("layout", ["repeated positions per sample", "positions per sample"])
@pytest.mark.parametrize("name", ROTARY)
def test_positions_that_need_no_gradient_give_the_same(name, layout):
    pe = build(name, jitter=0.3, block_size=8)
    q, k, x = LAYOUTS[layout]()
    expected = gradients(nonlinear(oracle(pe, q.requires_grad_(), k, x)), {"q": q} | trainable(pe))
    for leaf, gradient in gradients(nonlinear(call(pe, q, k, x)), {"q": q} | trainable(pe)).items():
        assert_close(gradient, expected[leaf], GRADIENT_TOLERANCE, leaf)


@pytest.mark.parametrize("name", ROTARY)
def test_each_gradient_is_the_same_computed_alone_or_with_others(name):
    pe = build(name, jitter=0.3, block_size=8)
    inputs = {"q": draw(2, 4, 5, 16), "k": draw(2, 2, 5, 16, seed=1), "x": draw(5, 2)}
    everything = inputs | trainable(pe)
    for leaf in everything.values():
        leaf.requires_grad_(True)
    expected = gradients(nonlinear(call(pe, *inputs.values())), everything)
    for alone, leaf in everything.items():
        for other in everything.values():
            other.requires_grad_(other is leaf)
        value = nonlinear(call(pe, *inputs.values()))
        if value.requires_grad:
            assert_close(gradients(value, {alone: leaf})[alone], expected[alone], 1e-12, alone)
        else:  # the encoding does not use positions
            assert name == "none"
            assert alone == "x"


GRADCHECK_SPECTRA = ("random", "zero", "equal", "rank-deficient", "gaps of 1e-2", "gaps of 1e-4")


@pytest.mark.parametrize("spectrum", GRADCHECK_SPECTRA)
@pytest.mark.parametrize("name", DECOMPOSED)
def test_gradcheck_with_equal_and_nearly_equal_frequencies(name, spectrum):
    pe = build(name, num_heads=1, head_dim=8, block_size=4)
    set_skew(pe, spectrum)
    _gradcheck(pe)


@pytest.mark.parametrize("frequencies", [0.0, 1.3, None], ids=["zero", "equal", "random"])
@pytest.mark.parametrize("name", [name for name in SPECTRAL if name in LEARNED and name not in DECOMPOSED])
def test_gradcheck_of_encodings_with_free_frequencies(name, frequencies):
    pe = build(name, jitter=0.2, num_heads=1, head_dim=8, block_size=4)
    if frequencies is not None:
        torch.nn.init.constant_(pe.frequencies, frequencies)
    _gradcheck(pe)


@pytest.mark.parametrize("start", ["zero", "equal", "random"])
def test_gradcheck_of_liere(start):
    pe = build("liere", num_heads=1, head_dim=8, block_size=4)
    with torch.no_grad():
        if start == "zero":
            pe.base_matrices.zero_()
        elif start == "equal":
            pe.base_matrices.copy_(SPECTRA["equal"](4, 4).view(2, 1, 2, 4, 4) / 2)
    _gradcheck(pe)


def test_gradcheck_of_fixed_frequencies():
    _gradcheck(build("rope", num_heads=1, head_dim=8))


def _gradcheck(pe):
    q, k, x = draw(1, 2, 2, 8), draw(1, 1, 2, 8, seed=1), draw(2, 2)
    inputs = [t.requires_grad_() for t in (q, k, x)] + list(trainable(pe).values())
    assert torch.autograd.gradcheck(lambda q, k, x, *_: call(pe, q, k, x), inputs)


@pytest.mark.parametrize("name", SPECTRAL)
def test_gradients_of_equal_samples_add_up(name):
    pe = build(name, jitter=0.1, block_size=8)
    q, k, x = draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(5, 2).requires_grad_()
    leaves = {"x": x} | trainable(pe)
    one = gradients(call(pe, q, k, x).sin().sum(), leaves)
    three = gradients(call(pe, q.expand(3, -1, -1, -1), k.expand(3, -1, -1, -1), x).sin().sum(), leaves)
    for leaf in leaves:
        assert_close(three[leaf], 3 * one[leaf], 1e-12, leaf)


def test_without_a_basis_the_results_are_those_of_the_reference():
    pe = build("rope-mixed", block_size=2)
    q, k, x = draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(5, 2)
    rotated = pe(q, k, x)
    for ours, theirs in zip(rotated, reference.rotate(q, k, pe.angle_matrices(), x), strict=True):
        assert_close(ours, theirs, 1e-12)
    assert_close(scores(*rotated), scores(*reference.rotate(q, k, pe.angle_matrices(), x)), 1e-12)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per-sample"])
@pytest.mark.parametrize("name", SPECTRAL)
def test_a_basis_in_the_weights_equals_the_basis_on_the_tokens(name, shared):
    """Scores, and gradients in tokens, weights, biases and angles; two query heads share each key head."""
    pe = build(name, block_size=4, jitter=0.2)
    x = draw(*(() if shared else (2,)), 5, pe.num_axes, seed=4)
    rows = pe.num_heads * pe.head_dim
    leaves = {
        "tokens": draw(2, 5, 12, seed=1),
        "q weight": draw(pe.num_heads, 2, pe.head_dim, 12, seed=2),
        "q bias": draw(pe.num_heads, 2, pe.head_dim, seed=3),
        "k weight": draw(rows, 12, seed=4),
        "k bias": draw(rows, seed=5),
    }
    leaves = {key: t.requires_grad_() for key, t in leaves.items()}
    tokens, *projections = leaves.values()

    def project(change):
        """Returns q (2, 2H, 5, D) and k (2, H, 5, D), with `change` applied to the weights and biases."""
        q_weight, q_bias, k_weight, k_bias = projections
        q_weight, q_bias = (torch.stack([change(t[:, g].flatten(0, 1)) for g in range(2)]) for t in (q_weight, q_bias))
        q = torch.einsum("blw,grw->blgr", tokens, q_weight) + q_bias
        k = tokens @ change(k_weight).mT + change(k_bias)
        q = q.unflatten(-1, (pe.num_heads, pe.head_dim)).permute(0, 3, 2, 1, 4).flatten(1, 2)
        return q, k.unflatten(-1, (pe.num_heads, pe.head_dim)).transpose(1, 2)

    rotation = pe.rotation(x, dtype=torch.float64)
    ours = scores(*rotation.rotate(*project(rotation.into_basis), in_basis=True))
    theirs = call(pe, *project(lambda rows: rows), x)
    assert_close(ours, theirs, 1e-12, "scores")
    leaves |= trainable(pe)
    expected = gradients(nonlinear(theirs), leaves)
    for key, gradient in gradients(nonlinear(ours), leaves).items():
        assert_close(gradient, expected[key], 1e-9, f"gradient in {key}")
