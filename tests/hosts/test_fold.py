"""Folded models: the same logits, plain RoPE, and nothing of comrope if the host's own RoPE can hold the frequencies."""

import copy

import pytest
import torch
from timm.layers import RmsNorm
from torch import nn

import comrope
from comrope import hosts
from comrope.encodings import FixedFrequencies
from comrope.errors import ConfigurationError, NoSpectrumError
from tests.helpers import COMMUTING
from tests.hosts.helpers import (
    ALL_HOSTS,
    FAMILIES,
    ROPE_HOSTS,
    assert_as_before,
    attached,
    block_of,
    error,
    far_scores,
    images,
    snapshot,
    tiny,
)

SIZE = (32, 48)
SAME_LOGITS = 1e-4
HOSTS = [host for host in ALL_HOSTS if host != "qk-norm"]


def _trained(host, family, **settings):
    """A model as after training. Blocks of 2 represent every host's RoPE, but for AP, which starts from zero angles there."""
    start = {"init": "identity"} if family == "comrope-ap" else {}
    size = block_of(family, 2 if host in ROPE_HOSTS and family == "comrope-ld" else 4)
    return attached(tiny(host), family, perturbation=0.3, **start, **size, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("host", HOSTS)
def test_folding_keeps_the_logits(host, family):
    model = _trained(host, family)
    (x,) = images(SIZE)
    expected = model(x)
    assert error(expected, attached(tiny(host), family, **block_of(family, 2), init="identity")(x)) > 1e-2
    assert hosts.fold(model) is model
    assert error(model(x), expected) <= SAME_LOGITS
    own = host in ("mixed", "mixed rope")
    kinds = {type(m).__name__ for m in model.modules() if type(m).__module__.startswith("comrope")}
    if own:
        assert kinds == set()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert "_comrope" not in vars(model)
        assert model.state_dict().keys() == tiny(host).state_dict().keys()
    else:
        encodings = [block.attn.encoding for block in model.blocks]
        assert all(type(e) is FixedFrequencies and e.block_size == 2 for e in encodings)
        assert not any(list(e.parameters()) for e in encodings)
        assert all(block.attn.order is None for block in model.blocks)


@pytest.mark.parametrize("name", COMMUTING)
def test_every_commuting_encoding_folds(name):
    model = attached(tiny("vit"), name, perturbation=0.3)
    (x,) = images(SIZE)
    expected = model(x)
    hosts.fold(model)
    again = copy.deepcopy(model.state_dict())
    assert error(model(x), expected) <= SAME_LOGITS
    hosts.fold(model)
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_folding_at_other_sizes_in_other_copies():
    model = _trained("vit", "comrope-ld")
    x, y = images((48, 32), (16, 64))
    expected = model(x), model(y)
    folded = copy.deepcopy(hosts.fold(model))
    assert error(folded(x), expected[0]) <= SAME_LOGITS
    assert error(folded(y), expected[1]) <= SAME_LOGITS
    with pytest.raises(ConfigurationError, match="folded into its weights"):
        hosts.detach(folded)


@pytest.mark.parametrize(("host", "layers"), [("vit", [1]), ("mixed", [0]), ("dinov3", [1])])
def test_folding_some_layers(host, layers):
    model = _trained(host, "comrope-mt", layers=layers)
    (x,) = images(SIZE)
    expected = model(x)
    assert error(hosts.fold(model)(x), expected) <= SAME_LOGITS


def test_a_model_without_its_ape_stays_without():
    model = _trained("mixed", "comrope-mt", keep_ape=False)
    (x,) = images(SIZE)
    expected = model(x)
    assert error(hosts.fold(model)(x), expected) <= SAME_LOGITS
    assert model.pos_embed is None


REFUSED = {
    "LieRE": (
        lambda: attached(tiny("vit"), "liere", init="normal"),
        NoSpectrumError,
        "blocks.0.attn: .*do not commute",
    ),
    "norms": (lambda: _trained("qk-norm", "comrope-mt"), ConfigurationError, "LayerNorm.*does not commute.*rope-mixed"),
    "what wraps a projection": (
        lambda: _with(Wrapper, _trained("vit", "comrope-ld")),
        ConfigurationError,
        "blocks.1.attn: .*Wrapper, not a plain nn.Linear.*merge",
    ),
    "more than its weights in a projection": (
        lambda: _with(Adapter, _trained("vit", "comrope-ld")),
        ConfigurationError,
        "folded the model's outputs differ",
    ),
    "nothing attached": (lambda: tiny("vit"), ConfigurationError, "no encoding attached"),
}


class Wrapper(nn.Module):
    """Wraps a projection as a LoRA layer does."""

    def __init__(self, linear):
        super().__init__()
        self.base_layer = linear

    def forward(self, x):
        return self.base_layer(x)


class Own(nn.Linear):
    """A user's subclass that does the same as any linear layer."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.load_state_dict(linear.state_dict())


class Adapter(Own):
    """A user's subclass that does something else."""

    def forward(self, x):
        return super().forward(x) + x.tile(3)


def _with(kind, model):
    model.blocks[1].attn.qkv = kind(model.blocks[1].attn.qkv)
    return model


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_fold_says_why_and_stays_as_it_was(case):
    make, kind, message = REFUSED[case]
    model = make()
    (x,) = images(SIZE)
    expected = model(x)  # in this pass the module that replaced a projection is hooked
    before = snapshot(model)
    with pytest.raises(kind, match=message):
        hosts.fold(model)
    assert_as_before(model, before)
    assert torch.equal(model(x), expected)


def test_linear_layers_of_a_user_fold_like_torchs_own():
    model = _with(Own, _trained("vit", "comrope-ld"))
    (x,) = images(SIZE)
    expected = model(x)
    assert error(hosts.fold(model)(x), expected) <= SAME_LOGITS


@pytest.mark.parametrize("half", [False, True])
def test_norms_with_weights_are_no_obstacle_without_a_basis(half):
    """Nor is the feature order of the host's RoPE, which then stays at run time."""
    model = tiny("cat", qk_norm=True, rope_rotate_half=half)
    hosts.attach(model, "rope-mixed")
    (x,) = images(SIZE)
    expected = model(x)
    hosts.fold(model)
    assert torch.equal(model(x), expected)
    assert all((block.attn.order is not None) == half for block in model.blocks)


def test_norms_that_commute_with_every_basis_are_none():
    model = tiny("qk-norm")
    for block in model.blocks:
        block.attn.q_norm, block.attn.k_norm = RmsNorm(16, affine=False), nn.RMSNorm(16, elementwise_affine=False)
    hosts.attach(model, "comrope-mt", init="normal")
    (x,) = images(SIZE)
    expected = model(x)
    assert error(hosts.fold(model)(x), expected) <= SAME_LOGITS


def test_folded_rope_runs_at_a_casts_precision():
    model = _trained("vit", "comrope-mt")
    reference = copy.deepcopy(model).double()
    (x,) = images(SIZE)
    hosts.fold(model.double())
    assert error(model(x.double()), reference(x.double())) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("distance", [8_000, 1_000_000])
@pytest.mark.parametrize("change", [hosts.fold, comrope.freeze], ids=["folded", "frozen"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("host", ["vit", "grouped"])
def test_scores_stay_right_however_far(host, family, change, distance):
    """Rounding frequencies to float32 would change scores by 1e-4 at 8,000 patches, and by 1e-2 at a million."""
    model = _trained(host, family)
    expected = far_scores(model, distance)
    exact = far_scores(copy.deepcopy(model).double(), distance)
    found = far_scores(change(model), distance)
    assert error(found, expected) < 1e-6
    assert error(found, exact) < 1e-6


def test_frequencies_are_float64_whatever_the_folded_model_is_cast_to():
    model = _trained("vit", "comrope-ld")
    expected = [block.attn.encoding.spectrum().frequencies.flatten(2) for block in model.blocks]
    assert not any(torch.equal(f, f.float().double()) for f in expected)
    hosts.fold(model)
    for cast in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        model.to(cast)
        found = [block.attn.encoding.frequencies for block in model.blocks]
        assert all(torch.equal(ours.flatten(2), theirs) for ours, theirs in zip(found, expected, strict=True))


def test_frequencies_in_the_host_s_own_rope_are_rounded_once():
    model = _trained("mixed", "comrope-ld")
    expected = torch.stack([block.attn.encoding.spectrum().frequencies.flatten(2) for block in model.blocks], dim=1)
    assert torch.equal(hosts.fold(model).rope.freqs.flip(0), expected.float())  # axes (column, row) there


@pytest.mark.slow
@pytest.mark.compile
def test_folded_models_compile_and_export():
    torch._dynamo.reset()
    model = hosts.fold(_trained("dinov2", "comrope-ld"))
    (x,) = images(SIZE)
    expected = model(x)
    assert error(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected) <= 1e-5
    assert error(torch.export.export(model, (x,)).module()(x), expected) <= 1e-5
