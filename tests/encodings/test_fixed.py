"""Frozen angles: the same rotation, with nothing to learn."""

import pytest
import torch
from torch import nn

import comrope
from comrope.encodings import FixedSpectrum
from comrope.errors import InputError, NoSpectrumError
from tests.helpers import LEARNED, SPECTRAL, assert_close, build, call, draw


@pytest.mark.parametrize("name", SPECTRAL)
def test_a_frozen_encoding_turns_as_it_did(name):
    pe = build(name, stir=0.2, block_size=8)
    q, k, x = draw(3, 4, 5, 16), draw(3, 2, 5, 16, seed=1), draw(5, 2)
    fixed = comrope.freeze(pe)
    assert isinstance(fixed, FixedSpectrum) == (name in LEARNED)
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


def test_frozen_angles_stay_precise_under_a_cast():
    fixed = comrope.freeze(build("comrope-ld", block_size=8)).bfloat16()
    assert fixed.basis.dtype == fixed.frequencies.dtype == torch.float64


def test_what_cannot_be_frozen_leaves_the_model_as_it_is():
    model = nn.ModuleList([build("comrope-ld", block_size=8), build("liere")])
    with pytest.raises(NoSpectrumError):
        comrope.freeze(model)
    assert [type(m).__name__ for m in model] == ["ComRoPELD", "LieRE"]
    with pytest.raises(InputError, match="no rotary encoding"):
        comrope.freeze(nn.Linear(2, 2))
