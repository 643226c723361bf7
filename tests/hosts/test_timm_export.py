"""Exported models: stock timm, built and loaded by timm alone, with the same logits."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.eva import Eva

from comrope import hosts
from comrope.errors import ConfigurationError, NoSpectrumError
from comrope.hosts import export_timm
from tests.hosts.helpers import assert_as_before, attached, block_of, error, images, randomise_weights, snapshot, tiny

SIZE = (32, 48)
SAME_LOGITS = 1e-4
FIRST = {"prefix": "first"}

VITS = {
    "class token": ("vit", {}, FIRST),
    "no prefix": ("vit", {"class_token": False, "global_pool": "avg"}, {}),
    "no ape": ("vit", {}, FIRST | {"keep_ape": False}),
    "one layer": ("vit", {}, FIRST | {"layers": [1]}),
    "registers and layer scale": ("dinov2", {}, FIRST),
    "attention pool": ("siglip", {}, {}),
    "norm before the blocks": ("clip", {"norm_layer": "layernorm"}, FIRST),
    "no biases": ("vit", {"qkv_bias": False, "proj_bias": False}, FIRST),
    "norms inside": ("vit", {"scale_attn_norm": True, "scale_mlp_norm": True, "mlp_ratio": 2.7}, FIRST),
}
EVAS = {
    "eva02_tiny_patch14_224": {"img_size": (28, 42)},
    "vit_small_patch16_rope_224": {"img_size": (32, 48)},
    "vit_small_patch16_rope_mixed_ape_224": {"img_size": (32, 48)},
}


def _through_safetensors(exported, folder, x):
    """Returns the logits of the saved model, loaded by timm in a process that does not import comrope."""
    timm.models.save_for_hf(exported, folder, safe_serialization=True)
    save_file({"x": x}, folder / "x.safetensors")
    code = (
        "import sys, json, timm; from safetensors.torch import load_file; folder = sys.argv[1]; "
        "model = timm.create_model('local-dir:' + folder, pretrained=True).eval(); "
        "print(json.dumps(model(load_file(folder + '/x.safetensors')['x']).tolist())); "
        "assert not any(name.startswith('comrope') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return torch.tensor(json.loads(done.stdout))


@pytest.mark.parametrize("case", VITS)
def test_vision_transformers(case):
    host, settings, how = VITS[case]
    model = attached(tiny(host, **settings), "comrope-ld", init="normal", std=0.5, **how)
    (x,) = images(SIZE)
    before, expected = snapshot(model), model(x)
    exported = export_timm(model)
    assert type(exported) is Eva
    assert error(exported(x), expected) <= SAME_LOGITS
    assert_as_before(model, before)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("family", ["rope-mixed", "string", "comrope-ap", "comrope-mt"])
def test_every_family(family):
    model = attached(tiny("vit"), family, init="normal", std=0.5, prefix="first")
    (x,) = images(SIZE)
    assert error(export_timm(model)(x), model(x)) <= SAME_LOGITS


@pytest.mark.parametrize("architecture", EVAS)
def test_evas_of_timms_factory(architecture):
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = randomise_weights(timm.create_model(architecture, **small, **EVAS[architecture]))
    start = model(images(EVAS[architecture]["img_size"])[0])
    hosts.attach(model, "comrope-mt")
    with torch.no_grad():
        for parameter in hosts.angle_parameters(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    (x,) = images(EVAS[architecture]["img_size"])
    expected = model(x)
    assert error(expected, start) > 1e-2
    exported = export_timm(model)
    assert type(exported) is Eva
    assert error(exported(x), expected) <= SAME_LOGITS


@pytest.mark.slow
def test_timm_alone_loads_it(tmp_path):
    model = attached(tiny("clip"), "comrope-ld", init="normal", std=0.5, prefix="first")
    (x,) = images(SIZE)
    assert error(_through_safetensors(export_timm(model), tmp_path, x), model(x)) <= SAME_LOGITS


REFUSED = {
    "a class token in the middle": ("vit", {}, {}, ConfigurationError, "sit at .*0.5, 0.5.*attach with prefix='first'"),
    "centred coordinates": ("dinov3", {}, {}, ConfigurationError, "does not know its own arguments"),
    "another activation": ("vit", {"act_layer": "quick_gelu"}, FIRST, ConfigurationError, "QuickGELU"),
    "another norm": ("vit", {"norm_layer": "rmsnorm"}, FIRST, ConfigurationError, "another kind than LayerNorm"),
    "LieRE": ("vit", {}, FIRST | {"name": "liere"}, NoSpectrumError, "do not commute"),
    "norms with weights": ("qk-norm", {}, FIRST, ConfigurationError, "does not commute"),
    "a pool over the prefix": (
        "vit",
        {"global_pool": "avg", "pool_include_prefix": True},
        FIRST,
        ConfigurationError,
        "prefix",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_eva_cannot_express_is_refused(case):
    host, settings, how, kind, message = REFUSED[case]
    how = {"name": "comrope-mt", **how}
    model = attached(tiny(host, **settings), init="normal", **how, **block_of(how["name"], 4))
    before = snapshot(model)
    with pytest.raises(kind, match=message):
        export_timm(model)
    assert_as_before(model, before)


def test_nothing_attached_is_refused():
    with pytest.raises(ConfigurationError, match="no encoding attached"):
        export_timm(tiny("vit"))


def test_an_older_timm_is_refused_by_name(monkeypatch):
    monkeypatch.delattr(timm.models, "get_model_args")
    with pytest.raises(
        ConfigurationError, match=rf"timm {timm.__version__} has no Eva that can hold this: timm 1.0.31 does"
    ):
        export_timm(attached(tiny("vit"), name="rope-mixed"))
