"""Skew-symmetric matrices and their decomposition: S = Q · diag(μJ) · Qᵀ."""

import math

import pytest
import torch

from comrope import _linalg
from comrope._linalg import plane_frequencies
from tests.helpers import SPECTRA, assert_close, draw, orthogonal, planes, spectra_for

SIZES = (2, 4, 8, 16, 64)


def test_skew_is_the_matrix_less_its_transpose():
    base = torch.tensor([[7.0, 2.0], [5.0, 3.0]])
    assert _linalg.skew(base).tolist() == [[0.0, -3.0], [3.0, 0.0]]


def test_cayley_of_one_plane_rotates_by_twice_the_arctangent():
    angle = -2 * math.atan(0.4)
    expected = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    generator = planes(torch.tensor([0.4], dtype=torch.float64))
    assert_close(_linalg.cayley(generator), torch.tensor(expected, dtype=torch.float64), 1e-15)


@pytest.mark.parametrize("b", SIZES)
def test_cayley_is_orthogonal_with_determinant_one_and_the_identity_at_zero(b):
    generator = _linalg.skew(draw(3, b, b))
    rotated = _linalg.cayley(generator)
    eye = torch.eye(b, dtype=torch.float64)
    assert (rotated.mT @ rotated - eye).abs().max() < 1e-12
    assert (torch.linalg.det(rotated) - 1).abs().max() < 1e-11
    assert torch.equal(_linalg.cayley(torch.zeros_like(generator)), eye.expand(3, b, b))


@pytest.mark.parametrize("b", SIZES)
def test_orthonormalise_removes_the_rounding_of_float32(b):
    exact = orthogonal(3, b)
    rounded = exact.float()
    defect = (rounded.double().mT @ rounded.double() - torch.eye(b)).abs().max()
    repaired = _linalg.orthonormalise(rounded)
    assert repaired.dtype == torch.float64
    assert defect > 1e-9
    assert (repaired.mT @ repaired - torch.eye(b)).abs().max() < 1e-13
    assert (repaired - exact).abs().max() < 3e-7


def test_plane_generators_come_plane_after_plane():
    frequencies = draw(3, 2, 4)
    assert torch.equal(_linalg.plane_generators(frequencies), planes(frequencies))


def _decomposition_errors(s):
    basis, mu = _linalg.decompose(s)
    eye = torch.eye(s.shape[-1], dtype=torch.float64)
    orthogonality = (basis.mT @ basis - eye).abs().max().item()
    size = torch.linalg.matrix_norm(s, 2).max().item()
    return basis, mu, orthogonality, (basis @ planes(mu) @ basis.mT - s).abs().max().item(), size


@pytest.mark.parametrize(("b", "spectrum"), [(b, spectrum) for b in SIZES for spectrum in spectra_for(b)])
def test_decomposition_reconstructs_the_matrix(b, spectrum):
    s = SPECTRA[spectrum](6, b)
    basis, mu, orthogonality, residual, size = _decomposition_errors(s)
    assert basis.dtype == mu.dtype == torch.float64
    assert orthogonality < 1e-13
    assert residual <= 2e-13 * size
    assert (mu >= 0).all()
    assert (mu.diff(dim=-1) >= -1e-13 * size).all()
    assert (mu[..., -1] - torch.linalg.matrix_norm(s, 2)).abs().max() <= 1e-13 * size


@pytest.mark.parametrize(
    "frequencies",
    [
        [1e-9, 1e-4, 1.0, 30.0],
        [0.0, 0.0, 1e-8, 5.0],
        [1e-12, 1e-12, 1.0, 1.0],
        [5e-14, 2e-13, 3e-13, 1.0],
        [1e-300, 1e-200, 1e-100, 1e-100],
        [1e100, 2e100, 2e100, 3e100],
    ],
    ids=str,
)
def test_decomposition_of_mixed_scales(frequencies):
    mu = torch.tensor(frequencies, dtype=torch.float64)
    q = orthogonal(5, 8)
    s = q @ planes(mu) @ q.mT
    _, found, orthogonality, residual, size = _decomposition_errors((s - s.mT) / 2)
    assert orthogonality < 1e-13
    assert residual <= 2e-13 * size
    assert (found - mu).abs().max() <= 2e-13 * size


