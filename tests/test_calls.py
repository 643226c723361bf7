"""Queries and keys rotated in different calls: their gradients are the same as if one call had rotated all of them.

Each case is compared with `comrope.reference` on the whole sequence in float64. tests/properties/ draws many more cases; these
are the ones that once failed, each in the form in which users meet it.
"""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from comrope import reference
from comrope._linalg import plane_generators
from tests.helpers import (
    DECOMPOSED,
    ROTARY,
    SPECTRAL,
    assert_close,
    build,
    draw,
    gradients,
    in_float64,
    nonlinear,
    oracle,
    orthogonal,
    scores,
    set_skew,
    trainable,
)
from tests.processes import in_two_processes

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


def _one_block(frequencies: list[float], dtype: torch.dtype):
    """Returns an LD of one head, block and axis, with these frequencies in a random basis."""
    b = 2 * len(frequencies)
    pe = build("comrope-ld", num_heads=1, head_dim=b, num_axes=1, block_size=b, dtype=dtype)
    basis = orthogonal(b, seed=5)
    with torch.no_grad():
        generators = plane_generators(torch.tensor(frequencies, dtype=torch.float64))
        pe.base_matrices.copy_(basis @ generators @ basis.mT / 2)
        pe.axis_scale.fill_(1)
    return pe


def _true_gradient(pe, q, k, x, y, weight, *, detached: bool = False) -> Tensor:
    """Returns ∂/∂P of Σ weight·score by matrix_exp, with R(y)k held constant if `detached`."""
    exact = in_float64(pe)
    rotated_q, rotated_k = (
        reference.apply(reference.rotation_matrices(exact.angle_matrices(), at), t.double())
        for at, t in ((x, q), (y, k))
    )
    value = (scores(rotated_q, rotated_k.detach() if detached else rotated_k) * weight).sum()
    return torch.autograd.grad(value, exact.base_matrices)[0]


