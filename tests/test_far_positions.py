"""Positions far from the origin: scores stay exact, and float32 gradients lose digits (docs/idea.md)."""

import pytest
import torch

import comrope
from tests.helpers import (
    LEARNED,
    ROTARY,
    SPECTRAL,
    build,
    call,
    draw,
    gradients,
    in_float64,
    oracle,
    scores,
    trainable,
)


def _far_scores(pe, q, k, x):
    """Returns reference scores by the eigenvalues of iE, E = Σ x_i A_i, up to 10⁷. Their error is about 1e-9."""
    exponent = torch.einsum("ln,nhmcd->lhmcd", x.double(), in_float64(pe).angle_matrices())
    eigenvalues, vectors = torch.linalg.eigh(1j * exponent)
    rotation = ((vectors * torch.exp(-1j * eigenvalues).unsqueeze(-2)) @ vectors.mH).real
    return scores(*(comrope.reference.apply(rotation, t.double()) for t in (q, k)))


def _cosine_error(ours, theirs, q, k):
    """Returns the largest error of a score, in units of |q||k|."""
    size = q.double().norm(dim=-1).unsqueeze(-1) * k.double().norm(dim=-1).unsqueeze(-2)
    return ((ours.double() - theirs).abs() / size).max().item()


FAR = {
    "both ends of a sequence of a million tokens": lambda: torch.cat(
        (comrope.positions.sequence(24), comrope.positions.sequence(24, start=1_000_000 - 23))
    ),
    "anywhere up to a million, two axes": lambda: draw(48, 2).abs().fmod(1).float() * 1_000_000,
}


def _far(name, where):
    x = FAR[where]()
    pe = build(name, num_axes=x.shape[-1], block_size=8, dtype=torch.float32)
    return pe, *(draw(1, 2, 48, 16, seed=seed, dtype=torch.float32) for seed in (1, 2)), x


@pytest.mark.parametrize("where", FAR)
@pytest.mark.parametrize("name", ROTARY)
def test_float32_scores_are_right_at_position_one_million(name, where):
    pe, q, k, x = _far(name, where)
    with torch.no_grad():
        assert _cosine_error(call(pe, q, k, x), _far_scores(pe, q, k, x), q, k) < 1e-4


@pytest.mark.parametrize("where", FAR)
@pytest.mark.parametrize("name", SPECTRAL)
def test_with_phases_in_float32_they_would_be_wrong(name, where):
    """Computes φ = ωᵀx in float32 and everything else exactly, which the engine must not do."""
    pe, q, k, x = _far(name, where)
    basis, frequencies = in_float64(pe).spectrum()
    phases = torch.einsum("ln,nhmk->lhmk", x, frequencies.float()).double()  # (L, H, m, b/2)
    planes = torch.stack((phases.cos(), -phases.sin(), phases.sin(), phases.cos()), -1).unflatten(-1, (2, 2))
    rotation = torch.zeros(48, 2, 2, 8, 8, dtype=torch.float64)
    for plane in range(4):
        rotation[..., 2 * plane : 2 * plane + 2, 2 * plane : 2 * plane + 2] = planes[..., plane, :, :]
    rotation = basis @ rotation @ basis.mT
    with torch.no_grad():
        ours = scores(*(comrope.reference.apply(rotation, t.double()) for t in (q, k)))
        assert _cosine_error(ours, _far_scores(pe, q, k, x), q, k) > 1e-3


@pytest.mark.parametrize("where", FAR)
@pytest.mark.parametrize("name", ROTARY)
def test_the_far_oracle_agrees_with_matrix_exp(name, where):
    """Near the origin to rounding, and far from it to the accuracy of matrix_exp after many squarings."""
    pe, q, k, x = _far(name, where)
    q, k, exact = q.double(), k.double(), in_float64(pe)
    with torch.no_grad():
        assert _cosine_error(_far_scores(pe, q, k, 1e-6 * x), oracle(exact, q, k, 1e-6 * x.double()), q, k) < 1e-6
        assert _cosine_error(_far_scores(pe, q, k, x), oracle(exact, q, k, x.double()), q, k) < 1e-6


@pytest.mark.parametrize("distance", [8_000, 1_000_000])
@pytest.mark.parametrize("name", [name for name in LEARNED if name in SPECTRAL])
def test_frozen_scores_are_those_of_the_learned_encoding_however_far(name, distance):
    """Frequencies rounded to float32 would cause errors of 1e-3 at 8,000 tokens and 1e-1 at a million."""
    pe = build(name, num_axes=1, block_size=8, dtype=torch.float32)
    x = torch.cat((comrope.positions.sequence(24), comrope.positions.sequence(24, start=distance)))
    q, k = (draw(1, 2, 48, 16, seed=seed, dtype=torch.float32) for seed in (1, 2))
    with torch.no_grad():
        learned, frozen = call(pe, q, k, x), call(comrope.freeze(pe).half(), q, k, x)
        assert _cosine_error(frozen, learned.double(), q, k) < 1e-6
        assert _cosine_error(frozen, _far_scores(pe, q, k, x), q, k) < 1e-6


@pytest.mark.parametrize("extent", [1e1, 1e2, 1e3, 1e4, 3.2e4, 1e5, 1e6])
@pytest.mark.parametrize("name", ["rope-mixed", "comrope-ap", "comrope-ld", "comrope-mt"])
def test_what_float32_gradients_keep_far_out(name, extent):
    """32 groups of 16 neighbours at random positions up to `extent`, with attention within groups only (docs/idea.md)."""
    pe = build(name, num_axes=1, block_size=8, dtype=torch.float32)
    starts = (torch.rand(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * extent).round()
    x = (starts.unsqueeze(-1) + torch.arange(16)).flatten().unsqueeze(-1)
    q, k = draw(1, 2, 512, 16, seed=1, dtype=torch.float32), draw(1, 2, 512, 16, seed=2, dtype=torch.float32)
    weight, within = torch.block_diag(*draw(32, 16, 16, seed=3)), torch.block_diag(*torch.ones(32, 16, 16)).bool()

    def gradient(pe, dtype):
        attention = call(pe, q.to(dtype), k.to(dtype), x).masked_fill(~within, -1e9).softmax(-1)
        return gradients((attention * weight.to(dtype)).sum(), trainable(pe))

    exact = gradient(in_float64(pe), torch.float64)
    errors = {
        leaf: ((found.double() - exact[leaf]).norm() / exact[leaf].norm()).item()
        for leaf, found in gradient(pe, torch.float32).items()
    }
    assert max(errors.values()) <= 5e-6 + 5e-8 * extent, errors
    assert max(errors.values()) >= 1e-9 * extent, errors  # docs/idea.md says that digits are lost
