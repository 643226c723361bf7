"""The classifier of clips with every encoding: its axes, its positions, and any size and number of frames."""

import math

import pytest
import torch
from torch import nn

from comrope import reference
from comrope.errors import InputError
from comrope.hosts import angle_parameters
from comrope.lab.video.model import MODELS, VideoViT
from comrope.lab.vit import ViT
from tests.helpers import EVERY, assert_close, draw
from tests.lab.helpers import heard

FRAMES, SIZE = 4, (8, 12)  # 2 rows of 3 patches in each frame
SMALL = {"patch_size": 4, "in_chans": 2, "num_classes": 5, "embed_dim": 48, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
POSITIONED = [name for name in EVERY if name != "none"]


def _model(name: str, **vit) -> VideoViT:
    """In float64, with weights large enough for attention to matter."""
    torch.manual_seed(0)
    model = VideoViT(name, FRAMES, SIZE, **(SMALL | vit)).double().eval()
    own = angle_parameters(model)
    with torch.no_grad():
        for i, (parameter_name, parameter) in enumerate((n, p) for n, p in model.named_parameters() if n not in own):
            parameter.add_(draw(*parameter.shape, seed=i), alpha=1.0 if parameter_name == "cls_token" else 0.2)
    return model


def _clips(n: int = 2, canvas: tuple[int, ...] = (FRAMES, *SIZE)) -> torch.Tensor:
    return draw(n, 2, *canvas, seed=7)


def test_each_axis_is_scaled_by_its_own_extent():
    model = _model("rope")
    assert model.grid((3, 8, 20)) == (3, 2, 5)
    expected = [
        [(frame + 0.5) / 3, (row + 0.5) / 2, (column + 0.5) / 5]
        for frame in range(3)
        for row in range(2)
        for column in range(5)
    ]
    assert torch.equal(model.positions((3, 8, 20)), torch.tensor([[0.5, 0.5, 0.5], *expected]))


@pytest.mark.slow
@pytest.mark.parametrize("name", POSITIONED)
@pytest.mark.parametrize("canvas", [(FRAMES, *SIZE), (1, 4, 4), (7, 8, 20), (2, 20, 8)])
def test_any_number_of_frames_of_any_size(name, canvas):
    model, x = _model(name), _clips(2, canvas)
    logits = model(x)
    assert logits.shape == (2, 5)
    assert_close(logits, model(x, model.positions(canvas)), 1e-12, "logits")
    assert_close(logits, torch.cat([model(clip[None]) for clip in x]), 1e-9, "logits")


@pytest.mark.parametrize("name", POSITIONED)
def test_axes_are_frame_then_row_then_column(name):
    """Two patches that change places together with their positions: a set of tokens has no other order."""
    model, canvas = _model(name), (3, 8, 20)
    x, positions = _clips(2, canvas), model.positions(canvas)
    moved, swapped = x.clone(), positions.clone()
    moved[:, :, 0, 0:4, 12:16], moved[:, :, 2, 4:8, 4:8] = x[:, :, 2, 4:8, 4:8], x[:, :, 0, 0:4, 12:16]
    first, second = 1 + 0 * 10 + 0 * 5 + 3, 1 + 2 * 10 + 1 * 5 + 1
    swapped[[first, second]] = positions[[second, first]]
    assert_close(model(moved, swapped), model(x), 1e-9, "logits")
    assert (model(moved) - model(x)).abs().max() > 1e-6
    for order in ((1, 0, 2), (2, 1, 0), (0, 2, 1)):
        assert (model(x, positions[:, order]) - model(x)).abs().max() > 1e-6, order


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("none", "ape")])
def test_all_patches_of_all_frames_attend_to_one_another(name):
    model = _model(name)
    positions, attention = model.positions((FRAMES, *SIZE)), model.blocks[0].attn
    x, output = heard(attention, lambda: model(_clips()))
    q, k, v = nn.Linear.forward(attention.qkv, x).view(2, -1, 3, 2, 24).permute(2, 0, 3, 1, 4)
    rotation = attention.encoding.rotation_matrices(positions)  # by matrix_exp
    q, k = reference.apply(rotation, q), reference.apply(rotation, k)
    expected = attention.proj(((q @ k.mT / math.sqrt(24)).softmax(-1) @ v).transpose(1, 2).reshape(2, -1, 48))
    assert_close(output, expected, 1e-6 if name == "rope" else 1e-9, "attention")


def test_a_clip_of_one_frame_without_positions_is_an_image():
    model = _model("none")
    image = ViT("none", SIZE, **SMALL).double().eval()
    image.load_state_dict(model.state_dict())
    x = _clips(2, (1, *SIZE))
    assert_close(model(x), image(x[:, :, 0]), 1e-12, "logits")


def test_ape_has_a_code_for_each_frame_row_and_column():
    model = _model("ape")
    assert model.ape is not None and model.ape.code_book.shape == (48, FRAMES, 2, 3)
    codes = model.ape.codes(model.positions((FRAMES, *SIZE)).double())[1:]
    assert_close(codes, model.ape.code_book.flatten(1).T, 1e-6, "codes")


@pytest.mark.parametrize("name", EVERY)
def test_same_seed_same_weights_outside_the_encoding_and_gradients_everywhere(name):
    torch.manual_seed(3)
    expected = VideoViT("none", FRAMES, SIZE, **SMALL)
    torch.manual_seed(3)
    found = VideoViT(name, FRAMES, SIZE, **SMALL)
    others = {n: p for n, p in found.named_parameters() if n not in angle_parameters(found)}
    assert all(torch.equal(p, others[n]) for n, p in expected.named_parameters()) and len(others) == len(
        list(expected.parameters())
    )
    model = _model(name).train()
    torch.nn.functional.cross_entropy(model(_clips()), torch.tensor([0, 1])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_the_papers_model_takes_every_encoding(name):
    """8 layers of 8 heads of 48: three axes of blocks of 8."""
    model = VideoViT(name, 8, (224, 224), num_classes=101, **MODELS["paper"])
    attention = model.blocks[0].attn
    assert (len(model.blocks), model.embed_dim, attention.num_heads, attention.head_dim) == (8, 384, 8, 48)
    assert model.grid((8, 224, 224)) == (8, 14, 14)


def test_shapes_that_do_not_fit_are_refused():
    model = _model("rope")
    with pytest.raises(InputError, match=r"images of \(9, 12\) pixels"):
        model(_clips(1, (2, 9, 12)))
    with pytest.raises(InputError, match=r"got \(2, 2, 8, 12\), expected \(B, channels, frames, height, width\)"):
        model(draw(2, 2, *SIZE))
