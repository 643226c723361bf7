"""`rotations` of several layers together: the same values and gradients as one by one, with one decomposition."""

import pytest
import torch

import comrope
from comrope import _linalg
from comrope.encodings import rotations
from tests.helpers import SPECTRAL, assert_close, build, draw, gradients, nonlinear, scores, trainable


def _layers(name):
    """Returns four layers: three with the same block size, one of which has fewer heads, and one with another block size."""
    sizes = [{"num_heads": h, "block_size": b} for h, b in ((2, 8), (1, 8), (2, 4), (2, 8))]
    return [build(name, seed=i, jitter=0.0 if name == "rope" else 0.2, **s) for i, s in enumerate(sizes)]


@pytest.mark.parametrize("keys", ["keys at the same positions", "keys at other positions"])
@pytest.mark.parametrize("positions", [(5, 2), (3, 5, 2)], ids=["shared", "per sample"])
@pytest.mark.parametrize("name", SPECTRAL)
def test_rotations_together_equal_those_one_by_one(name, positions, keys):
    layers = _layers(name)
    x = draw(*positions).requires_grad_()
    y = draw(*positions, seed=8).requires_grad_() if keys == "keys at other positions" else None
    tokens = [
        (draw(3, 2 * pe.num_heads, 5, 16, seed=i), draw(3, pe.num_heads, 5, 16, seed=9 + i))
        for i, pe in enumerate(layers)
    ]
    leaves = {f"{i} {leaf}": t for i, pe in enumerate(layers) for leaf, t in trainable(pe).items()} | {"x": x}
    leaves |= {} if y is None else {"y": y}

    def together():
        rotated = rotations(layers, x, y, dtype=torch.float64)
        return [scores(*rotation.rotate(q, k)) for rotation, (q, k) in zip(rotated, tokens, strict=True)]

    expected = [scores(*pe(q, k, x, y)) for pe, (q, k) in zip(layers, tokens, strict=True)]
    found = together()
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, 1e-12)
    wanted = gradients(sum(nonlinear(s) for s in expected), leaves)
    for leaf, gradient in gradients(sum(nonlinear(s) for s in found), leaves).items():
        assert_close(gradient, wanted[leaf], 1e-10, leaf)


@pytest.mark.parametrize("change", [lambda pe: pe, comrope.freeze], ids=["learned", "frozen"])
def test_layers_of_different_families_keep_their_order(change):
    names = ("comrope-ld", "rope-mixed", "comrope-mt", "comrope-ld", "rope-mixed", "string")
    layers = [change(build(name, block_size=8, seed=i)) for i, name in enumerate(names)]
    q, k, x = draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(5, 2)
    for rotation, pe in zip(rotations(layers, x, dtype=torch.float64), layers, strict=True):
        assert_close(scores(*rotation.rotate(q, k)), scores(*pe(q, k, x)), 1e-12)


def test_layers_of_the_same_class_and_sizes_are_decomposed_once(monkeypatch):
    num_matrices, decompose = [], _linalg.decompose
    monkeypatch.setattr(_linalg, "decompose", lambda matrix: num_matrices.append(len(matrix)) or decompose(matrix))
    rotations([build("comrope-ld", num_heads=3, block_size=8) for _ in range(12)], draw(5, 2))
    assert num_matrices == [36]


def test_tokens_of_another_dtype_than_expected_are_rotated_in_their_own_precision():
    pe = build("comrope-ld", block_size=8)
    q, k, x = draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(5, 2)
    assert_close(scores(*pe.rotation(x, dtype=torch.float32).rotate(q, k)), scores(*pe(q, k, x)), 1e-12)