@pytest.mark.parametrize("detached", [False, True], ids=["split", "detached keys"])
@pytest.mark.parametrize("extent", [1.0, 0.3, 0.1])
@pytest.mark.parametrize("gap", [0.03, 3e-3, 3e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_block_of_nearly_equal_frequencies(dtype, gap, extent, detached):
    """Was wrong by factors of 20 to 20,000: a gap is closed for near tokens and open for far ones, which differ per call."""
    pe = _one_block([0.9, 0.9 + gap], dtype)
    q, k = draw(2, 1, 9, 4, seed=1, dtype=dtype), draw(2, 1, 9, 4, seed=2, dtype=dtype)
    x, weight = extent * torch.linspace(0, 1, 9, dtype=torch.float64).unsqueeze(-1), draw(2, 1, 9, 9, seed=3)
    rotated_q, _ = pe(q, 0 * q, x)
    _, rotated_k = pe(0 * k, k, 10 * x)
    value = (scores(rotated_q, rotated_k.detach() if detached else rotated_k).double() * weight).sum()
    (gradient,) = torch.autograd.grad(value, pe.base_matrices)
    expected = _true_gradient(pe, q, k, x, 10 * x, weight, detached=detached)
    assert_close(gradient, expected, TOLERANCE[dtype])


def _encoding(name: str):
    """Returns an encoding whose gaps, if it has any, are closed for tokens near position 0 and open for tokens far away."""
    pe = build(name, jitter=0.3, block_size=8)
    if name in DECOMPOSED:
        set_skew(pe, "gaps of 1e-4")
    return pe


def _near_to_far(length: int, seed: int) -> Tensor:
    """Returns positions (L, 2) of sizes from 0.0001 to 30."""
    return torch.logspace(-4, 1.5, length, dtype=torch.float64).unsqueeze(-1) * draw(length, 2, seed=seed)


def _chunks(length: int, number: int) -> list[slice]:
    ends = [round(i * length / number) for i in range(number + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


@pytest.mark.parametrize("number", [2, 5])
@pytest.mark.parametrize("name", ROTARY)
def test_a_sequence_in_chunks_has_the_gradients_of_the_whole(name, number):
    """Chunks occur with a key cache."""
    pe = _encoding(name)
    q, k, x = draw(2, 4, 10, 16, seed=1), draw(2, 2, 10, 16, seed=2), _near_to_far(10, seed=3)
    leaves = {"q": q, "k": k, "x": x}
    leaves = {leaf: t.requires_grad_() for leaf, t in leaves.items()} | trainable(pe)
    parts = [pe(q[:, :, at], k[:, :, at], x[at]) for at in _chunks(10, number)]
    value = nonlinear(scores(*(torch.cat(t, dim=2) for t in zip(*parts, strict=True))))
    expected = gradients(nonlinear(oracle(pe, q, k, x)), leaves)
    for leaf, gradient in gradients(value, leaves).items():
        assert_close(gradient, expected[leaf], 1e-10, leaf)


@pytest.mark.parametrize("name", SPECTRAL)
def test_cross_attention_with_calls_of_its_own_for_queries_and_keys(name):
    """The encoder's keys were rotated before the decoder's queries, at other positions and with another length."""
    pe = _encoding(name)
    q, k = draw(2, 4, 5, 16, seed=1), draw(2, 2, 7, 16, seed=2)
    x, y = 0.02 * draw(2, 5, 2, seed=3), 20 * draw(7, 2, seed=4)
    leaves = {"x": x, "y": y}
    leaves = {leaf: t.requires_grad_() for leaf, t in leaves.items()} | trainable(pe)
    _, rotated_k = pe(torch.zeros(2, 2, 7, 16, dtype=q.dtype), k, y)
    rotated_q, _ = pe(q, torch.zeros(2, 2, 5, 16, dtype=q.dtype), x)
    expected = gradients(nonlinear(oracle(pe, q, k, x, y)), leaves)
    for leaf, gradient in gradients(nonlinear(scores(rotated_q, rotated_k)), leaves).items():
        assert_close(gradient, expected[leaf], 1e-10, leaf)


@pytest.mark.parametrize("name", [name for name in SPECTRAL if name != "rope"])
def test_a_basis_in_the_weights_in_chunks(name):
    """`into_basis` is called for each chunk, as an attention layer does."""
    pe = _encoding(name)
    tokens, x = draw(2, 10, 12, seed=1), _near_to_far(10, seed=2)
    w_q, w_k = draw(32, 12, seed=3).requires_grad_(), draw(32, 12, seed=4).requires_grad_()
    leaves = {"w_q": w_q, "w_k": w_k} | trainable(pe)

    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (2, 16)).transpose(1, 2)

    parts = []
    for at in _chunks(10, 3):
        rotation = pe.rotation(x[at], dtype=torch.float64)
        q, k = (heads(tokens[:, at] @ rotation.into_basis(w).mT) for w in (w_q, w_k))
        parts.append(rotation.rotate(q, k, in_basis=True))
    value = nonlinear(scores(*(torch.cat(t, dim=2) for t in zip(*parts, strict=True))))
    exact = oracle(pe, heads(tokens @ w_q.mT), heads(tokens @ w_k.mT), x)
    expected = gradients(nonlinear(exact), leaves)
    for leaf, gradient in gradients(value, leaves).items():
        assert_close(gradient, expected[leaf], 1e-10, leaf)


@pytest.mark.parametrize("name", DECOMPOSED)
def test_one_rotation_for_several_layers(name):
    """Layers that share an encoding may share its rotation, though one layer uses only the near tokens."""
    pe = build(name, block_size=8)
    set_skew(pe, "gaps of 1e-4")
    x = torch.tensor([0.01, 0.02, 0.05, 1.0, 1e3, 3e3], dtype=torch.float64).unsqueeze(-1) * draw(6, 2, seed=3)
    layers = [(draw(2, 2, 6, 16, seed=i), draw(2, 2, 6, 16, seed=9 + i)) for i in range(2)]
    for tokens in layers[0]:
        tokens[:, :, 3:] = 0
    rotation = pe.rotation(x, dtype=torch.float64)
    value = sum(nonlinear(scores(*rotation.rotate(q, k))) for q, k in layers)
    expected = gradients(sum(nonlinear(oracle(pe, q, k, x)) for q, k in layers), trainable(pe))
    for leaf, gradient in gradients(value, trainable(pe)).items():
        assert_close(gradient, expected[leaf], 1e-10, leaf)


class _Gather(torch.autograd.Function):
    """Gathers the parts of a sequence from all ranks, (ranks, ...). Its backward sums each part's gradient over ranks."""

    @staticmethod
    def forward(part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part.contiguous())
        return torch.stack(parts)

    @staticmethod
    def setup_context(ctx, inputs, output):
        return

    @staticmethod
    def backward(ctx, *grads):
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


def _sequence(name: str):
    return _encoding(name), draw(2, 2, 12, 16, seed=1), draw(2, 2, 12, 16, seed=2), _near_to_far(12, seed=3)


def _gradients_of_a_part(rank: int, name: str) -> dict[str, Tensor]:
    pe, q, k, x = _sequence(name)
    at = _chunks(12, 2)[rank]
    rotated_q, rotated_k = pe(q[:, :, at], k[:, :, at], x[at])
    all_keys = _Gather.apply(rotated_k).movedim(0, 2).flatten(2, 3)  # pyright: ignore
    (scores(rotated_q, all_keys).sin() * draw(2, 2, 12, 12, seed=4)[:, :, at]).sum().backward()
    for parameter in pe.parameters():
        dist.all_reduce(parameter.grad)
    return {leaf: p.grad for leaf, p in pe.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["comrope-ap", "comrope-ld", "comrope-mt"])
def test_a_sequence_on_two_processes_has_the_gradients_of_one(name, tmp_path):
    """Sequence parallelism: each process rotates its own tokens, and its queries use the keys of both."""
    found = in_two_processes(_gradients_of_a_part, tmp_path, name)
    pe, q, k, x = _sequence(name)
    value = (oracle(pe, q, k, x).sin() * draw(2, 2, 12, 12, seed=4)).sum()
    for leaf, gradient in gradients(value, trainable(pe)).items():
        assert_close(found[leaf], gradient, 1e-10, leaf)
