"""Folders that save_pretrained or Trainer wrote, and the description of the encoding in the configuration."""

import copy
import json

import pytest
import torch
import transformers
from torch import nn

import comrope
from comrope.hosts import angle_parameters
from comrope.hosts._saved_settings import remove_from_config
from tests.hosts.saved_models import assert_same_state, attached, attached_from_zoo
from tests.hosts.zoo import ZOO


@pytest.mark.slow
@pytest.mark.parametrize("host", ["vit classifier", "llama", "llava", "dit"])
@torch.no_grad()
def test_folders_that_save_pretrained_wrote_come_back_with_their_angles(host, tmp_path):
    entry = ZOO[host]
    model, example = attached_from_zoo(entry, "comrope-ld")
    expected = entry.run(model)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    for folder in tmp_path.iterdir():
        loaded = comrope.load(folder, example=example)
        assert torch.equal(entry.run(loaded), expected)
        assert_same_state(loaded, model)


@pytest.mark.parametrize("name", ["rope-mixed", "comrope-ld"])
@torch.no_grad()
def test_frozen_models_that_save_pretrained_wrote_come_back_frozen(name, tmp_path):
    entry = ZOO["vit classifier"]
    model = comrope.freeze(attached(entry.build(), name))
    model.save_pretrained(tmp_path)
    assert_same_state(comrope.load(tmp_path), model)


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
    model = attached(entry.build(), "comrope-ld")
    before = {name: angle.detach().clone() for name, angle in angle_parameters(model).items()}
    _trained(model, tmp_path)
    assert all((angle != before[name]).any() for name, angle in angle_parameters(model).items())
    loaded = comrope.load(tmp_path / "checkpoint-2")
    assert_same_state(loaded, model)
    assert torch.equal(entry.run(loaded), entry.run(model.eval()))


def test_param_groups_in_trainer_keep_decay_from_angles(tmp_path):
    pytest.importorskip("accelerate")
    model = attached(ZOO["vit classifier"].build(), "comrope-ld")
    angles = {id(angle) for angle in angle_parameters(model).values()}

    def decays(trainer):
        groups = getattr(trainer.optimizer, "optimizer", trainer.optimizer).param_groups
        return {group["weight_decay"] for group in groups if angles & {id(p) for p in group["params"]}}

    assert decays(_trained(copy.deepcopy(model), tmp_path)) == set()  # a copy has parameters of its own
    groups = comrope.param_groups(model, weight_decay=0.5)
    adamw = torch.optim.AdamW, {"params": groups, "lr": 1e-2}
    assert decays(_trained(model, tmp_path, optimizer_cls_and_kwargs=adamw)) == {0.0}


def test_the_encoding_is_described_in_the_outermost_configuration_and_removed_again():
    entry = ZOO["llava"]
    model = entry.build()
    before = copy.deepcopy(model.config.to_dict())
    model = attached(model, "rope-mixed", example=entry.keywords())
    assert model.config.comrope["attach"]["name"] == "rope-mixed"
    assert not hasattr(model.config.vision_config, "comrope")
    assert not hasattr(model.config.text_config, "comrope")
    json.dumps(model.config.to_dict())
    remove_from_config(comrope.detach(model))
    assert model.config.to_dict() == before
    remove_from_config(model)
    remove_from_config(nn.Linear(2, 2))
