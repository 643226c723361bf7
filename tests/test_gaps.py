"""Nearly equal frequencies: which of the two forms of the gradient is used (comrope/_generator_gradient.py)."""

import pytest
import torch

from comrope._linalg import plane_generators
from tests.helpers import (
    assert_close,
    build,
    call,
    draw,
    in_float64,
    oracle,
)


def _of_frequencies(frequencies: list[float], *, num_blocks: int = 1, dtype=torch.float64):
    """Returns an LD of one head and axis, whose blocks all have these frequencies, in random bases."""
    b = 2 * len(frequencies)
    sizes = {"num_heads": 1, "head_dim": num_blocks * b, "num_axes": 1, "block_size": b}
    pe = build("comrope-ld", **sizes, dtype=dtype)
    basis = torch.linalg.qr(draw(1, num_blocks, b, b, seed=5)).Q
    with torch.no_grad():
        generators = plane_generators(torch.tensor(frequencies, dtype=torch.float64))
        pe.base_matrices.copy_(basis @ generators @ basis.mT / 2)
        pe.axis_scale.fill_(1)
    return pe


@pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-8, 1e-9, 1e-10, 1e-12])
@pytest.mark.parametrize("far", [1e4, 1e6])
def test_nearly_equal_frequencies_of_tokens_that_are_all_far_from_the_origin(far, gap):
    """Was wrong by 9e-5 at 10⁴ and by 0.4 at 10⁶, where the rounding of phases is ε|φ|, not ε."""
    pe = _of_frequencies([1.0, 1 + gap, 2.0, 3.0])
    near = torch.linspace(0, 30, 9, dtype=torch.float64).unsqueeze(-1)
    q, k, weight = draw(1, 1, 9, 8, seed=1), draw(1, 1, 9, 8, seed=2), draw(9, 9, seed=3)
    (ours,) = torch.autograd.grad((call(pe, q, k, far + near) * weight).sum(), pe.base_matrices)
    (theirs,) = torch.autograd.grad((oracle(pe, q, k, near) * weight).sum(), pe.base_matrices)
    assert_close(ours, theirs, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2.5e-5), (torch.float64, 5e-12)], ids=str)
@pytest.mark.parametrize("decade", range(-6, 1))
def test_one_of_the_two_forms_is_accurate_for_every_gap(decade, dtype, most):
    """With two tokens no errors cancel by chance. Was wrong by 1.5e-4 in float32 and 2e-10 in float64 near the threshold."""
    for step in range(8):
        gap = 10 ** (decade + step / 8)
        for mu in (0.1, 1.0, 5.1):
            pe = _of_frequencies([mu, mu + gap], dtype=dtype)
            exact = in_float64(pe)
            for positions in ([0.0, 1.0], [-1.0, 1.0], [0.1, 0.8], [0.3, 3.0]):
                x = torch.tensor(positions, dtype=torch.float64).unsqueeze(-1)
                q, k = draw(1, 1, 2, 4, seed=1).to(dtype), draw(1, 1, 2, 4, seed=2).to(dtype)
                weight = draw(2, 2, seed=3)
                (ours,) = torch.autograd.grad((call(pe, q, k, x).double() * weight).sum(), pe.base_matrices)
                value = (oracle(exact, q.double(), k.double(), x) * weight).sum()
                (theirs,) = torch.autograd.grad(value, exact.base_matrices)
                assert (ours - theirs).norm() <= most * theirs.norm(), (gap, mu, positions)


def test_each_block_has_its_own_threshold():
    """One block has near tokens only, the other far ones: the same gap is closed in one and open in the other."""
    pe = _of_frequencies([0.9, 0.9 + 1e-4], num_blocks=2, dtype=torch.float32)
    exact = in_float64(pe)
    x = torch.cat((torch.linspace(0, 1, 6), torch.linspace(0, 3e4, 6))).double().unsqueeze(-1)
    q, k = draw(1, 1, 12, 8, seed=1).float(), draw(1, 1, 12, 8, seed=2).float()
    for tokens in (q, k):
        tokens[:, :, :6, 4:] = 0
        tokens[:, :, 6:, :4] = 0
    weight = draw(12, 12, seed=3)
    (ours,) = torch.autograd.grad((call(pe, q, k, x).double() * weight).sum(), pe.base_matrices)
    value = (oracle(exact, q.double(), k.double(), x) * weight).sum()
    (theirs,) = torch.autograd.grad(value, exact.base_matrices)
    for block in range(2):
        assert_close(ours[:, block], theirs[:, block], 1e-4, f"block {block}")


@pytest.mark.parametrize("silent", [1e4, 1e6])
@pytest.mark.parametrize("gap", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_far_token_that_the_loss_ignores_does_not_change_the_form(gap, silent, dtype):
    """The form depends on tokens that contribute to the gradient, not on padding far away."""
    pe = _of_frequencies([1.0, 1 + gap, 2.0, 3.0], dtype=dtype)
    x = torch.linspace(0, 1, 9, dtype=torch.float64).unsqueeze(-1)
    x[0] = silent
    q, k = draw(1, 1, 9, 8, seed=1).to(dtype), draw(1, 1, 9, 8, seed=2).to(dtype)
    weight = draw(9, 9, seed=3)
    weight[0], weight[:, 0] = 0, 0

    (ours,) = torch.autograd.grad((call(pe, q, k, x) * weight).sum(), pe.base_matrices)
    near = oracle(pe, q[..., 1:, :], k[..., 1:, :], x[1:])
    (theirs,) = torch.autograd.grad((near * weight[1:, 1:]).sum(), pe.base_matrices)
    assert_close(ours, theirs, 1e-3 if dtype == torch.float32 else 1e-6)
