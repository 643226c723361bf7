"""The training loop, on a few digits and a model of a few thousand parameters."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from comrope.lab.data import Images, digits
from comrope.lab.train import Recipe, train
from comrope.lab.vit import ViT

RECIPE = Recipe(image_size=(8, 12), epochs=2, batch_size=16, learning_rate=3e-3, seed=5)


@pytest.fixture(scope="module")
def images() -> Images:
    whole = digits()[0]
    return Images(whole.pixels[:100], whole.labels[:100], whole.classes)


def _model(name: str = "comrope-ld") -> ViT:
    torch.manual_seed(0)
    return ViT(name, (8, 12), patch_size=4, in_chans=1, num_classes=10, embed_dim=32, depth=1, num_heads=2, mlp_ratio=2)


def _trained(images: Images, recipe: Recipe, name: str = "comrope-ld") -> tuple[dict, list[dict]]:
    model = _model(name)
    history = train(model, images, recipe)
    return model.state_dict(), history


def _equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_loss_falls(images):
    few = Images(images.pixels[:48], images.labels[:48], images.classes)
    history = train(_model(), few, replace(RECIPE, epochs=30, learning_rate=1e-2))
    assert [row["epoch"] for row in history] == list(range(1, 31))
    assert history[0]["loss"] == pytest.approx(math.log(10), abs=0.4)
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert history[-1]["accuracy"] > history[0]["accuracy"] + 0.3
    assert all(0 <= row["accuracy"] <= 1 for row in history)


def test_same_seed_gives_the_same_weights_and_history(images):
    weights, history = _trained(images, RECIPE)
    torch.manual_seed(77)
    model = _model()
    torch.manual_seed(78)  # all draws come from the recipe's seed, none from torch's own generator
    assert train(model, images, RECIPE) == history
    assert _equal(model.state_dict(), weights)


def test_another_seed_gives_others(images):
    weights, history = _trained(images, RECIPE)
    others, other_history = _trained(images, replace(RECIPE, seed=6))
    assert other_history != history
    assert not any(torch.equal(weights[k], others[k]) for k in weights if k.endswith("weight"))


def test_perturbation_moves_the_positions(images):
    """Without crops and within one epoch the images come the same: only a model that sees positions can tell."""
    still = replace(RECIPE, epochs=1, enlargement=1.0, perturbation=0.0)
    moving = replace(still, perturbation=1.0)
    assert _equal(_trained(images, still, "none")[0], _trained(images, moving, "none")[0])
    assert not _equal(_trained(images, still)[0], _trained(images, moving)[0])


def test_crops_are_of_the_enlarged_images(images):
    plain, cropped = (replace(RECIPE, epochs=1, perturbation=0.0, enlargement=e) for e in (1.0, 1.3))
    assert not _equal(_trained(images, plain)[0], _trained(images, cropped)[0])


def test_trains_in_place_every_parameter_and_ends_in_eval_mode(images):
    model = _model()
    before = copy.deepcopy(model.state_dict())
    modes = []
    train(model, images, RECIPE, lambda done, total: modes.append(model.training))
    assert all(modes)
    assert not any(m.training for m in model.modules())
    assert not any(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_after_step_counts_the_steps(images):
    calls = []
    train(_model("none"), images, replace(RECIPE, epochs=3), lambda done, total: calls.append((done, total)))
    assert calls == [(step, 18) for step in range(1, 19)]  # 100 images make 6 whole batches of 16


def test_learning_rate_warms_up_and_falls_to_nothing_as_a_cosine(images):
    rates, decays = [], set()

    def read(optimizer, *_):
        rates.append(optimizer.param_groups[0]["lr"])
        decays.update(group["weight_decay"] for group in optimizer.param_groups)

    hook = register_optimizer_step_pre_hook(read)
    try:
        train(_model("none"), images, replace(RECIPE, epochs=4, warmup=0.25, weight_decay=0.02))
    finally:
        hook.remove()
    warm, total, peak = 6, 24, RECIPE.learning_rate
    assert len(rates) == total
    assert rates[warm] == max(rates) == pytest.approx(peak)
    assert np.diff(rates[: warm + 1]) == pytest.approx(np.full(warm, rates[1] - rates[0]))
    cosine = [peak * (1 + math.cos(math.pi * step / (total - warm))) / 2 for step in range(total - warm)]
    assert rates[warm:] == pytest.approx(cosine, abs=1e-9)
    assert decays == {0.0, 0.02}
