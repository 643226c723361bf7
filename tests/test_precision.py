"""float32, autocast and casts, compared with a float64 reference with the same parameters."""

import copy

import pytest
import torch
from torch import nn

import comrope
from tests.helpers import (
    DECOMPOSED,
    EVERY,
    ROTARY,
    SPECTRA,
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
    _compare_in_float32(build(name, jitter=0.1, block_size=8, dtype=torch.float32), POSITIONS[where]())


@pytest.mark.parametrize("where", POSITIONS)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", DECOMPOSED)
def test_float32_whatever_the_spectrum(name, spectrum, where):
    pe = build(name, block_size=8, dtype=torch.float32)
    set_skew(pe, spectrum)
    _compare_in_float32(pe, POSITIONS[where]())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ROTARY)
def test_autocast_does_not_change_results(name, dtype):
    pe = build(name, jitter=0.1, block_size=8, dtype=torch.float32)
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
def test_scores_under_autocast_are_as_good_as_rounding_inputs_and_outputs(name):
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
    pe = build(name, jitter=0.1, dtype=torch.float32)
    before, expected = copy.deepcopy(pe.state_dict()), _output(pe)
    model = CASTS[cast](nn.ModuleDict({"proj": nn.Linear(2, 2), "pe": pe}))
    assert (model["proj"].weight.dtype == torch.float32) == cast.endswith("float()")  # the rest of the model is cast
    for tensor in (*pe.parameters(), *pe.buffers()):
        assert tensor.dtype == torch.float32
    for key, value in pe.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(torch.equal(a, b) for a, b in zip(_output(pe), expected, strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_casting_to_float64_casts_encodings_too(name):
    pe = build(name, jitter=0.1, dtype=torch.float32)
    values = copy.deepcopy(pe.state_dict())
    pe.double()
    for key, value in pe.state_dict().items():
        assert value.dtype == torch.float64
        assert torch.equal(value, values[key].double())
    assert all(tensor.dtype == torch.float64 for tensor in pe.buffers())


@pytest.mark.parametrize("parameters", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_output_has_the_dtype_of_the_tokens(name, dtype, parameters):
    assert all(t.dtype == dtype for t in _output(build(name, dtype=parameters), dtype))


@pytest.mark.parametrize("name", ROTARY)
def test_queries_and_keys_may_differ_in_dtype(name):
    pe = build(name, jitter=0.1, block_size=8, dtype=torch.float32)
    q, k = draw(1, 2, 12, 16, seed=1, dtype=torch.float32), draw(1, 2, 12, 16, seed=2)
    x = comrope.positions.grid((3, 4))
    rotated = pe(q, k, x)
    assert [t.dtype for t in rotated] == [torch.float32, torch.float64]
    assert_close(scores(rotated[0].double(), rotated[1]), oracle(in_float64(pe), q.double(), k, x.double()), 1e-5)