def test_a_batch_of_different_spectra_decomposes_like_single_matrices():
    stack = torch.cat([make(1, 8) for make in SPECTRA.values()])
    basis, mu = _linalg.decompose(stack)
    for i, s in enumerate(stack):
        alone_basis, alone_mu = _linalg.decompose(s)
        assert torch.allclose(alone_mu, mu[i], rtol=0, atol=1e-12)
        rebuilt = basis[i] @ planes(mu[i]) @ basis[i].mT
        assert (rebuilt - alone_basis @ planes(alone_mu) @ alone_basis.mT).abs().max() < 1e-12


def test_the_generator_is_the_block_diagonal_matrix():
    s = SPECTRA["random"](3, 8)
    basis, generator = _linalg.block_diagonalise(s.float())
    expected_basis, expected_mu = _linalg.decompose(s.float())
    assert torch.equal(basis, expected_basis)
    assert_close(generator, planes(expected_mu), 1e-13)
    assert_close(plane_frequencies(generator), expected_mu, 1e-13)


def test_a_single_plane_needs_no_basis():
    s = SPECTRA["random"](3, 2).requires_grad_()
    basis, generator = _linalg.block_diagonalise(s)
    assert basis is None
    assert torch.equal(plane_frequencies(generator), s[:, 1, 0].unsqueeze(-1))


def test_gradient_of_clear_frequencies_is_that_of_eigenvalues():
    base = draw(3, 8, 8).requires_grad_()
    mu = plane_frequencies(_linalg.block_diagonalise(base - base.mT)[1])
    eigenvalues = torch.linalg.eigvalsh(1j * (base - base.mT))[..., 4:]
    (ours,) = torch.autograd.grad((mu**3).sum(), base)
    (theirs,) = torch.autograd.grad((eigenvalues**3).sum(), base)
    assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("frequencies", ["free", "zero", "equal", "opposite", "equal on one axis of two"])
def test_no_gradient_in_directions_of_the_basis_that_change_no_rotation(frequencies):
    """The gradient of A_i = Q diag(ω_i J) Qᵀ is rounding error in these directions, and only that error is removed."""
    omega = draw(2, 3, 1, 4, seed=1)
    omega = {
        "free": omega,
        "zero": 0 * omega,
        "equal": omega[..., :1].expand(2, 3, 1, 4),
        "opposite": omega[..., :1] * torch.tensor([1.0, -1.0, 1.0, -1.0]),
        "equal on one axis of two": torch.stack((omega[0, ..., :1].expand(3, 1, 4), omega[1])),
    }[frequencies]
    basis, weight = orthogonal(3, 1, 8).requires_grad_(), draw(2, 3, 1, 8, 8, seed=2)

    def gradient(q):
        """Returns its skew-symmetric part, the directions in which Q stays orthogonal."""
        (gradient,) = torch.autograd.grad(((q @ planes(omega) @ q.mT) * weight).sum(), basis)
        return _linalg.skew(basis.mT @ gradient).detach()

    kept = _linalg.project_basis_gradient(basis, omega)
    assert_close(kept, basis, 1e-15)
    expected, found = gradient(basis), gradient(kept)
    if frequencies == "zero":
        assert not found.any()
    else:
        assert_close(found, expected, 1e-14)


def test_the_basis_of_a_single_plane_has_no_gradient():
    basis = orthogonal(3, 1, 2).requires_grad_()
    kept = _linalg.project_basis_gradient(basis, draw(2, 3, 1, 1))
    (gradient,) = torch.autograd.grad((kept * draw(3, 1, 2, 2, seed=1)).sum(), basis)
    assert not gradient.any()
