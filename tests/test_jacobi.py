"""The decomposition used on accelerators, compared with LAPACK's: Jacobi's method, and eigh for large blocks."""

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from comrope import _exponential, _jacobi, _linalg
from tests.helpers import (
    DECOMPOSED,
    SPECTRA,
    assert_close,
    build,
    call,
    draw,
    gradients,
    nonlinear,
    oracle,
    orthogonal,
    planes,
    set_skew,
    spectra_for,
    trainable,
)

SIZES = (2, 4, 6, 8, 10, 16, 28, 32, 64)
JACOBI_SIZES = (2, 4, 6, 8, 10, 16, 28)  # larger blocks are decomposed by eigh


def _with(frequencies, count: int) -> torch.Tensor:
    mu = torch.as_tensor(frequencies, dtype=torch.float64)
    basis = orthogonal(count, 2 * len(mu), seed=6)
    return _linalg.skew(basis @ planes(mu) @ basis.mT) / 2


def _far_from_diagonal(count: int, b: int) -> torch.Tensor:
    """Zeros within the initial planes, so that the first rotation of every pair is as large as possible."""
    within = planes(torch.ones(b // 2, dtype=torch.float64)) != 0
    return _linalg.skew(draw(count, b, b, seed=4)).masked_fill(within & torch.tensor(b > 2), 0.0)


def _shuffled_planes(count: int, b: int) -> torch.Tensor:
    order = torch.randperm(b, generator=torch.Generator().manual_seed(0))
    return planes(torch.ones(count, b // 2, dtype=torch.float64))[:, order][:, :, order]


FAMILIES = SPECTRA | {
    "clustered": lambda count, b: _with([1 + k % 2 + 1e-9 * k for k in range(b // 2)], count),
    "graded": lambda count, b: _with([10 ** (-24 * k / b) for k in range(b // 2)], count),
    "vanilla RoPE's": lambda count, b: _with([1e4 ** (-2 * k / b) for k in range(b // 2)], count),
    "huge": lambda count, b: 1e200 * SPECTRA["random"](count, b),
    "next to nothing": lambda count, b: 1e-200 * SPECTRA["random"](count, b),
    "far from diagonal": _far_from_diagonal,
    "shuffled planes": _shuffled_planes,
    "neighbours alone": lambda count, b: _linalg.skew(torch.ones(count, b, b, dtype=torch.float64).tril(1).triu(1)),
}


@pytest.fixture
def accelerator(monkeypatch):
    """Makes the code take the path for devices with which it cannot synchronise."""
    monkeypatch.setattr(_linalg, "can_synchronise", lambda device: False)


def _families(b: int) -> tuple[list[str], torch.Tensor]:
    """Returns matrices of each family, (n, b, b), and the family of each."""
    count = 1 if b == 64 else 3
    names = [*spectra_for(b), *(name for name in FAMILIES if name not in SPECTRA)]
    return [name for name in names for _ in range(count)], torch.cat([FAMILIES[name](count, b) for name in names])


def _off_diagonal(s: torch.Tensor) -> torch.Tensor:
    """Returns the largest element of each matrix outside the 2 × 2 diagonal blocks."""
    within = torch.eye(s.shape[-1] // 2, dtype=torch.bool).repeat_interleave(2, 0).repeat_interleave(2, 1)
    return s.masked_fill(within, 0.0).abs().amax((-2, -1))


@pytest.mark.parametrize("b", SIZES)
def test_the_decomposition_is_that_of_lapack_whatever_the_spectrum(b, accelerator):
    names, s = _families(b)
    eye = torch.eye(b, dtype=torch.float64)
    basis, mu = _linalg.decompose(s)
    expected = torch.linalg.eigvalsh(1j * s)[..., b // 2 :]
    size = expected[..., -1]
    assert basis.dtype == mu.dtype == torch.float64
    assert (mu >= 0).all() and (mu.diff(dim=-1) >= 0).all()
    errors = {
        "orthogonality": ((basis.mT @ basis - eye).abs().amax((-2, -1)), 1e-14 * b * torch.ones_like(size)),
        "frequencies": ((mu - expected).abs().amax(-1), 1e-13 * size),
        "residual": ((basis @ planes(mu) @ basis.mT - s).abs().amax((-2, -1)), 1e-13 * size),
    }
    for what, (error, allowed) in errors.items():
        assert not [name for name, ok in zip(names, error <= allowed, strict=True) if not ok], what


@pytest.mark.parametrize("b", (*JACOBI_SIZES, 64))
def test_one_sweep_fewer_is_enough(b, monkeypatch):
    sweeps = _jacobi.num_sweeps(b // 2)
    monkeypatch.setattr(_jacobi, "num_sweeps", lambda num_planes: sweeps - (num_planes > 2))
    names, s = _families(b)
    s = s / s.abs().amax((-2, -1), keepdim=True).clamp_min(1e-300)
    basis = _jacobi.plane_basis(s)
    error = _off_diagonal(basis.mT @ s @ basis)
    assert not [name for name, good in zip(names, error <= 1e-14 * b, strict=True) if not good]


def test_one_step_is_enough_for_two_planes():
    _, s = _families(4)
    s = s / s.abs().amax((-2, -1), keepdim=True).clamp_min(1e-300)
    basis = _jacobi.plane_basis(s)
    assert (basis.mT @ basis - torch.eye(4)).abs().max() < 2e-15
    assert _off_diagonal(basis.mT @ s @ basis).max() <= 3e-15
    assert _jacobi.num_sweeps(2) == 1


def test_step_matrices_agree_with_quaternion_products():
    """u and w of a block, and x ↦ p x q̄, against Hamilton's product written out."""

    def product(x, y):
        a, b, c, d = x
        e, f, g, h = y
        parts = (
            a * e - b * f - c * g - d * h,
            a * f + b * e + c * h - d * g,
            a * g - b * h + c * e + d * f,
            a * h + b * g - c * f + d * e,
        )
        return torch.stack(parts)

    to_quaternions, to_rotation = _jacobi._step_matrices(1, torch.empty(0, dtype=torch.float64))
    u, w = torch.cat((torch.zeros(2, 1, dtype=torch.float64), draw(2, 3)), dim=1)
    eye, i = torch.eye(4, dtype=torch.float64), torch.tensor([0.0, 1, 0, 0], dtype=torch.float64)
    m = torch.stack([-(product(u, x) + product(x, w)) / 2 for x in eye], dim=1) + 0.25 * eye
    for found, expected in zip(
        (m.flatten() @ to_quaternions).view(2, 4), (2 * product(i, u), 2 * product(i, w)), strict=True
    ):
        expected = expected[[2, 3, 0]]
        assert_close(found[:3] * torch.sign(found[0] * expected[0]), expected, 1e-14)
        assert_close(found[3].abs(), torch.tensor(1.0), 1e-14)
    p, q = draw(2, 4, seed=1) * torch.tensor([1.0, 0, 1, 1])
    products = (p[[2, 3, 0]].unsqueeze(-1) * q[[2, 3, 0]]).flatten()
    conjugate = q * torch.tensor([1.0, -1, -1, -1])
    expected = torch.stack([product(product(p, x), conjugate) for x in eye], dim=1)
    assert_close((products @ to_rotation).view(4, 4), expected, 1e-14)


class _Operators(TorchDispatchMode):
    """Counts the operators that run: all of them, and those that launch work because they are not views."""

    def __init__(self):
        super().__init__()
        self.all, self.launched = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.all[name] += 1
        if not func.is_view and name != "_unsafe_view":
            self.launched[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("b", "launched", "total"),
    [
        (2, 20, 50),
        (4, 90, 185),
        (6, 345, 720),
        (8, 345, 720),
        (16, 870, 1870),
        (28, 1900, 4200),
        (32, 26, 54),
        (64, 26, 54),
    ],
)
def test_how_many_operators_a_decomposition_launches(b, launched, total, accelerator):
    """The number is the same for one matrix as for many, and stays below 2,000: larger blocks are decomposed by eigh."""
    s = SPECTRA["random"](5, b)
    for count in (1, 5):
        operators = _Operators()
        with operators:
            _linalg.decompose(s[:count])
        assert 0.9 * launched <= operators.launched.total() <= launched < 2000
        assert operators.all.total() <= total


def test_a_decomposition_copies_no_constant_to_the_device(accelerator):
    s = [SPECTRA["random"](2, b) for b in SIZES]
    operators = _Operators()
    with operators:
        for matrix in s:
            _linalg.decompose(matrix)
    assert not {"lift_fresh", "_local_scalar_dense", "is_nonzero", "nonzero"} & set(operators.all)


@pytest.mark.parametrize("b", SIZES)
def test_blocks_too_large_for_jacobis_method_are_decomposed_by_eigh(b, accelerator):
    operators = _Operators()
    with operators:
        _linalg.decompose(SPECTRA["random"](2, b))
        _exponential.exp_skew(SPECTRA["random"](2, b))
    assert _linalg.uses_jacobi(torch.empty(2, b, b)) == (b in JACOBI_SIZES)
    assert ("_linalg_eigh" in operators.all) == (b not in JACOBI_SIZES)


def test_a_cpu_decomposes_blocks_of_all_sizes_by_eigh():
    assert not any(_linalg.uses_jacobi(torch.empty(2, b, b)) for b in SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("b", SIZES)
def test_a_device_without_values_decomposes_blocks_of_all_sizes(b):
    """Neither method reads a value on the host."""
    for mode, device in ((FakeTensorMode(), "cuda"), (torch.device("meta"), "meta")):
        with mode:
            s = torch.empty(3, b, b, device=device)
            basis, mu = _linalg.decompose(s)
            assert (basis.shape, mu.shape, basis.device.type) == ((3, b, b), (3, b // 2), device)
            assert _exponential.exp_skew(s).shape == s.shape


@pytest.mark.parametrize("num_pairs", [1, 2, 3, 5, 16])
def test_a_sweep_pairs_every_two_planes_once_and_restores_their_order(num_pairs):
    coordinates = _jacobi._round_robin(num_pairs, torch.device("cpu"))
    assert torch.equal(coordinates[1::2], coordinates[0::2] + 1)  # both coordinates of a plane stay together
    order, pairs = torch.arange(2 * num_pairs), []
    for _ in range(2 * num_pairs - 1):
        pairs += [frozenset(pair) for pair in order.view(-1, 2).tolist()]
        order = order[coordinates[0::2] // 2]
    assert len(pairs) == len(set(pairs)) == num_pairs * (2 * num_pairs - 1)
    assert torch.equal(order, torch.arange(2 * num_pairs))


def test_a_block_diagonal_matrix_is_not_rotated():
    s = planes(draw(5, 6))
    basis = _jacobi.plane_basis(s)
    assert torch.equal(basis.abs(), torch.eye(12, dtype=torch.float64).expand(5, 12, 12))


def test_batches_of_any_shape_give_the_results_of_single_matrices(accelerator):
    s = SPECTRA["random"](6, 8)
    basis, mu = _linalg.decompose(s.view(2, 1, 3, 8, 8))
    for i, alone in enumerate(s):
        assert_close(mu.flatten(0, 2)[i], _linalg.decompose(alone)[1], 1e-14)
    assert_close(basis @ planes(mu) @ basis.mT, s.view(2, 1, 3, 8, 8), 1e-13)
    assert _linalg.decompose(s[:0])[0].shape == (0, 8, 8)


@pytest.mark.parametrize("b", [8, 28, 64])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_give_nan_in_their_own_matrix_only(value, b, accelerator):
    """This includes large blocks, where LAPACK reports no error."""
    s = SPECTRA["random"](3, b)
    good = _linalg.decompose(s)
    s[1, 2, 3], s[1, 3, 2] = value, -value
    basis, mu = _linalg.decompose(s)
    assert mu[1].isnan().all() and basis[1].isnan().any(0).sum() >= b - 1
    assert torch.equal(basis[0::2], good[0][0::2]) and torch.equal(mu[0::2], good[1][0::2])


def _scores_and_gradients(pe, q, k, x, through):
    leaves = {"q": q, "k": k, "positions": x} | trainable(pe)
    found = through(pe, q, k, x)
    return found, gradients(nonlinear(found), leaves)


@pytest.mark.parametrize(("b", "spectrum"), [(b, name) for b in (2, 4, 6, 8, 16, 32) for name in spectra_for(b)])
@pytest.mark.parametrize("name", DECOMPOSED)
def test_scores_and_gradients_are_those_of_lapack_and_of_matrix_exp(name, b, spectrum, monkeypatch):
    pe = build(name, head_dim=2 * b, block_size=b)
    set_skew(pe, spectrum)
    q, k, x = (draw(*shape).requires_grad_() for shape in ((2, 2, 4, 2 * b), (2, 2, 4, 2 * b), (4, 2)))
    expected = [_scores_and_gradients(pe, q, k, x, through) for through in (call, oracle)]
    monkeypatch.setattr(_linalg, "can_synchronise", lambda device: False)
    found, by_leaf = _scores_and_gradients(pe, q, k, x, call)
    for scores, wanted in expected:
        assert_close(found, scores, 1e-10, "scores")
        rounding = 1e-13 * max(gradient.abs().max().item() for gradient in wanted.values())
        for leaf, gradient in by_leaf.items():
            if max(gradient.abs().max(), wanted[leaf].abs().max()) > rounding:
                assert_close(gradient, wanted[leaf], 1e-6, f"gradient in {leaf}")


@pytest.mark.parametrize(("b", "spectrum"), [(b, name) for b in (2, 4, 6, 8, 32) for name in spectra_for(b)])
def test_exponentials_and_their_gradients_are_those_of_matrix_exp(b, spectrum, accelerator):
    s, weight = SPECTRA[spectrum](3, b).requires_grad_(), draw(3, b, b, seed=7)
    found, expected = _exponential.exp_skew(s), torch.linalg.matrix_exp(s)
    assert_close(found, expected, 1e-12)
    by_leaf = [torch.autograd.grad((rotated.sin() * weight).sum(), s)[0] for rotated in (found, expected)]
    assert_close(by_leaf[0], _linalg.skew(by_leaf[1]) / 2, 1e-11)
