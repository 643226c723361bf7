"""Lower precision, and positions far out, against a float64 reference with the same parameters."""

import copy

import pytest
import torch
from torch import nn

import comrope
from comrope._linalg import plane_generators
from tests.helpers import (
    EVERY,
    KEEPS_PLACES,
    LEARNED,
    ONE_PARAMETER,
    ROTARY,
    SPECTRA,
    SPECTRAL,
    assert_close,
    build,
    call,
    draw,
    gradients,
    in_float64,
    nonlinear,
    oracle,
    scores,
    set_skew,
    trainable,
)

HALF = [torch.bfloat16, torch.float16]


def _compare_in_float32(pe, x):
    q, k = draw(2, 4, 9, 16, seed=1, dtype=torch.float32), draw(2, 2, 9, 16, seed=2, dtype=torch.float32)
    single = {"q": q, "k": k, "x": x}
    double = {name: t.double() for name, t in single.items()}
    for leaf in (*single.values(), *double.values()):
        leaf.requires_grad_()
    exact = in_float64(pe)
    ours, theirs = call(pe, *single.values()), oracle(exact, *double.values())
    assert ours.dtype == torch.float32
    assert_close(ours, theirs, 1e-5, "scores")
    expected = gradients(nonlinear(theirs), double | trainable(exact))
    for name, gradient in gradients(nonlinear(ours), single | trainable(pe)).items():
        assert gradient.dtype == torch.float32
        assert_close(gradient, expected[name], 1e-3, f"gradient in {name}")


POSITIONS = {
    "grid": lambda: comrope.positions.grid((3, 3)),
    "per sample": lambda: draw(2, 9, 2, dtype=torch.float32),
    "wide": lambda: draw(9, 2, dtype=torch.float32) * 30,
}


@pytest.mark.parametrize("where", POSITIONS)
@pytest.mark.parametrize("name", ROTARY)
def test_float32(name, where):
    _compare_in_float32(build(name, stir=0.1, block_size=8, dtype=torch.float32), POSITIONS[where]())


@pytest.mark.parametrize("where", POSITIONS)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", ONE_PARAMETER)
def test_float32_whatever_the_spectrum(name, spectrum, where):
    pe = build(name, block_size=8, dtype=torch.float32)
    set_skew(pe, spectrum)
    _compare_in_float32(pe, POSITIONS[where]())


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ROTARY)
def test_half_precision_is_as_good_as_rounding_in_and_out(name, dtype):
    pe = build(name, block_size=8, dtype=torch.float32)
    x = comrope.positions.grid((4, 6), num_prefix_tokens=1)
    q, k = draw(2, 4, 25, 16, seed=1), draw(2, 2, 25, 16, seed=2)
    exact = in_float64(pe)
    angles = exact.angle_matrices()
    true = comrope.reference.rotate(q, k, angles, x.double())
    rounded = [
        t.to(dtype).double() for t in comrope.reference.rotate(*(t.to(dtype).double() for t in (q, k)), angles, x)
    ]
    ours = pe(q.to(dtype), k.to(dtype), x)
    assert [t.dtype for t in ours] == [dtype, dtype]
    ours = [t.double() for t in ours]
    assert (scores(*ours) - scores(*true)).norm() <= 2 * (scores(*rounded) - scores(*true)).norm()
    if name in KEEPS_PLACES:
        for our, rounded_one, true_one in zip(ours, rounded, true, strict=True):
            assert (our - true_one).norm() <= 2 * (rounded_one - true_one).norm()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", LEARNED)
def test_half_precision_gradients_are_as_good_as_rounding_in_and_out(name, dtype):
    """The gradient in float32 parameters from half-precision tokens, against that from tokens rounded in and out."""
    pe = build(name, block_size=8, dtype=torch.float32)
    x = comrope.positions.grid((4, 6))
    exact = in_float64(pe)
    q, k = draw(2, 2, 24, 16, seed=1), draw(2, 2, 24, 16, seed=2)
    weight = draw(2, 2, 24, 24, seed=3)

    def rounding(t):  # in value alone
        return t + (t.to(dtype).double() - t).detach()

    def gradient(s, of):
        return gradients((s.double() * weight).sum(), trainable(of))

    true = gradient(oracle(exact, q, k, x.double()), exact)
    turned = comrope.reference.rotate(rounding(q), rounding(k), exact.angle_matrices(), x)
    rounded = gradient(scores(*map(rounding, turned)), exact)
    ours = gradient(scores(*(t.double() for t in pe(q.to(dtype), k.to(dtype), x))), pe)
    for leaf, g in ours.items():
        assert g.dtype == torch.float32
        # The incoming gradient is rounded as well, hence once more the same.
        assert (g - true[leaf]).norm() <= 4 * (rounded[leaf] - true[leaf]).norm() + 1e-6 * true[leaf].norm(), leaf


