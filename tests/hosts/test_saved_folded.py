"""Folded weights on disk: only comrope loads them."""

import copy

import pytest
import torch
import transformers

import comrope
from tests.hosts.saved_models import assert_same_state, attached, attached_from_zoo
from tests.hosts.zoo import ZOO


@pytest.mark.parametrize("host", ["llama", "dit"])
@torch.no_grad()
def test_folded_weights_are_read_by_comrope_alone(host, tmp_path):
    entry = ZOO[host]
    model, _ = attached_from_zoo(entry, "comrope-ld")
    comrope.save(model, tmp_path)
    comrope.save(comrope.fold(model), tmp_path)
    for kind in (type(model), *([transformers.AutoModelForCausalLM] if host == "llama" else [])):
        with pytest.raises(OSError, match=r"no file named .*model\.(safetensors|bin)"):
            kind.from_pretrained(tmp_path)
    loaded = comrope.load(tmp_path)
    assert torch.equal(entry.run(loaded), entry.run(model))
    assert_same_state(loaded, model)
    comrope.save(attached(entry.build(), "comrope-ld"), tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    assert "folded" not in weights.name
    type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("host", ["llama", "vit classifier", "dit"])
@torch.no_grad()
def test_folded_weights_that_save_pretrained_wrote_are_read_by_comrope_alone(host, tmp_path):
    entry = ZOO[host]
    model = comrope.fold(attached_from_zoo(entry, "comrope-ld")[0])
    for each, folder in ((model, tmp_path / "model"), (copy.deepcopy(model), tmp_path / "copy")):
        each.save_pretrained(folder)
        with pytest.raises(OSError, match=r"no file named .*model\.(safetensors|bin)"):
            type(model).from_pretrained(folder)
        assert torch.equal(entry.run(comrope.load(folder)), entry.run(model))
