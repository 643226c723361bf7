"""Rivals against the modules of timm, transformers and diffusers that implement them."""

import pytest
import torch
from torch import Tensor

import comrope
from comrope.rivals import convert
from tests.helpers import assert_close, draw, scores
from tests.rivals.cases import make

GRID = (3, 5)


def _positions(centred=False) -> Tensor:
    x = comrope.positions.grid(GRID, relative=False, centre=False, dtype=torch.float64)
    return x - (torch.tensor(GRID) - 1) / 2 if centred else x


def _phases(pe, x: Tensor) -> Tensor:
    """Returns the phases of one head, (L, D/2)."""
    return pe.rotation(x).phases[0][:, 0]


def _assert_turns(phases: Tensor, cos: Tensor, sin: Tensor, tolerance=1e-5):
    assert_close(cos, phases.cos(), tolerance)
    assert_close(sin, phases.sin(), tolerance)


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm.layers.pos_embed_sincos")


def test_rope_vits_axial_rope_is_timms(timm):
    theirs = timm.RotaryEmbeddingCat(16, in_pixels=False, temperature=100.0, grid_indexing="xy")
    sin, cos = theirs.get_embed(GRID).chunk(2, dim=-1)
    _assert_turns(_phases(make("rope-vit-axial"), _positions()), cos[:, ::2], sin[:, ::2])


def test_rope_vits_mixed_start_has_the_speeds_of_timms(timm):
    """Both draw an angle, from generators that differ; the planes of either are axial RoPE, turned by it, in one sense."""
    theirs = timm.init_random_2d_freqs(16, 1, 2, temperature=10.0)  # (column and row, 1, H, D/2)
    ours = convert.TimmMixedFreqs().write(make("rope-vit-mixed").spectrum().frequencies.flatten(2).unsqueeze(0))
    for each in (theirs.double(), ours):
        first, second = each.chunk(2, dim=-1)
        speeds = 10.0 ** -(torch.arange(4).double() / 4)
        assert_close(first.norm(dim=0), speeds.expand(1, 2, 4), 1e-6)
        assert_close(second, torch.stack((-first[1], first[0])), 1e-6)  # a quarter turn from the first


@pytest.mark.parametrize("periods", [{}, {"min_period": 0.5, "max_period": 20.0, "temperature": None}], ids=str)
def test_dinov3s_rope_is_timms(timm, periods):
    theirs = timm.RotaryEmbeddingDinoV3(16, **periods)
    sin, cos = theirs.get_embed(GRID).chunk(2, dim=-1)
    two_pi = 2 * torch.pi
    speeds = {"max_frequency": two_pi / 0.5, "min_frequency": two_pi / 20} if periods else {"max_frequency": two_pi}
    x = 2 * comrope.positions.grid(GRID, dtype=torch.float64) - 1  # theirs: centres in [−1, 1]
    _assert_turns(_phases(make("dinov3-rope", **speeds), x), cos[:, :8], sin[:, :8])


def test_m_rope_on_images_is_timms(timm):
    if not hasattr(timm, "RotaryEmbeddingMRope"):
        pytest.skip("this timm has no RotaryEmbeddingMRope")
    theirs = timm.RotaryEmbeddingMRope(16, mrope_section=(4, 2, 2))
    sin, cos = theirs.get_embed(GRID).chunk(2, dim=-1)
    pe = make("m-rope", layout="interleaved", sections=(4, 2, 2), base=10000.0)
    _assert_turns(_phases(pe, _positions()), cos[:, :8], sin[:, :8])


QWEN = {
    "qwen2_vl": ("Qwen2VLTextConfig", "Qwen2VLRotaryEmbedding", {"layout": "chunked", "sections": (16, 24, 24)}),
    "qwen3_vl": (
        "Qwen3VLTextConfig",
        "Qwen3VLTextRotaryEmbedding",
        {"layout": "interleaved", "sections": (24, 20, 20)},
    ),
}