class _RoundBothWays(torch.autograd.Function):
    """Rounds to a dtype and back to float64: values on the way there, gradients on the way back."""

    @staticmethod
    def forward(ctx, t, dtype):
        ctx.dtype = dtype
        return t.to(dtype).double()

    @staticmethod
    def backward(ctx, *grads):
        return grads[0].to(ctx.dtype).double(), None


def _half_precision_errors(make, dtype, in_weights) -> tuple[float, float]:
    """Relative errors of the gradient in the matrix that has the basis, root mean square over four draws.

    The second is that of the exact rotation, of queries and keys that are rounded on the way in and out, and their gradients.
    """
    squares = torch.tensor([_squared_errors(make(seed), seed, dtype, in_weights) for seed in range(4)])
    ours, rounding = squares.mean(0).sqrt().tolist()
    return ours, rounding


def _squared_errors(pe, seed, dtype, in_weights) -> tuple[float, float]:
    exact, x = in_float64(pe), comrope.positions.grid((8, 8))
    tokens, weight = draw(4, 64, 64, seed=seed + 1), draw(2 * pe.num_heads * pe.head_dim, 64, seed=seed + 2) / 8
    in_scores = draw(4, pe.num_heads, 64, 64, seed=seed + 3)

    def heads(projected):
        return projected.unflatten(-1, (2, pe.num_heads, pe.head_dim)).permute(2, 0, 3, 1, 4)

    def gradient(turned, of):
        attention = torch.softmax(3 * scores(*(t.double() for t in turned)), dim=-1)
        leaf = trainable(of).get("base_matrices", trainable(of).get("basis_generator"))
        return torch.autograd.grad((attention * in_scores).sum(), leaf)[0].double()

    q, k = heads(tokens @ weight.mT)
    true = gradient(comrope.reference.rotate(q, k, exact.angle_matrices(), x.double()), exact)
    rounded = [_RoundBothWays.apply(t, dtype) for t in (q, k)]
    turned = comrope.reference.rotate(*rounded, exact.angle_matrices(), x.double())  # pyright: ignore
    rounded = gradient([_RoundBothWays.apply(t, dtype) for t in turned], exact)
    if in_weights:
        rotation = pe.rotation(x)
        projection = rotation.into_basis(weight.float()).to(dtype)
        ours = rotation.turn(*heads(torch.nn.functional.linear(tokens.to(dtype), projection)), in_basis=True)
    else:
        ours = pe(q.to(dtype), k.to(dtype), x)
    return tuple(((found - true).norm() / true.norm()).item() ** 2 for found in (gradient(ours, pe), rounded))  # pyright: ignore


