"""Frequency scaling: transformers' own numbers on vanilla RoPE, and the same in any basis, head and order."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import comrope
from comrope.errors import ConfigurationError
from comrope.lab.text import scaling
from comrope.lab.text.model import llama, with_encoding
from comrope.lab.text.untrained import random_bytes, untrained_model

LENGTH, HEAD_DIM, BASE = 512, 64, 10000.0


def published(length: int = LENGTH, **rope) -> tuple[torch.Tensor, float]:
    """transformers' frequencies and attention factor."""
    rope = {"rope_theta": BASE, "factor": 4.0, "original_max_position_embeddings": length, **rope}
    sizes = {"hidden_size": HEAD_DIM, "num_attention_heads": 1, "head_dim": HEAD_DIM}
    config = LlamaConfig(**sizes, max_position_embeddings=length, rope_parameters=rope)
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", seq_len=4 * length)


def vanilla() -> torch.Tensor:
    return BASE ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)


def close(ours, theirs):
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-6, atol=0)


def test_linear_is_transformers():
    close(scaling.linear(vanilla(), 4.0), published(rope_type="linear")[0])


def test_ntk_is_transformers():
    # dynamic scaling by factor 1 stretches by the length at hand over the trained one, which is s = 4 here
    close(scaling.ntk(vanilla(), 4.0, base=BASE, head_dim=HEAD_DIM), published(rope_type="dynamic", factor=1.0)[0])


@pytest.mark.parametrize("length", [64, 512, 32768])
def test_yarn_is_transformers(length):
    theirs, factor = published(length, rope_type="yarn", truncate=False)
    close(scaling.yarn(vanilla(), 4.0, length=length), theirs)
    assert scaling.temperature("yarn", 4.0) == pytest.approx(factor**2)


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn"])
def test_planes_are_scaled_one_by_one_with_their_sign(method):
    settings = {"linear": {}, "ntk": {"base": BASE, "head_dim": 64}, "yarn": {"length": 256}}[method]
    scale = getattr(scaling, method)
    learned = torch.tensor([3.0, 1.0, 0.3, -0.01, 1e-3, 1e-9, 0.0], dtype=torch.float64)
    scaled = scale(learned, 8.0, **settings)
    assert torch.equal(scale(learned.flip(0), 8.0, **settings).flip(0), scaled)
    assert torch.equal(scaled.sign(), learned.sign())
    ratio = (scaled / learned)[:-1]
    assert (ratio.diff() <= 1e-12).all() and ratio[-1].item() == pytest.approx(1 / 8)
    assert ratio[:2].tolist() == ([0.125, 0.125] if method == "linear" else [1, 1])


LEARNED = ("rope-mixed", "string", "comrope-ld", "comrope-mt")


@pytest.mark.parametrize(
    ("encoding", "gap"), [("rope", 0), *((name, gap) for name in LEARNED for gap in (0, 1_000_000))]
)
def test_linear_scaling_is_reading_at_positions_between(encoding, gap):
    """Far out too, but for transformers' own RoPE, whose phases are float32."""
    model = untrained_model(encoding, 64)
    tokens, places = random_bytes(128), (torch.arange(128) + gap * (torch.arange(128) >= 64)).unsqueeze(0)
    with torch.no_grad():
        scaled = scaling.scaled(model, "linear", 2.0)(tokens, position_ids=places).logits
        squeezed = model(tokens, position_ids=places / 2).logits
    torch.testing.assert_close(scaled, squeezed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}])
@pytest.mark.parametrize("encoding", ["rope", "comrope-ld"])
def test_a_scaled_model_is_transformers_scaled_model(encoding, rope):
    parameters = {"rope_theta": BASE, "original_max_position_embeddings": 64, "truncate": False, **rope}
    expected = llama("small", 64, initializer_range=0.1, rope_parameters=parameters).eval()
    model = with_encoding(llama("small", 64, initializer_range=0.1), encoding).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = scaling.scaled(model, rope["rope_type"], 4.0)
    with torch.no_grad():
        torch.testing.assert_close(
            found(random_bytes(256)).logits, expected(random_bytes(256)).logits, rtol=1e-3, atol=2e-4
        )
        assert (found(random_bytes(256)).logits - model(random_bytes(256)).logits).abs().max() > 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert comrope.check(found).holds


def test_scaling_that_does_nothing_or_is_unknown():
    model = untrained_model("comrope-mt", 32)
    assert scaling.scaled(model, "none", 4.0) is model and scaling.scaled(model, "yarn", 1.0) is model
    for method, factor in (("longrope", 2.0), ("linear", 0.5)):
        with pytest.raises(ConfigurationError, match="expected one of none, linear, ntk, yarn"):
            scaling.scaled(model, method, factor)
