"""Predictions, at other sizes and under offsets, against loops written out."""

import copy
from typing import get_args

import pytest
import torch

import comrope
from comrope.encodings import FixedFrequencies
from comrope.errors import ConfigurationError, NoSpectrumError
from comrope.hosts import angle_parameters
from comrope.lab.classification import Condition, direction, evaluate, plain, scaled, shifted
from comrope.lab.classification import predict as predict_under
from comrope.lab.images import problem
from comrope.lab.images.config import ImageConfig
from comrope.lab.images.in_memory import Images, digits
from comrope.lab.options import ClassifierOptions, Scaling
from comrope.lab.rng import Stream, generator
from comrope.lab.terminal import evaluation
from comrope.lab.vit import ViT
from comrope.scaling import METHODS
from tests.helpers import COMMUTING, draw

SIZE = (16, 24)


@pytest.fixture(scope="module")
def images() -> Images:
    whole = digits()[1]
    return Images(whole.pixels[:60], whole.labels[:60], whole.classes)


def predict(model, images, size, *, offset=0.0, seed=0, batch_size=150):
    return predict_under(model, images, Condition(size, offset, seed=seed), batch_size=batch_size)


def _model(name: str) -> ViT:
    """Untrained, with weights so large that images get different labels, and attention decides."""
    torch.manual_seed(0)
    vit = {"patch_size": 8, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = ViT(name, SIZE, **vit).eval()
    own = angle_parameters(model)
    with torch.no_grad():
        for i, (parameter_name, parameter) in enumerate(model.named_parameters()):
            if parameter_name not in own:
                parameter.add_(draw(*parameter.shape, seed=i, dtype=torch.float32), alpha=0.25)
            elif name == "ape":
                parameter.mul_(50)
    return model


def test_labels_are_those_of_a_plain_loop(images):
    model = _model("comrope-ld")
    for size in (SIZE, (24, 8)):
        pixels = images.fitted(size)
        with torch.no_grad():
            expected = torch.stack([model(pixels[i : i + 1])[0].argmax() for i in range(len(images))])
        assert torch.equal(predict(model, images, size), expected)
        assert len(expected.unique()) > 2


def test_counts_are_those_of_a_plain_loop(images):
    model = _model("comrope-mt")
    sizes = [(16, 24), (8, 8), (32, 16)]
    rows = list(evaluate(model, images, plain(sizes)))
    assert [row["size"] for row in rows] == [list(size) for size in sizes]
    for row, size in zip(rows, sizes, strict=True):
        labels = predict(model, images, size).tolist()
        hits = sum(int(label == truth) for label, truth in zip(labels, images.labels.tolist(), strict=True))
        assert (row["correct"], row["total"]) == (hits, 60)
        assert type(row["correct"]) is int
    assert 0 < sum(row["correct"] for row in rows) < 180


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ape", "liere", "comrope-ld"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_batch_size_changes_no_label(images, name, offset):
    """Each image keeps its own shift, whatever images it is computed together with."""
    model = _model(name)
    whole = predict(model, images, SIZE, offset=offset)
    for batch_size in (1, 7, 59, 1000):
        labels = predict(model, images, SIZE, offset=offset, batch_size=batch_size)
        assert (labels != whole).sum().item() == 0, f"batches of {batch_size}"


def test_offset_moves_each_image_by_its_own_shift(images):
    model = _model("ape")
    positions = model.positions(SIZE).double()
    positions = comrope.positions.offset(positions, 0.5, batch_size=60, generator=generator(4, Stream.EVALUATED_OFFSET))
    with torch.no_grad():
        expected = torch.cat(
            [model(x[None], p).argmax(-1) for x, p in zip(images.fitted(SIZE), positions, strict=True)]
        )
    assert torch.equal(predict(model, images, SIZE, offset=0.5, seed=4), expected)
    assert not torch.equal(predict(model, images, SIZE), expected)


def test_copies_of_one_image_get_different_shifts(images):
    copies = Images(images.pixels[:1].expand(60, -1, -1, -1), images.labels[:1].expand(60), images.classes)
    assert len(predict(_model("liere"), copies, SIZE).unique()) == 1
    assert len(predict(_model("liere"), copies, SIZE, offset=2.0).unique()) > 1


def test_offset_is_reproducible_by_seed(images):
    model = _model("ape")
    first = predict(model, images, SIZE, offset=0.7, seed=1)
    torch.manual_seed(99)
    assert torch.equal(predict(model, images, SIZE, offset=0.7, seed=1), first)
    assert not torch.equal(predict(model, images, SIZE, offset=0.7, seed=2), first)


def test_no_offset_changes_nothing(images):
    for name in ("liere", "ape"):
        model = _model(name)
        assert torch.equal(predict(model, images, SIZE, offset=0.0, seed=3), predict(model, images, SIZE))
        (row,) = evaluate(model, images, shifted(SIZE, [0.0]))
        assert row["changed"] == 0
        assert row["correct"] == next(evaluate(model, images, plain([SIZE])))["correct"]


@pytest.mark.parametrize("name", COMMUTING)
def test_commuting_encodings_keep_their_labels(images, name):
    rows = list(evaluate(_model(name), images, shifted(SIZE, [0.0, 1.0, 5.0])))
    assert [row["changed"] for row in rows] == [0, 0, 0]
    assert len({row["correct"] for row in rows}) == 1


@pytest.mark.parametrize("name", ["liere", "ape"])
def test_the_others_do_not(images, name):
    model = _model(name)
    rows = list(evaluate(model, images, shifted(SIZE, [0.0, 0.5, 5.0], seed=2)))
    assert [row["offset"] for row in rows] == [0.0, 0.5, 5.0] and {row["total"] for row in rows} == {60}
    unmoved = predict(model, images, SIZE)
    for row in rows:
        labels = predict(model, images, SIZE, offset=row["offset"], seed=2)
        assert row["changed"] == sum(int(a != b) for a, b in zip(labels.tolist(), unmoved.tolist(), strict=True))
        assert row["correct"] == sum(int(a == b) for a, b in zip(labels.tolist(), images.labels.tolist(), strict=True))
    assert rows[0]["changed"] == 0 and rows[-1]["changed"] >= 6


def test_prediction_leaves_no_graph_and_no_gradient(images):
    model = _model("comrope-ld")
    assert not predict(model, images, SIZE, offset=1.0).requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", COMMUTING)
@pytest.mark.parametrize("towards", ["first-axis", "last-axis", "steepest"])
def test_no_offset_whatsoever_moves_what_commutes(images, name, towards):
    (row,) = evaluate(_model(name), images, [Condition(SIZE, 1e6, towards)])
    assert (row["changed"], row["direction"], row["offset"]) == (0, towards, 1e6)


def test_adversarial_offsets_move_liere(images):
    conditions = [Condition(SIZE, 3.0, towards) for towards in ("last-axis", "steepest")]
    rows = list(evaluate(_model("liere"), images, conditions))
    assert all(row["changed"] >= 6 for row in rows)


@pytest.mark.parametrize("name", ["liere", "comrope-ld", "comrope-ap", "rope"])
def test_the_steepest_direction_turns_most(name):
    """No direction on a fine grid has a larger rotation speed, ‖Σ u_i A_i‖₂, in any block of any layer."""
    model = _model(name)

    def speed(u: torch.Tensor) -> float:
        angles = (block.attn.encoding.angle_matrices().detach().double() for block in model.blocks)
        return max(torch.linalg.matrix_norm(torch.einsum("n,n...->...", u, a), 2).max().item() for a in angles)

    u = direction(model, "steepest").double()
    assert u.norm().item() == pytest.approx(1, abs=1e-6)
    angle = torch.linspace(0, torch.pi, 361, dtype=torch.float64)
    assert speed(u) >= max(speed(d) for d in torch.stack((angle.cos(), angle.sin()), -1)) * (1 - 1e-6)


def test_perturbed_patches_are_each_images_own_and_reproducible(images):
    model = _model("comrope-ld")
    moved = Condition(SIZE, perturbation=1.0, seed=3)
    first = predict_under(model, images, moved)
    assert torch.equal(predict_under(model, images, moved, batch_size=7), first)
    (row,) = evaluate(model, images, [moved])
    assert row["changed"] == (first != predict(model, images, SIZE)).sum().item() > 0


def test_a_direction_must_be_known():
    with pytest.raises(ConfigurationError, match=r"direction='up'.*steepest"):
        Condition(SIZE, 1.0, "up")


ALL_METHODS = [name for name in get_args(Scaling) if name != "none"]


def test_the_command_line_knows_every_method():
    assert list(METHODS) == ALL_METHODS


@pytest.mark.parametrize("name", ["rope", "comrope-ld", "ape"])
def test_scaled_labels_are_those_of_a_rescaled_model(images, name):
    model, size = _model(name), (48, 32)
    for method in ALL_METHODS:
        expected = comrope.rescale(copy.deepcopy(model), method, trained=(2, 3), shape=(6, 4), unit="relative")
        with torch.no_grad():
            expected = expected(images.fitted(size)).argmax(-1)
        assert torch.equal(predict_under(model, images, Condition(size, scaling=method)), expected), method
    rows = list(evaluate(model, images, [Condition(size, scaling=method) for method in ("none", *ALL_METHODS)]))
    assert [row["scaling"] for row in rows] == ["none", *ALL_METHODS]
    correct = {row["scaling"]: row["correct"] for row in rows}
    same = ["linear"] if name != "ape" else [method for method in ALL_METHODS if method not in ("yarn", "entropy")]
    assert {correct[method] for method in same} == {correct["none"]}  # relative positions interpolate by themselves
    assert name == "ape" or len(set(correct.values())) > 2


def test_offsets_move_no_label_of_a_scaled_model(images):
    moved = [Condition(SIZE, 2.0, scaling="yarn"), Condition(SIZE, 2.0, "steepest", scaling="ntk")]
    assert [row["changed"] for row in evaluate(_model("comrope-mt"), images, moved)] == [0, 0]


def test_liere_has_nothing_to_scale(images):
    with pytest.raises(NoSpectrumError):
        evaluate(_model("liere"), images, [Condition(SIZE), Condition((32, 32), scaling="ntk")])


def test_rows_of_earlier_versions_are_not_scaled():
    row = {"size": [16, 24], "offset": 0.0, "direction": "random", "perturbation": 0.0, "seed": 0, "correct": 3}
    assert Condition(SIZE).describes(row) and not Condition(SIZE, scaling="ntk").describes(row)
    assert not Condition(SIZE).describes(row | {"scaling": "ntk"})
    shown = evaluation({"name": "run", "experiment": {"data": "digits"}, "evaluation": [row, row | {"scaling": "ntk"}]})
    assert shown.columns == ("size", "correct", "scaling") and [r[-1] for r in shown.rows] == ["–", "ntk"]


def test_a_model_of_timm_is_scaled_from_its_own_grid(images):
    config = ImageConfig(model="timm:tiny", encoding="comrope-ld", init="normal", image_size=SIZE, perturbation=0.0)
    model = problem.build(config, images).eval()
    scaled_model = scaled(model, Condition((48, 24), scaling="extrapolate"))
    assert scaled_model.blocks[0].attn.encoding.scaling.trained == (4, 6)
    assert scaled_model.blocks[0].attn.encoding.scaling.shape == (12, 6)
    assert not any(isinstance(m, FixedFrequencies) for m in model.modules())


def test_scalings_are_combined_with_larger_sizes():
    config = ImageConfig(image_size=(16, 16))
    found = problem.conditions(config, ClassifierOptions(resolutions=("8", "16x32"), scalings=("none", "yarn")))
    assert found == [Condition((8, 8)), Condition((16, 32)), Condition((16, 32), scaling="yarn")]
    with pytest.raises(ConfigurationError, match="scalings yarn: they are for more than trained at"):
        problem.conditions(config, ClassifierOptions(scalings=("yarn",)))
    with pytest.raises(ConfigurationError, match="scaling='no'"):
        Condition(SIZE, scaling="no")
