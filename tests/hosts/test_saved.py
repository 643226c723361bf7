"""Attached models on disk, of every kind: what comes back, what the libraries read without comrope, and what they must not."""

import copy
import json
import os

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import comrope
from comrope.errors import ConfigurationError, DataError
from comrope.hosts import angle_parameters
from comrope.hosts._description import forget, record
from tests.hosts.helpers import error, images, stirred
from tests.hosts.zoo import LENGTH, ZOO, names

FAMILIES = ("rope-mixed", "comrope-ld")
TIMM = {"img_size": (32, 48), "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
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

keeps_arguments = pytest.mark.skipif(
    not hasattr(timm.models, "get_model_args"), reason="this timm does not keep the arguments of create_model"
)


def _moved(model):
    """With all angles away from where they start."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in angle_parameters(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return model


def _attached(model, name, **settings):
    return _moved(comrope.attach(model, name, **settings))


def _from_zoo(entry, name):
    """A model of the table with an encoding, and the example that it was attached with; skips what takes none."""
    try:
        entry.build()
    except (ImportError, AttributeError) as missing:
        pytest.skip(str(missing))
    example = entry.keywords()
    for block_size in (8, 4, 2) if name.startswith("comrope") else (None,):
        try:
            return _attached(entry.build(), name, block_size=block_size, example=example), example
        except ConfigurationError as refused:
            reason = str(refused)
    pytest.skip(f"attach refuses it: {reason}")


def _same_state(model, other):
    mine, yours = model.state_dict(), other.state_dict()
    assert list(mine) == list(yours)
    for key, value in mine.items():
        assert value.dtype == yours[key].dtype, key
        assert torch.equal(value, yours[key]), key


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("host", names("transformers") + names("diffusers"))
@torch.no_grad()
def test_models_of_transformers_and_diffusers_come_back_bit_for_bit_and_load_without_the_encoding(host, name, tmp_path):
    entry = ZOO[host]
    model, example = _from_zoo(entry, name)
    expected, kind = entry.run(model), type(model)
    comrope.save(model, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    loaded = comrope.load(tmp_path, example=example)
    assert type(loaded) is kind
    assert torch.equal(entry.run(loaded), expected)
    _same_state(loaded, model)

    plain, found = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not [*found["missing_keys"], *found["mismatched_keys"]]
    assert all(".encoding." in key for key in found["unexpected_keys"])
    _same_state(plain.eval(), comrope.detach(model))
    assert torch.equal(entry.run(plain), entry.run(model))


@keeps_arguments
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("host", TIMM_MODELS)
@torch.no_grad()
def test_models_of_timm_come_back_bit_for_bit(host, name, tmp_path):
    settings = TIMM | TIMM_MODELS[host]
    model = _attached(stirred(timm.create_model(host, **settings)), name)
    (x,) = images(settings["img_size"])
    expected = model(x)
    comrope.save(model, tmp_path)
    loaded = comrope.load(tmp_path)
    assert torch.equal(loaded(x), expected)
    _same_state(loaded, model)


@pytest.mark.parametrize("host", ["gemma", "gpt-neox"])
def test_weights_that_are_tied_stay_tied(host, tmp_path):
    entry = ZOO[host]
    model = entry.build()
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (host == "gemma")
    comrope.save(_attached(model, "rope-mixed"), tmp_path)
    loaded = comrope.load(tmp_path)
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied


def test_weights_of_several_dtypes_keep_theirs(tmp_path):
    model = _attached(ZOO["llama"].build(), "rope-mixed").bfloat16()
    model.model.norm.float()
    model.lm_head.half()
    comrope.save(model, tmp_path)
    _same_state(comrope.load(tmp_path), model)


@torch.no_grad()
def test_models_of_diffusers_in_half_precision_come_back_bit_for_bit(tmp_path):
    """With their tables of positions, which no file holds."""
    entry = ZOO["dit"]
    model, example = _from_zoo(entry, "comrope-ld")
    example = example | {"hidden_states": example["hidden_states"].bfloat16()}
    comrope.save(model.bfloat16(), tmp_path)
    loaded = comrope.load(tmp_path)
    _same_state(loaded, model)
    assert torch.equal(loaded(**example).sample, model(**example).sample)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("host", ["vit classifier", "llama", "llava", "dit"])
@torch.no_grad()
def test_folders_that_save_pretrained_wrote_come_back_with_their_angles(host, name, tmp_path):
    entry = ZOO[host]
    model, example = _from_zoo(entry, name)
    expected = entry.run(model)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    for folder in tmp_path.iterdir():
        loaded = comrope.load(folder, example=example)
        assert torch.equal(entry.run(loaded), expected)
        _same_state(loaded, model)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_frozen_models_that_save_pretrained_wrote_come_back_frozen(name, tmp_path):
    entry = ZOO["vit classifier"]
    model = comrope.freeze(_attached(entry.build(), name))
    model.save_pretrained(tmp_path)
    _same_state(comrope.load(tmp_path), model)


class _Images(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 16, 24, generator=generator), "labels": index % 3}


def _trained(model, folder, **optimizer):
    settings = {"max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2}
    arguments = transformers.TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, weight_decay=0.5, **settings
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=_Images(), **optimizer)
    trainer.train()
    return trainer


def test_a_checkpoint_of_trainer_comes_back_with_its_angles(tmp_path):
    pytest.importorskip("accelerate")
    entry = ZOO["vit classifier"]
    model = _attached(entry.build(), "comrope-ld")
    before = {name: angle.detach().clone() for name, angle in angle_parameters(model).items()}
    _trained(model, tmp_path)
    assert all((angle != before[name]).any() for name, angle in angle_parameters(model).items())
    loaded = comrope.load(tmp_path / "checkpoint-2")
    _same_state(loaded, model)
    assert torch.equal(entry.run(loaded), entry.run(model.eval()))


def test_param_groups_in_trainer_keep_decay_from_angles(tmp_path):
    pytest.importorskip("accelerate")
    model = _attached(ZOO["vit classifier"].build(), "comrope-ld")
    angles = {id(angle) for angle in angle_parameters(model).values()}

    def decays(trainer):
        groups = getattr(trainer.optimizer, "optimizer", trainer.optimizer).param_groups
        return {group["weight_decay"] for group in groups if angles & {id(p) for p in group["params"]}}

    assert decays(_trained(copy.deepcopy(model), tmp_path)) == set()  # a copy has parameters of its own
    groups = comrope.param_groups(model, weight_decay=0.5)
    adamw = torch.optim.AdamW, {"params": groups, "lr": 1e-2}
    assert decays(_trained(model, tmp_path, optimizer_cls_and_kwargs=adamw)) == {0.0}


def test_what_was_attached_is_noted_on_the_outermost_configuration_and_taken_out_again():
    entry = ZOO["llava"]
    model = entry.build()
    before = copy.deepcopy(model.config.to_dict())
    model = _attached(model, "rope-mixed", example=entry.keywords())
    assert model.config.comrope["attach"]["name"] == "rope-mixed"
    assert not hasattr(model.config.vision_config, "comrope")
    assert not hasattr(model.config.text_config, "comrope")
    json.dumps(model.config.to_dict())
    forget(comrope.detach(model))
    assert model.config.to_dict() == before
    forget(model)
    forget(nn.Linear(2, 2))


def test_a_folder_that_does_not_say_what_was_attached_is_refused(tmp_path):
    model = ZOO["vit classifier"].build()
    model.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"comrope\.json does not exist, and .*config\.json does not say"):
        comrope.load(tmp_path)
    record(comrope.attach(model, "rope-mixed"))
    model.config.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"encoding\.frequencies' is missing \(2 such keys\)"):
        comrope.load(tmp_path)


def _edited(path, change):
    save_file({change(key): tensor for key, tensor in load_file(path).items()}, path, {"format": "pt"})


@torch.no_grad()
def test_names_of_another_version_are_understood_by_layer(tmp_path):
    entry = ZOO["vit classifier"]
    model = _attached(entry.build(), "comrope-ld")
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
    comrope.save(_attached(ZOO["vit classifier"].build(), "rope-mixed"), tmp_path)
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


@pytest.mark.parametrize("host", ["llama", "dit"])
@torch.no_grad()
def test_folded_weights_are_read_by_comrope_alone(host, tmp_path):
    entry = ZOO[host]
    model, _ = _from_zoo(entry, "comrope-ld")
    comrope.save(model, tmp_path)
    comrope.save(comrope.fold(model), tmp_path)
    for kind in (type(model), *([transformers.AutoModelForCausalLM] if host == "llama" else [])):
        with pytest.raises(OSError, match=r"no file named .*model\.(safetensors|bin)"):
            kind.from_pretrained(tmp_path)
    loaded = comrope.load(tmp_path)
    assert torch.equal(entry.run(loaded), entry.run(model))
    _same_state(loaded, model)
    comrope.save(_attached(entry.build(), "comrope-ld"), tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    assert "folded" not in weights.name
    type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("host", ["llama", "vit classifier", "dit"])
@torch.no_grad()
def test_folded_weights_that_save_pretrained_wrote_are_read_by_comrope_alone(host, tmp_path):
    entry = ZOO[host]
    model = comrope.fold(_from_zoo(entry, "comrope-ld")[0])
    for each, folder in ((model, tmp_path / "model"), (copy.deepcopy(model), tmp_path / "copy")):
        each.save_pretrained(folder)
        with pytest.raises(OSError, match=r"no file named .*model\.(safetensors|bin)"):
            type(model).from_pretrained(folder)
        assert torch.equal(entry.run(comrope.load(folder)), entry.run(model))


@keeps_arguments
@pytest.mark.parametrize("more", [{}, {"num_classes": 7}])
@torch.no_grad()
def test_folded_weights_of_timm_are_read_by_comrope_alone(more, tmp_path):
    model = stirred(timm.create_model("vit_tiny_patch16_224", **TIMM))
    comrope.save(comrope.fold(_attached(model, "comrope-ld")), tmp_path)
    with pytest.raises(RuntimeError, match=r"Unknown model .*comrope\.load"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **more)
    _same_state(comrope.load(tmp_path), model)


@torch.no_grad()
def test_positions_of_ones_own_are_given_again(tmp_path):
    entry = ZOO["bert"]
    places = {"positions": torch.linspace(0, 2, LENGTH).unsqueeze(1), "example": entry.keywords()}
    model = _attached(entry.build(), "rope-mixed", **places)
    comrope.save(model, tmp_path)
    with pytest.raises(ConfigurationError, match=r"comrope\.load\(folder, positions=…"):
        comrope.load(tmp_path)
    assert torch.equal(entry.run(comrope.load(tmp_path, **places)), entry.run(model))


class OwnClassifier(transformers.ViTForImageClassification):
    """A user's class, which transformers does not have."""


@torch.no_grad()
def test_a_class_of_ones_own_is_given_again(tmp_path):
    entry = ZOO["vit classifier"]
    model = OwnClassifier(entry.build().config).eval()
    comrope.save(_attached(model, "rope-mixed"), tmp_path)
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
        {"positions": torch.arange(float(LENGTH)).unsqueeze(1), "example": ZOO["torch encoder"].keywords()},
        "TransformerEncoder is no model of timm, transformers or diffusers",
    ),
    "own": (
        ZOO["torch own"].build,
        {"positions": torch.arange(float(LENGTH)).unsqueeze(1), "example": ZOO["torch own"].keywords()},
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
    record(model)  # has nothing to note it on, and does no harm


@keeps_arguments
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "host", ["vit_tiny_patch16_224", "vit_small_patch16_rope_224", "vit_small_patch16_rope_mixed_224"]
)
@torch.no_grad()
def test_exported_models_have_the_dtype_of_the_attached_one(host, dtype):
    model = stirred(timm.create_model(host, **TIMM))
    model = _attached(model, "comrope-ld", prefix="first").to(dtype)
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
