"""Folders without a description, with tensor names of another version, or damaged."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import comrope
from comrope.errors import DataError
from comrope.hosts._saved_settings import write_to_config
from tests.hosts.saved_models import attached
from tests.hosts.zoo import ZOO


def test_a_folder_that_does_not_say_what_was_attached_is_refused(tmp_path):
    model = ZOO["vit classifier"].build()
    model.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"comrope\.json does not exist, and .*config\.json does not say"):
        comrope.load(tmp_path)
    write_to_config(comrope.attach(model, "rope-mixed"))
    model.config.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"encoding\.frequencies' is missing \(2 such keys\)"):
        comrope.load(tmp_path)


def _edited(path, change):
    save_file({change(key): tensor for key, tensor in load_file(path).items()}, path, {"format": "pt"})


@torch.no_grad()
def test_names_of_another_version_are_understood_by_layer(tmp_path):
    entry = ZOO["vit classifier"]
    model = attached(entry.build(), "comrope-ld")
    comrope.save(model, tmp_path)
    inside = "attention.encoding" if transformers.__version__ >= "5" else "attention.attention.encoding"
    _edited(tmp_path / "model.safetensors", lambda key: key.replace(inside, "attention.a_part.encoding"))
    assert torch.equal(entry.run(comrope.load(tmp_path)), entry.run(model))
    _edited(tmp_path / "model.safetensors", lambda key: key.replace("layer.1.attention.a_part", "layer.7.attention"))
    with pytest.raises(DataError, match=r"layers?\.1\..*encoding\.\w+' is missing \(2 such keys\)"):
        comrope.load(tmp_path)


@pytest.mark.parametrize(
    "damage", ["no weights", "half the weights", "no such shard", "another shape", "a weight gone"]
)
def test_damaged_folders_of_transformers_are_refused_by_name(damage, tmp_path):
    comrope.save(attached(ZOO["vit classifier"].build(), "rope-mixed"), tmp_path)
    weights = tmp_path / "model.safetensors"
    message = r"model\.safetensors does not exist"
    if damage == "half the weights":
        weights.write_bytes(weights.read_bytes()[:-100])
        message = r"model\.safetensors is damaged"
    elif damage == "no such shard":
        (tmp_path / f"{weights.name}.index.json").write_text(json.dumps({"weight_map": {"a": "shard-1.safetensors"}}))
        message = r"shard-1\.safetensors does not exist"
    if damage in ("no weights", "no such shard"):
        weights.unlink()
    if damage in ("another shape", "a weight gone"):
        tensors = load_file(weights)
        if damage == "another shape":
            tensors["classifier.bias"] = torch.zeros(9)
            message = r"'classifier\.bias' has another shape"
        else:
            del tensors["classifier.bias"]
            message = r"'classifier\.bias' is missing"
        save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(DataError, match=message):
        comrope.load(tmp_path)


@pytest.mark.parametrize("where", ["", "vision_config", "attn_implementation"])
def test_a_folder_that_asks_for_code_of_a_hub_is_refused(where, tmp_path):
    comrope.save(attached(ZOO["vit classifier"].build(), "rope-mixed"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    asked = {
        "": {"_attn_implementation": "some/kernel"},
        "vision_config": {"vision_config": {"attn_implementation": "some/kernel"}},
    }
    asked["attn_implementation"] = {"attn_implementation": {"": "sdpa", "vision_config": "some/kernel"}}
    (tmp_path / "config.json").write_text(json.dumps(config | asked[where]))
    with pytest.raises(DataError, match=r"attn_implementation 'some/kernel' is code of a hub"):
        comrope.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_implementation": "eager"}))
    comrope.load(tmp_path)


def test_a_folder_that_names_another_as_its_base_is_refused(tmp_path):
    other = attached(ZOO["vit classifier"].build(), "rope-mixed")
    for name in ("other", "crafted"):
        comrope.save(other, tmp_path / name)
    (tmp_path / "crafted" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "other")})
    )
    with pytest.raises(DataError, match=r"adapter_config\.json: an adapter names another folder"):
        comrope.load(tmp_path / "crafted")