@pytest.mark.parametrize("in_weights", [False, True], ids=["on tokens", "in the weights"])
@pytest.mark.parametrize("std", [0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["comrope-ap", "comrope-ld", "comrope-mt"])
def test_half_precision_gradients_of_small_angles(name, dtype, std, in_weights):
    """Every fine-tuning run passes through them. Was 4 times the rounding on tokens, and 11 times in the weights."""

    def make(seed):
        return build(name, seed=seed, block_size=8, dtype=torch.float32, std=std)

    ours, rounding = _half_precision_errors(make, dtype, in_weights)
    # The weights in the basis are rounded as well, and what they make of the tokens once more.
    assert ours <= (2.5 if in_weights else 1.5) * rounding


@pytest.mark.parametrize("gap", [0.1, 0.05, 0.02, 0.012, 3e-3, 1e-4])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_gradients_of_nearly_equal_frequencies(dtype, gap):
    """Was 1.0e-1 at a gap of 0.02, which float32 tells apart and bfloat16 does not, against 2.5e-3 at 0.012."""

    def make(seed):
        pe = build("comrope-ap", num_heads=1, head_dim=8, block_size=4, dtype=torch.float32)
        basis = torch.linalg.qr(draw(1, 2, 4, 4, seed=seed + 5)).Q
        with torch.no_grad():
            generators = plane_generators(torch.tensor([0.9, 0.9 + gap], dtype=torch.float64))
            pe.base_matrices.copy_(basis @ generators @ basis.mT / 2)
        return pe

    ours, rounding = _half_precision_errors(make, dtype, in_weights=False)
    assert ours <= 1.5 * rounding


@pytest.mark.parametrize("extent", [1e1, 1e2, 1e3, 1e4, 3.2e4, 1e5, 1e6])
@pytest.mark.parametrize("name", ["rope-mixed", "comrope-ap", "comrope-ld", "comrope-mt"])
def test_what_float32_gradients_keep_far_out(name, extent):
    """32 groups of 16 neighbours anywhere within `extent`, which attend within their group alone (docs/idea.md)."""
    pe = build(name, num_axes=1, block_size=8, dtype=torch.float32)
    starts = (torch.rand(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * extent).round()
    x = (starts.unsqueeze(-1) + torch.arange(16)).flatten().unsqueeze(-1)
    q, k = draw(1, 2, 512, 16, seed=1, dtype=torch.float32), draw(1, 2, 512, 16, seed=2, dtype=torch.float32)
    weight, within = torch.block_diag(*draw(32, 16, 16, seed=3)), torch.block_diag(*torch.ones(32, 16, 16)).bool()

    def gradient(pe, dtype):
        attention = call(pe, q.to(dtype), k.to(dtype), x).masked_fill(~within, -1e9).softmax(-1)
        return gradients((attention * weight.to(dtype)).sum(), trainable(pe))

    exact = gradient(in_float64(pe), torch.float64)
    for leaf, found in gradient(pe, torch.float32).items():
        error = ((found.double() - exact[leaf]).norm() / exact[leaf].norm()).item()
        assert error <= 5e-6 + 5e-8 * extent, (leaf, error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ROTARY)
def test_autocast_changes_nothing_inside(name, dtype):
    pe = build(name, stir=0.1, block_size=8, dtype=torch.float32)
    x = comrope.positions.grid((3, 4))
    q, k = (draw(2, 2, 12, 16, seed=seed, dtype=dtype).requires_grad_() for seed in (1, 2))
    leaves = {"q": q, "k": k} | trainable(pe)
    plain = pe(q, k, x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = pe(q, k, x)
    for with_autocast, without in zip(cast, plain, strict=True):
        assert with_autocast.dtype == dtype
        assert torch.equal(with_autocast, without)
    expected = gradients(nonlinear(scores(*plain)), leaves)
    for leaf, gradient in gradients(nonlinear(scores(*cast)), leaves).items():
        assert torch.equal(gradient, expected[leaf]), leaf


@pytest.mark.parametrize("name", ROTARY)
def test_scores_under_autocast_are_as_good_as_rounding_in_and_out(name):
    pe = build(name, block_size=8, dtype=torch.float32)
    x = comrope.positions.grid((4, 6))
    q, k = draw(2, 2, 24, 16, seed=1), draw(2, 2, 24, 16, seed=2)
    angles = in_float64(pe).angle_matrices()
    true = scores(*comrope.reference.rotate(q, k, angles, x))
    rounded = comrope.reference.rotate(q.bfloat16().double(), k.bfloat16().double(), angles, x)
    rounded = scores(*(t.bfloat16().double() for t in rounded)).bfloat16().double()
    with torch.autocast("cpu", torch.bfloat16):
        ours = scores(*pe(q.float(), k.float(), x))
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - true).norm() <= 2 * (rounded - true).norm()


def _output(pe, dtype=torch.float32):
    if isinstance(pe, comrope.encodings.AbsoluteEncoding):
        return (pe(draw(2, 12, 32, dtype=dtype), comrope.positions.grid((3, 4))),)
    return pe(*(draw(2, 2, 12, 16, seed=s, dtype=dtype) for s in (1, 2)), comrope.positions.grid((3, 4)))


CASTS = {
    "bfloat16()": lambda m: m.bfloat16(),
    "half()": lambda m: m.half(),
    "to(float16)": lambda m: m.to(torch.float16),
    "to(device, bfloat16)": lambda m: m.to("cpu", torch.bfloat16),
    "type(bfloat16)": lambda m: m.type(torch.bfloat16),
    "bfloat16().float()": lambda m: m.bfloat16().float(),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", EVERY)
def test_casting_a_model_down_leaves_its_encodings_as_they_are(name, cast):
    pe = build(name, stir=0.1, dtype=torch.float32)
    before, expected = copy.deepcopy(pe.state_dict()), _output(pe)
    model = CASTS[cast](nn.ModuleDict({"proj": nn.Linear(2, 2), "pe": pe}))
    assert (model["proj"].weight.dtype == torch.float32) == cast.endswith("float()")  # the rest of it follows
    for tensor in (*pe.parameters(), *pe.buffers()):
        assert tensor.dtype == torch.float32
    for key, value in pe.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(torch.equal(a, b) for a, b in zip(_output(pe), expected, strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_casting_to_float64_is_followed(name):
    pe = build(name, stir=0.1, dtype=torch.float32)
    values = copy.deepcopy(pe.state_dict())
    pe.double()
    for key, value in pe.state_dict().items():
        assert value.dtype == torch.float64
        assert torch.equal(value, values[key].double())
    assert all(tensor.dtype == torch.float64 for tensor in pe.buffers())


@pytest.mark.parametrize("parameters", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_output_comes_in_the_dtype_of_the_tokens(name, dtype, parameters):
    assert all(t.dtype == dtype for t in _output(build(name, dtype=parameters), dtype))


@pytest.mark.parametrize("name", ROTARY)
def test_queries_and_keys_may_differ_in_dtype(name):
    pe = build(name, stir=0.1, block_size=8, dtype=torch.float32)
    q, k = draw(1, 2, 12, 16, seed=1, dtype=torch.float32), draw(1, 2, 12, 16, seed=2)
    x = comrope.positions.grid((3, 4))
    turned = pe(q, k, x)
    assert [t.dtype for t in turned] == [torch.float32, torch.float64]
    assert_close(scores(turned[0].double(), turned[1]), oracle(in_float64(pe), q.double(), k, x.double()), 1e-5)


# Far out. The exponent E = Σ x_i A_i is up to 10⁷ there, and exp(E) is taken from the eigenvalues of iE: its error is that
# of the phases in float64, about 1e-9.
def _far_scores(pe, q, k, x):
    exponent = torch.einsum("ln,nhmcd->lhmcd", x.double(), in_float64(pe).angle_matrices())
    eigenvalues, vectors = torch.linalg.eigh(1j * exponent)
    rotation = ((vectors * torch.exp(-1j * eigenvalues).unsqueeze(-2)) @ vectors.mH).real
    return scores(*(comrope.reference.apply(rotation, t.double()) for t in (q, k)))


def _cosine_error(ours, theirs, q, k):
    """The largest error of a score, in units of |q||k|."""
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
def test_phases_in_float32_would_not_be(name, where):
    """The same with φ = ωᵀx worked out in float32 and everything else exact: what the engine must not do."""
    pe, q, k, x = _far(name, where)
    basis, frequencies = in_float64(pe).spectrum()
    phases = torch.einsum("ln,nhmk->lhmk", x, frequencies.float()).double()  # (L, H, m, b/2)
    turn = torch.stack((phases.cos(), -phases.sin(), phases.sin(), phases.cos()), -1).unflatten(-1, (2, 2))
    rotation = torch.zeros(48, 2, 2, 8, 8, dtype=torch.float64)
    for plane in range(4):
        rotation[..., 2 * plane : 2 * plane + 2, 2 * plane : 2 * plane + 2] = turn[..., plane, :, :]
    rotation = basis @ rotation @ basis.mT
    with torch.no_grad():
        ours = scores(*(comrope.reference.apply(rotation, t.double()) for t in (q, k)))
        assert _cosine_error(ours, _far_scores(pe, q, k, x), q, k) > 1e-3


@pytest.mark.parametrize("where", FAR)
@pytest.mark.parametrize("name", ROTARY)
def test_the_far_oracle_agrees_with_matrix_exp(name, where):
    """Near to rounding, and far out to what matrix_exp's many squarings leave of the digits."""
    pe, q, k, x = _far(name, where)
    q, k, exact = q.double(), k.double(), in_float64(pe)
    with torch.no_grad():
        assert _cosine_error(_far_scores(pe, q, k, 1e-6 * x), oracle(exact, q, k, 1e-6 * x.double()), q, k) < 1e-6
        assert _cosine_error(_far_scores(pe, q, k, x), oracle(exact, q, k, x.double()), q, k) < 1e-6


@pytest.mark.parametrize("distance", [8_000, 1_000_000])
@pytest.mark.parametrize("name", [name for name in LEARNED if name in SPECTRAL])
def test_frozen_scores_are_those_of_the_learned_encoding_however_far(name, distance):
    """A frequency rounded to float32 would be seen: by 1e-3 at 8,000 tokens, by 1e-1 at a million."""
    pe = build(name, num_axes=1, block_size=8, dtype=torch.float32)
    x = torch.cat((comrope.positions.sequence(24), comrope.positions.sequence(24, start=distance)))
    q, k = (draw(1, 2, 48, 16, seed=seed, dtype=torch.float32) for seed in (1, 2))
    with torch.no_grad():
        learned, frozen = call(pe, q, k, x), call(comrope.freeze(pe).half(), q, k, x)
        assert _cosine_error(frozen, learned.double(), q, k) < 1e-6
        assert _cosine_error(frozen, _far_scores(pe, q, k, x), q, k) < 1e-6
