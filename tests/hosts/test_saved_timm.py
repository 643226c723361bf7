"""Saved models of timm: loaded bit for bit, not readable by timm when folded, exported in their dtype."""

import copy

import pytest
import timm
import torch

import comrope
from tests.hosts.helpers import error, images, randomise_weights
from tests.hosts.saved_models import TIMM, assert_same_state, attached, keeps_arguments

TIMM_MODELS = {
    "vit_tiny_patch16_224": {"dynamic_img_size": True},
    "vit_small_patch14_dinov2": {"img_size": (28, 42)},
    "vit_base_patch16_siglip_224": {},
    "deit3_small_patch16_224": {},
    "eva02_tiny_patch14_224": {"img_size": (28, 42)},
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_rope_mixed_224": {},
    "vit_small_patch16_dinov3": {},
}


@pytest.mark.slow
@keeps_arguments
@pytest.mark.parametrize("host", TIMM_MODELS)
@torch.no_grad()
def test_models_of_timm_come_back_bit_for_bit(host, tmp_path):
    settings = TIMM | TIMM_MODELS[host]
    model = attached(randomise_weights(timm.create_model(host, **settings)), "comrope-ld")
    (x,) = images(settings["img_size"])
    expected = model(x)
    comrope.save(model, tmp_path)
    loaded = comrope.load(tmp_path)
    assert torch.equal(loaded(x), expected)
    assert_same_state(loaded, model)


@keeps_arguments
@pytest.mark.parametrize("more", [{}, {"num_classes": 7}])
@torch.no_grad()
def test_folded_weights_of_timm_are_read_by_comrope_alone(more, tmp_path):
    model = randomise_weights(timm.create_model("vit_tiny_patch16_224", **TIMM))
    comrope.save(comrope.fold(attached(model, "comrope-ld")), tmp_path)
    with pytest.raises(RuntimeError, match=r"Unknown model .*comrope\.load"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **more)
    assert_same_state(comrope.load(tmp_path), model)


@keeps_arguments
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "host", ["vit_tiny_patch16_224", "vit_small_patch16_rope_224", "vit_small_patch16_rope_mixed_224"]
)
@torch.no_grad()
def test_exported_models_have_the_dtype_of_the_attached_one(host, dtype):
    model = randomise_weights(timm.create_model(host, **TIMM))
    model = attached(model, "comrope-ld", prefix="first").to(dtype)
    exported = comrope.export_timm(model)
    assert type(exported).__module__ == "timm.models.eva"
    for name, parameter in exported.named_parameters():
        exact = name == "rope.freqs" and dtype == torch.bfloat16
        assert parameter.dtype == (torch.float32 if exact else dtype), name
    (x,) = images(TIMM["img_size"])
    logits = exported(x.to(dtype))
    assert logits.dtype == dtype
    assert error(logits.double(), model(x.to(dtype)).double()) <= (0.05 if dtype == torch.bfloat16 else 1e-5)
    frequencies = comrope.export_timm(copy.deepcopy(model).double()).rope.freqs
    assert error(exported.rope.freqs.double(), frequencies) <= 1e-6 * frequencies.abs().max().item()
