"""The training loop, on a few digits and a model of a few thousand parameters."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchvision.transforms.v2.functional import to_pil_image

from comrope.errors import ConfigurationError, DataError
from comrope.lab.data.batches import Batches
from comrope.lab.experiment import Recipe
from comrope.lab.images.config import ImageConfig
from comrope.lab.images.folder import image_folder
from comrope.lab.images.in_memory import Images, digits
from comrope.lab.images.problem import Classification
from comrope.lab.train import train
from comrope.lab.vit import ViT

RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=3e-3, seed=5)
EXPERIMENT = ImageConfig(image_size=(8, 12), recipe=RECIPE)


@pytest.fixture(scope="module")
def images() -> Images:
    whole = digits()[0]
    return Images(whole.pixels[:100], whole.labels[:100], whole.classes)


def _model(name: str = "comrope-ld") -> ViT:
    torch.manual_seed(0)
    return ViT(name, (8, 12), patch_size=4, in_chans=1, num_classes=10, embed_dim=32, depth=1, num_heads=2, mlp_ratio=2)


def _train(
    model: ViT, images: Images, recipe: Recipe = RECIPE, after_step=lambda progress: None, **changes
) -> list[dict]:
    experiment = replace(EXPERIMENT, recipe=recipe, **changes)
    return train(model, Classification(model, images, experiment), recipe, after_step=after_step)


def _trained(images: Images, recipe: Recipe = RECIPE, name: str = "comrope-ld", **changes) -> tuple[dict, list[dict]]:
    model = _model(name)
    history = _train(model, images, recipe, **changes)
    return model.state_dict(), history


def _equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_loss_falls(images):
    few = Images(images.pixels[:48], images.labels[:48], images.classes)
    history = _train(_model(), few, replace(RECIPE, epochs=30, learning_rate=1e-2), image_size=(12, 12))
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
    assert _train(model, images) == history
    assert _equal(model.state_dict(), weights)


def test_another_seed_gives_others(images):
    weights, history = _trained(images, RECIPE)
    others, other_history = _trained(images, replace(RECIPE, seed=6))
    assert other_history != history
    assert not any(torch.equal(weights[k], others[k]) for k in weights if k.endswith("weight"))


def test_perturbation_moves_the_positions(images):
    """Without crops and within one epoch the images come the same: only a model that sees positions can tell."""
    one = replace(RECIPE, epochs=1)
    still, moving = ({"resize_ratio": 1.0, "perturbation": sigma} for sigma in (0.0, 1.0))
    assert _equal(_trained(images, one, "none", **still)[0], _trained(images, one, "none", **moving)[0])
    assert not _equal(_trained(images, one, **still)[0], _trained(images, one, **moving)[0])


def test_crops_are_of_the_enlarged_images(images):
    plain, cropped = (_trained(images, perturbation=0.0, resize_ratio=e)[0] for e in (1.0, 1.3))
    assert not _equal(plain, cropped)


def test_trains_in_place_every_parameter_and_ends_in_eval_mode(images):
    model = _model()
    before = copy.deepcopy(model.state_dict())
    modes = []
    _train(model, images, after_step=lambda progress: modes.append(model.training))
    assert all(modes)
    assert not any(m.training for m in model.modules())
    assert not any(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_after_step_counts_the_steps(images):
    calls = []
    recipe = replace(RECIPE, epochs=3)
    _train(_model("none"), images, recipe, lambda progress: calls.append((progress.step, progress.total)))
    assert calls == [(step, 18) for step in range(1, 19)]  # 100 images make 6 whole batches of 16


def test_learning_rate_warms_up_and_falls_to_nothing_as_a_cosine(images):
    rates, decays = [], set()

    def read(optimizer, *_):
        rates.append(optimizer.param_groups[0]["lr"])
        decays.update(group["weight_decay"] for group in optimizer.param_groups)

    hook = register_optimizer_step_pre_hook(read)
    try:
        _train(_model("none"), images, replace(RECIPE, epochs=4, warmup=0.25, weight_decay=0.02))
    finally:
        hook.remove()
    warm, total, peak = 6, 24, RECIPE.learning_rate
    assert len(rates) == total
    assert rates[warm] == max(rates) == pytest.approx(peak)
    assert np.diff(rates[: warm + 1]) == pytest.approx(np.full(warm, rates[1] - rates[0]))
    cosine = [peak * (1 + math.cos(math.pi * step / (total - warm))) / 2 for step in range(total - warm)]
    assert rates[warm:] == pytest.approx(cosine, abs=1e-9)
    assert decays == {0.0, 0.02}


def test_an_epoch_is_every_image_once_in_a_new_order():
    keys = [key for keys in Batches(100, replace(RECIPE, batch_size=20), 20, 0, 1) for key in keys]
    first, second = ([index for epoch, index, _ in keys if epoch == e] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(100)) and first != second
    assert {copy for _, _, copy in keys} == {0}


def test_repeats_follow_each_other_and_keep_the_epochs_length():
    batches = list(Batches(96, replace(RECIPE, epochs=1, repeats=3), 16, 0, 1))
    keys = [key for keys in batches for key in keys]
    assert len(batches) == 6 and len({index for _, index, _ in keys}) == 32
    assert keys[:3] == [(0, keys[0][1], copy) for copy in range(3)]


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (2, 8), (4, 2)])
def test_processes_and_micro_batches_share_each_batch_out(world, micro):
    whole = list(Batches(100, RECIPE, 16, 0, 1))
    shares = [list(Batches(100, RECIPE, micro, rank, world)) for rank in range(world)]
    parts = 16 // world // micro
    for step, batch in enumerate(whole):
        assert batch == [key for share in shares for part in share[step * parts : (step + 1) * parts] for key in part]


def test_batches_go_on_from_a_step():
    assert list(Batches(100, RECIPE, 4, 1, 2, start=7)) == list(Batches(100, RECIPE, 4, 1, 2))[14:]


def test_angles_may_have_a_learning_rate_of_their_own(images):
    rates = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append([g["lr"] for g in optimizer.param_groups])
    )
    try:
        _train(_model(), images, replace(RECIPE, angle_learning_rate=3e-2, warmup=0.0))
    finally:
        hook.remove()
    assert all(angles == pytest.approx(10 * weights) for weights, *_, angles in rates)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_bf16_trains_float32_weights(images, precision):
    model = _model()
    history = _train(model, images, replace(RECIPE, precision=precision))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    exact = _trained(images)[1]
    assert history[-1]["loss"] == pytest.approx(exact[-1]["loss"], rel=0 if precision == "no" else 0.05)
    assert (history == exact) == (precision == "no")


def test_what_makes_no_step_is_refused(images):
    with pytest.raises(ConfigurationError, match="no training step"):
        _train(_model(), images, replace(RECIPE, batch_size=101))


@pytest.mark.parametrize(("augment", "num"), [("basic", 4), ("deit", 2)])
def test_where_nothing_can_be_read_nothing_is_learned(tmp_path, images, augment, num):
    """Damaged images are counted, and batches of nothing else leave the weights; with mixup, so does half a pair."""
    for part in ("train", "val"):
        for number in range(8):
            file = tmp_path / part / str(number % 2) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image((images.pixels[number] + 1) / 2).convert("RGB").save(file)
    damaged = sorted(tmp_path.glob("train/*/*"))[:num]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:60])
    folder = image_folder(tmp_path, unreadable="skip")[0]
    recipe = replace(RECIPE, batch_size=2, weight_decay=0.0)
    model = ViT("comrope-ld", (8, 12), patch_size=4, in_chans=3, num_classes=2, embed_dim=32, depth=1, num_heads=2)
    history = _train(model, folder, recipe, augment=augment)
    assert [row["skipped"] for row in history] == [num, num]
    assert all(math.isfinite(row["loss"]) for row in history)
    before = copy.deepcopy(model.state_dict())
    after = []
    with pytest.raises(DataError, match=f"none of the {num} samples"):
        few, keep = folder.take(range(num)), lambda _: after.append(copy.deepcopy(model.state_dict()))
        _train(model, few, recipe, keep, augment=augment)
    assert all(_equal(before, weights) for weights in (*after, model.state_dict()))
