"""Shared by the tests: lists of encodings, seeded inputs, and reference implementations.

To test a new encoding, add its name to ROTARY, and to each other tuple below that describes it.
"""

import copy

import torch
from torch import Tensor

import comrope
from comrope import reference

ROTARY = ("none", "rope", "rope-mixed", "string", "liere", "comrope-ap", "comrope-ld", "comrope-mt")
COMMUTING = tuple(name for name in ROTARY if name != "liere")
LEARNED = tuple(name for name in ROTARY if name not in ("none", "rope"))
SPECTRAL = tuple(name for name in COMMUTING if name != "none")  # rotated by the spectral engine
FULL_ROTATION = ("none", "rope", "rope-mixed", "liere")  # return R(x)q itself, since there is no basis to leave out
DECOMPOSED = ("comrope-ap", "comrope-ld")  # their basis comes from decomposing S = P − Pᵀ
EVERY = (*ROTARY, "ape")


def build(name: str, *, seed: int = 0, jitter: float = 0.0, **settings):
    """Returns an encoding with reproducible parameters: their initial values plus `jitter` × standard normal noise.

    It has two heads of 16 features and two axes, in float64, unless `settings` say otherwise.
    """
    sizes = {"num_heads": 2, "head_dim": 16, "num_axes": 2, "dtype": torch.float64}
    if name == "ape" and "grid" not in settings:
        settings["grid"] = (3, 5, 4)[: settings.get("num_axes", 2)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pe = comrope.encoding(name, **(sizes | settings))
        with torch.no_grad():
            for parameter in pe.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=jitter)
    return pe


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Returns standard normal numbers that depend only on the seed and the shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scores(q: Tensor, k: Tensor) -> Tensor:
    """Returns ⟨q_i, k_j⟩ for queries (B, H·g, L, D) and keys (B, H, M, D): query heads h·g … h·g+g−1 use key head h."""
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT


def call(pe, q: Tensor, k: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Returns the scores computed by the encoding itself."""
    return scores(*pe(q, k, x, y))


def oracle(pe, q: Tensor, k: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Returns the same scores computed by matrix_exp of the angle matrices."""
    angles = pe.angle_matrices()
    if y is None:
        return scores(*reference.rotate(q, k, angles, x))
    rotated = (reference.apply(reference.rotation_matrices(angles, p), t) for p, t in ((x, q), (y, k)))
    return scores(*rotated)


def in_float64(pe):
    """Returns a copy with the same parameter values in float64."""
    return copy.deepcopy(pe).double()


def nonlinear(s: Tensor) -> Tensor:
    """Returns a scalar loss whose gradient differs between entries and depends on the scores."""
    weight = draw(*s.shape, seed=99).to(s.dtype)
    return (weight * torch.sin(s)).sum() + 0.1 * (s * s).mean()


def gradients(value: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns ∂value/∂leaf by name, with zeros for a leaf that value does not depend on."""
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), materialize_grads=True), strict=True))


def trainable(pe) -> dict[str, Tensor]:
    return {name: p for name, p in pe.named_parameters() if p.requires_grad}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "values") -> None:
    """Asserts that the largest error is at most `tolerance` times the largest expected value (zero if all are zero)."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    error = (actual.double() - expected.double()).abs().max().item()
    size = expected.double().abs().max().item()
    assert error <= tolerance * size, f"{what}: error {error:.2e} on values up to {size:.2e}, allowed {tolerance:.0e}"


def orthogonal(*shape: int, seed: int = 0) -> Tensor:
    """Returns random orthogonal matrices (*shape[:-1], b, b), where b is shape[-1]."""
    return torch.linalg.qr(draw(*shape, shape[-1], seed=seed)).Q


def planes(frequencies: Tensor) -> Tensor:
    """Returns diag(μ_1 J, …, μ_h J), J = [[0, −1], [1, 0]], for frequencies (..., h), set entry by entry."""
    h = frequencies.shape[-1]
    out = frequencies.new_zeros(*frequencies.shape[:-1], 2 * h, 2 * h)
    for k in range(h):
        out[..., 2 * k, 2 * k + 1] = -frequencies[..., k]
        out[..., 2 * k + 1, 2 * k] = frequencies[..., k]
    return out


# Skew-symmetric matrices (count, b, b), by name. Most have spectra for which gradients of eigenvectors fail.
def _random(count: int, b: int) -> Tensor:
    base = draw(count, b, b, seed=5)
    return base - base.mT


def _prescribed(frequencies, count: int) -> Tensor:
    mu = torch.as_tensor(frequencies, dtype=torch.float64)
    basis = orthogonal(count, 2 * len(mu), seed=6)
    s = basis @ planes(mu) @ basis.mT
    return (s - s.mT) / 2


def _two_equal(h: int) -> list[float]:
    return [0.7, 0.7, *(0.9 + 0.37 * k for k in range(h - 2))]


def _rank_deficient(h: int) -> list[float]:
    return [0.0] * (h - h // 2) + [0.5 + 0.41 * k for k in range(h // 2)]


SPECTRA = {
    "random": _random,
    "zero": lambda count, b: torch.zeros(count, b, b, dtype=torch.float64),
    "tiny": lambda count, b: 1e-6 * _random(count, b),
    "equal": lambda count, b: _prescribed([1.3] * (b // 2), count),
    "equal in the standard basis": lambda count, b: planes(torch.full((count, b // 2), 1.3, dtype=torch.float64)),
    "two equal": lambda count, b: _prescribed(_two_equal(b // 2), count),
    "rank-deficient": lambda count, b: _prescribed(_rank_deficient(b // 2), count),
    "zero and equal": lambda count, b: _prescribed([0.0] * (b // 2 - b // 4) + [1.1] * (b // 4), count),
    "gaps of 1e-2": lambda count, b: _prescribed([0.9 + 1e-2 * k for k in range(b // 2)], count),
    "gaps of 1e-3": lambda count, b: _prescribed([0.9 + 1e-3 * k for k in range(b // 2)], count),
    "gaps of 1e-4": lambda count, b: _prescribed([0.9 + 1e-4 * k for k in range(b // 2)], count),
}
SINGLE_PLANE_SPECTRA = ("random", "zero", "tiny")  # with one frequency, the others are the same as these


def spectra_for(block_size: int) -> tuple[str, ...]:
    return SINGLE_PLANE_SPECTRA if block_size == 2 else tuple(SPECTRA)


def set_skew(pe, spectrum: str) -> None:
    """Sets `base_matrices` of an AP or LD so that P − Pᵀ has the named spectrum in every head and block."""
    heads, blocks, b, _ = pe.base_matrices.shape
    with torch.no_grad():
        pe.base_matrices.copy_((SPECTRA[spectrum](heads * blocks, b) / 2).view(heads, blocks, b, b))
