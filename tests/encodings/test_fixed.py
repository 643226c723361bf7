"""comrope.freeze: the same rotation, with constant angles."""

import pytest
import torch
from torch import nn

import comrope
from comrope.encodings import FixedFrequencies, FixedSpectrum
from comrope.errors import InputError, NoSpectrumError
from tests.helpers import LEARNED, SPECTRAL, assert_close, build, call, draw, in_float64


@pytest.mark.parametrize("name", SPECTRAL)
def test_a_frozen_encoding_gives_the_same_scores(name):
    pe = build(name, jitter=0.2, block_size=8)
    q, k, x = draw(3, 4, 5, 16), draw(3, 2, 5, 16, seed=1), draw(5, 2)
    fixed = comrope.freeze(pe)
    kind = type(pe) if name not in LEARNED else FixedFrequencies if name == "rope-mixed" else FixedSpectrum
    assert type(fixed) is kind
    assert_close(call(fixed, q, k, x), call(pe, q, k, x), 1e-12)
    assert_close(fixed.angle_matrices(), pe.angle_matrices(), 1e-12)
    assert not list(fixed.parameters())
    assert comrope.check(fixed).holds


def test_every_encoding_of_a_model_is_frozen_and_gradients_still_reach_the_tokens():
    model = nn.ModuleList([build("comrope-ld", block_size=8), nn.Linear(2, 2), nn.ModuleDict({"pe": build("string")})])
    q = draw(1, 2, 3, 16).requires_grad_()
    assert comrope.freeze(model) is model
    assert [type(m).__name__ for m in model.modules()].count("FixedSpectrum") == 2
    model[0](q, draw(1, 2, 3, 16, seed=1), draw(3, 2))[0].square().sum().backward()
    assert q.grad.abs().max() > 0


CASTS = {
    "float()": lambda m: m.float(),
    "half()": lambda m: m.half(),
    "bfloat16().float()": lambda m: m.bfloat16().float(),
    "to(float32)": lambda m: m.to(torch.float32),
    "to(device, bfloat16)": lambda m: m.to("cpu", torch.bfloat16),
    "type(float32)": lambda m: m.type(torch.float32),
    "double()": lambda m: m.double(),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", ["rope-mixed", "comrope-ld"])
def test_frozen_angles_are_float64_whatever_the_model_is_cast_to(name, cast):
    """They equal the learned encoding's float64 spectrum bit by bit, which float32 could not represent."""
    pe = build(name, block_size=8, dtype=torch.float32)
    basis, frequencies = in_float64(pe).spectrum()
    model = CASTS[cast](nn.ModuleList([comrope.freeze(pe), nn.Linear(2, 2)]))
    expected = {"frequencies": frequencies} | ({} if name == "rope-mixed" else {"basis": basis})
    state = model[0].state_dict()
    assert state.keys() == expected.keys()
    assert model[0].dtype == torch.float64
    for key, value in expected.items():
        assert state[key].dtype == torch.float64
        assert torch.equal(state[key], value)
        assert torch.equal(value, value.float().double()) == (name == "rope-mixed")  # its parameters are float32
    q, k = (draw(1, 2, 3, 16, seed=seed, dtype=torch.float32) for seed in (1, 2))
    assert all(t.dtype == torch.float32 for t in model[0](q, k, draw(3, 2)))


def test_a_failed_freeze_leaves_the_model_unchanged():
    model = nn.ModuleList([build("comrope-ld", block_size=8), build("liere")])
    with pytest.raises(NoSpectrumError):
        comrope.freeze(model)
    assert [type(m).__name__ for m in model] == ["ComRoPELD", "LieRE"]
    with pytest.raises(InputError, match="no rotary encoding"):
        comrope.freeze(nn.Linear(2, 2))


def test_frequencies_are_set_for_all_heads_or_for_each():
    pe = FixedFrequencies(2, 16, 3, 4)
    shared, own = draw(3, 8), draw(3, 2, 8)
    pe.set_frequencies(shared)
    assert torch.equal(pe.spectrum().frequencies.flatten(2), shared.unsqueeze(1).expand(3, 2, 8))
    pe.set_frequencies(own.float())
    assert torch.equal(pe.frequencies, own.float().double().view(3, 2, 4, 2))
    for wrong in (draw(8, 3), draw(2, 3, 8), own.long(), None):
        with pytest.raises(InputError, match=r"frequencies: got .*; expected \(3, 2, 8\), or \(3, 8\) for all heads"):
            pe.set_frequencies(wrong)
    assert torch.equal(pe.frequencies, own.float().double().view(3, 2, 4, 2))