@pytest.mark.parametrize("model", QWEN)
def test_m_rope_is_that_of_qwen(model):
    pytest.importorskip("transformers")
    config_name, module_name, settings = QWEN[model]
    configuration = pytest.importorskip(f"transformers.models.{model}.configuration_{model}")
    modeling = pytest.importorskip(f"transformers.models.{model}.modeling_{model}")
    kind = getattr(modeling, module_name, None)
    if kind is None or not hasattr(kind, "recomposition_frequencies"):
        pytest.skip("in this transformers the sections are applied elsewhere")
    config = getattr(configuration, config_name)(
        hidden_size=256, num_attention_heads=2, num_key_value_heads=2, head_dim=128
    )
    theirs = kind(config)
    x = comrope.positions.grid((2, *GRID), relative=False, centre=False, dtype=torch.float64)
    x = torch.cat((torch.arange(4).double().unsqueeze(-1).expand(4, 3), 4 + x))  # text, then a vision block
    cos, sin = theirs(torch.zeros(1, dtype=torch.float64), x.T.unsqueeze(1).long())
    base = config.rope_parameters["rope_theta"]
    pe = make("m-rope", num_axes=3, head_dim=128, base=base, **settings)
    _assert_turns(_phases(pe, x), cos[0, :, :64].double(), sin[0, :, :64].double())
    assert pe.frequencies.equal(
        make("m-rope", num_axes=3, head_dim=128, base=base, layout=settings["layout"]).frequencies
    )


def test_partial_rope_is_that_of_gpt_neox():
    neox = pytest.importorskip("transformers.models.gpt_neox.modeling_gpt_neox")
    config = pytest.importorskip("transformers").GPTNeoXConfig(hidden_size=64, num_attention_heads=2)
    theirs = neox.GPTNeoXRotaryEmbedding(config)
    if getattr(theirs, "inv_freq", torch.zeros(0)).numel() != 4:
        pytest.skip("in this transformers the share of features is set elsewhere")
    positions = torch.arange(9).unsqueeze(0)
    cos, sin = theirs(torch.zeros(1, dtype=torch.float64), positions)
    pe = make("partial-rope", num_axes=1, head_dim=32)
    phases = _phases(pe, comrope.positions.sequence(9, dtype=torch.float64))
    _assert_turns(phases[:, :4], cos[0, :, :4].double(), sin[0, :, :4].double())
    q, k = draw(1, 2, 9, 32), draw(1, 2, 9, 32, seed=1)
    expected = scores(*neox.apply_rotary_pos_emb(q, k, cos.double(), sin.double()))
    order = torch.cat((torch.arange(8).view(2, 4).T.flatten(), torch.arange(8, 32)))
    found = scores(*pe(q[..., order], k[..., order], comrope.positions.sequence(9)))
    assert_close(found, expected, 1e-6)


def test_p_rope_is_the_proportional_rope_of_transformers():
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    compute = utils.ROPE_INIT_FUNCTIONS.get("proportional")
    if compute is None:
        pytest.skip("this transformers has no proportional RoPE")
    rope = {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": 0.6}
    config = pytest.importorskip("transformers").LlamaConfig(
        hidden_size=64, num_attention_heads=2, rope_parameters=rope
    )
    inverse, _ = compute(config, torch.device("cpu"))
    pe = make("p-rope", num_axes=1, head_dim=32, fraction=0.6)
    assert_close(pe.frequencies[0, 0].flatten(), inverse.double(), 1e-6)


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
def test_mochis_rope_is_that_of_diffusers():
    mochi = pytest.importorskip("diffusers.models.transformers.transformer_mochi")
    pe = make("mochi-rope", num_axes=3)
    theirs = torch.randn(3, 2, 8)
    omega = convert.MochiPosFrequencies(GRID).read(theirs)[0]
    pe.set_spectrum(None, omega.double().unsqueeze(-1))
    x = comrope.positions.grid((2, *GRID), relative=False, centre=False, dtype=torch.float64)
    x[:, 1:] -= (torch.tensor(GRID) - 1) / 2
    cos, sin = mochi.MochiRoPE()(theirs, 2, *GRID, dtype=torch.float32)
    phases = pe.rotation(x).phases[0]
    _assert_turns(phases, cos.double(), sin.double(), 1e-4)  # phases of hundreds, in float32
