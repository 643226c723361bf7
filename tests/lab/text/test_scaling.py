"""Language models whose frequencies are scaled: transformers' own logits, and those at positions in between."""

import pytest
import torch

import comrope
from comrope.errors import ConfigurationError
from comrope.lab.text.export import export
from comrope.lab.text.model import llama, with_encoding
from comrope.lab.text.scaling import scaled
from comrope.lab.text.untrained import random_bytes, untrained_model

BASE = 10000.0
LEARNED = ("rope-mixed", "string", "comrope-ld", "comrope-mt")


@pytest.mark.parametrize(
    ("encoding", "gap"), [("rope", 0), *((name, gap) for name in LEARNED for gap in (0, 1_000_000))]
)
def test_linear_scaling_is_reading_at_positions_between(encoding, gap):
    """Far out too, but for transformers' own RoPE, whose phases are float32."""
    model = untrained_model(encoding, 64)
    tokens, places = random_bytes(128), (torch.arange(128) + gap * (torch.arange(128) >= 64)).unsqueeze(0)
    with torch.no_grad():
        found = scaled(model, "linear", 128)(tokens, position_ids=places).logits
        squeezed = model(tokens, position_ids=places / 2).logits
    torch.testing.assert_close(found, squeezed, rtol=1e-4, atol=1e-4)


ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "ntk": {"rope_type": "dynamic", "factor": 1.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "truncate": False},
}


@pytest.mark.parametrize("method", ROPES)
@pytest.mark.parametrize("encoding", ["rope", "comrope-ld"])
def test_a_scaled_model_is_transformers_scaled_model(encoding, method):
    parameters = {"rope_theta": BASE, "original_max_position_embeddings": 64, **ROPES[method]}
    expected = llama("small", 64, initializer_range=0.1, rope_parameters=parameters).eval()
    model = with_encoding(llama("small", 64, initializer_range=0.1), encoding).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = scaled(model, method, 256)
    with torch.no_grad():
        logits = found(random_bytes(256)).logits
        torch.testing.assert_close(logits, expected(random_bytes(256)).logits, rtol=1e-3, atol=2e-4)
        assert (logits - model(random_bytes(256)).logits).abs().max() > 0.02
        torch.testing.assert_close(export(found)(random_bytes(256)).logits, logits, rtol=1e-3, atol=2e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert comrope.check(found).holds


def test_scaling_that_does_nothing_or_is_unknown():
    model = untrained_model("comrope-mt", 32)
    assert scaled(model, "none", 128) is model and scaled(model, "yarn", 32) is model
    with pytest.raises(ConfigurationError, match="method='longrope': expected one of"):
        scaled(model, "longrope", 64)
