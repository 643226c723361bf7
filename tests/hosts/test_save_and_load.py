"""Saved models of every library: what is loaded is equal bit for bit, and models that cannot be loaded are not saved."""

import os

import pytest
import timm
import torch
import transformers

import comrope
from comrope.errors import ConfigurationError, DataError
from comrope.hosts._saved_settings import write_to_config
from tests.hosts.saved_models import TIMM, assert_same_state, attached, attached_from_zoo
from tests.hosts.zoo import NUM_TOKENS, ZOO, names


@pytest.mark.slow
@pytest.mark.parametrize("host", names("transformers") + names("diffusers"))
@torch.no_grad()
def test_models_of_transformers_and_diffusers_come_back_bit_for_bit_and_load_without_the_encoding(host, tmp_path):
    """With one encoding; tests/hosts/test_files.py has all of them."""
    entry = ZOO[host]
    model, example = attached_from_zoo(entry, "comrope-ld")
    expected, kind = entry.run(model), type(model)
    comrope.save(model, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    loaded = comrope.load(tmp_path, example=example)
    assert type(loaded) is kind
    assert torch.equal(entry.run(loaded), expected)
    assert_same_state(loaded, model)

    plain, found = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not [*found["missing_keys"], *found["mismatched_keys"]]
    assert all(".encoding." in key for key in found["unexpected_keys"])
    assert_same_state(plain.eval(), comrope.detach(model))
    assert torch.equal(entry.run(plain), entry.run(model))


@pytest.mark.parametrize("host", ["gemma", "gpt-neox"])
def test_weights_that_are_tied_stay_tied(host, tmp_path):
    entry = ZOO[host]
    model = entry.build()
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (host == "gemma")
    comrope.save(attached(model, "rope-mixed"), tmp_path)
    loaded = comrope.load(tmp_path)
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied


def test_weights_of_several_dtypes_keep_theirs(tmp_path):
    model = attached(ZOO["llama"].build(), "rope-mixed").bfloat16()
    model.model.norm.float()
    model.lm_head.half()
    comrope.save(model, tmp_path)
    assert_same_state(comrope.load(tmp_path), model)


@torch.no_grad()
def test_models_of_diffusers_in_half_precision_come_back_bit_for_bit(tmp_path):
    """Including buffers with tables of positions, which are in no file."""
    entry = ZOO["dit"]
    model, example = attached_from_zoo(entry, "comrope-ld")
    example = example | {"hidden_states": example["hidden_states"].bfloat16()}
    comrope.save(model.bfloat16(), tmp_path)
    loaded = comrope.load(tmp_path)
    assert_same_state(loaded, model)
    assert torch.equal(loaded(**example).sample, model(**example).sample)


@torch.no_grad()
def test_positions_given_by_the_user_are_given_again(tmp_path):
    entry = ZOO["bert"]
    arguments = {"positions": torch.linspace(0, 2, NUM_TOKENS).unsqueeze(1), "example": entry.keywords()}
    model = attached(entry.build(), "rope-mixed", **arguments)
    comrope.save(model, tmp_path)
    with pytest.raises(ConfigurationError, match=r"comrope\.load\(folder, positions=…"):
        comrope.load(tmp_path)
    assert torch.equal(entry.run(comrope.load(tmp_path, **arguments)), entry.run(model))


class OwnClassifier(transformers.ViTForImageClassification):
    """A user's class, which is not in transformers."""


@torch.no_grad()
def test_a_class_of_the_user_is_given_again(tmp_path):
    entry = ZOO["vit classifier"]
    model = OwnClassifier(entry.build().config).eval()
    comrope.save(attached(model, "rope-mixed"), tmp_path)
    with pytest.raises(DataError, match=r"no 'OwnClassifier', of tests.*kind=…"):
        comrope.load(tmp_path)
    loaded = comrope.load(tmp_path, kind=OwnClassifier)
    assert type(loaded) is OwnClassifier
    assert torch.equal(entry.run(loaded), entry.run(model))


UNSAVED = {
    "a block that is a class": (
        lambda: timm.create_model("vit_tiny_patch16_224", block_fn=timm.models.vision_transformer.Block, **TIMM),
        {},
        r"timm\.create_model was given block_fn=.*register_model",
    ),
    "not by create_model": (ZOO["timm vit"].build, {}, r"make it with timm\.create_model"),
    "torch": (
        ZOO["torch encoder"].build,
        {"positions": torch.arange(float(NUM_TOKENS)).unsqueeze(1), "example": ZOO["torch encoder"].keywords()},
        "TransformerEncoder is no model of timm, transformers or diffusers",
    ),
    "own": (
        ZOO["torch own"].build,
        {"positions": torch.arange(float(NUM_TOKENS)).unsqueeze(1), "example": ZOO["torch own"].keywords()},
        "OwnModel is no model of timm, transformers or diffusers",
    ),
}


@pytest.mark.parametrize("case", UNSAVED)
def test_what_could_not_be_loaded_is_not_saved(case, tmp_path):
    build, settings, message = UNSAVED[case]
    try:
        model = comrope.attach(build(), "rope-mixed", **settings)
    except ConfigurationError as refused:
        pytest.skip(f"attach refuses it: {refused}")
    if case == "a block that is a class" and not hasattr(timm.models, "get_model_args"):
        message = "does not keep the arguments"
    with pytest.raises(ConfigurationError, match=message):
        comrope.save(model, tmp_path / "folder")
    assert not os.listdir(tmp_path)
    write_to_config(model)  # does nothing without a configuration
