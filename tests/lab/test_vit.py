"""The classifier of the experiments against timm's own, with every encoding."""

import copy
import math

import pytest
import torch
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from torch import nn

import comrope
from comrope import reference
from comrope.encodings import NoEncoding
from comrope.errors import ConfigurationError
from comrope.hosts import angle_parameters
from comrope.lab.vit import ViT
from tests.helpers import EVERY, LEARNED, ROTARY, assert_close, draw
from tests.lab.helpers import heard

SIZE = (12, 16)  # 3 rows of 4 patches
SMALL = {
    "patch_size": 4,
    "in_chans": 2,
    "num_classes": 5,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
}


def _fresh(name: str, encoding_settings: dict | None = None, seed: int = 0, **vit) -> ViT:
    torch.manual_seed(seed)
    return ViT(name, SIZE, encoding_settings, **(SMALL | vit))


def _model(name: str, encoding_settings: dict | None = None, **vit) -> ViT:
    """In float64, with weights large enough for attention to matter, the same for all encodings."""
    model = _fresh(name, encoding_settings, **vit).double().eval()
    own = angle_parameters(model)
    with torch.no_grad():
        for i, (parameter_name, parameter) in enumerate((n, p) for n, p in model.named_parameters() if n not in own):
            step = 1.0 if parameter_name == "cls_token" else 0.3
            parameter.add_(draw(*parameter.shape, seed=1000 + i), alpha=step)
    return model


def _plain(like: ViT, **vit) -> VisionTransformer:
    """timm's own model with the same weights."""
    plain = VisionTransformer(img_size=SIZE, dynamic_img_size=True, pos_embed="none", **(SMALL | vit)).double().eval()
    theirs = {k: v for k, v in like.state_dict().items() if k not in angle_parameters(like)}
    plain.load_state_dict(theirs)  # strict: nothing more, nothing less
    return plain


def _images(n: int = 3, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return draw(n, 2, *size, seed=7)


def _without_encoding(model: ViT) -> dict[str, torch.Tensor]:
    return {n: p for n, p in model.named_parameters() if n not in angle_parameters(model)}


def test_a_code_book_is_added_beside_a_rotation():
    torch.manual_seed(0)
    both = ViT("comrope-ld", SIZE, absolute=True, **SMALL).double().eval()
    torch.manual_seed(0)
    alone = ViT("comrope-ld", SIZE, **SMALL).double().eval()
    assert both.ape is not None and alone.ape is None
    x = _images()
    assert not torch.equal(both(x), alone(x))
    with torch.no_grad():
        both.ape.code_book.zero_()
    assert_close(both(x), alone(x), 1e-12, "logits without a code")
    assert _without_encoding(both).keys() == _without_encoding(alone).keys()


def test_layers_can_share_their_angles():
    model = ViT("comrope-ld", SIZE, shared_angles=True, **SMALL).double()
    first, second = (block.attn.encoding for block in model.blocks)
    assert first is second
    x = _images()
    model(x).square().sum().backward()
    both = first.base_matrices.grad.clone()
    apart = copy.deepcopy(model)
    apart.blocks[1].attn.encoding = copy.deepcopy(first)
    apart.zero_grad()
    apart(x).square().sum().backward()
    grads = [block.attn.encoding.base_matrices.grad for block in apart.blocks]
    assert_close(both, grads[0] + grads[1], 1e-10, "gradients")


@pytest.mark.parametrize(
    "vit", [{}, {"qk_norm": True}, {"scale_attn_norm": True, "init_values": 0.5}, {"reg_tokens": 2}]
)
def test_none_is_timms_model(vit):
    model = _model("none", **vit)
    x = _images()
    assert_close(model(x), _plain(model, **vit)(x), 1e-12, "logits")
    assert angle_parameters(model) == {}


@pytest.mark.parametrize("name", EVERY)
def test_same_seed_same_weights_outside_the_encoding(name):
    expected, found, other = (_without_encoding(m) for m in (_fresh("none"), _fresh(name), _fresh(name, seed=1)))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    assert not torch.equal(other["blocks.0.attn.qkv.weight"], expected["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("name", LEARNED)
def test_identity_gives_the_logits_of_none(name):
    x = _images()
    expected = _model("none")(x)
    assert_close(_model(name, {"init": "identity"})(x), expected, 1e-10, "logits")
    assert (_model(name)(x) - expected).abs().max() > 1e-3  # at its ordinary start it does turn


@pytest.mark.parametrize("vit", [{}, {"reg_tokens": 2}])
def test_positions_are_patch_centres_after_the_prefix(vit):
    model = _fresh("rope", **vit)
    prefix = 1 + vit.get("reg_tokens", 0)
    patches = [[(row + 0.5) / 2, (column + 0.5) / 5] for row in range(2) for column in range(5)]
    expected = torch.tensor([[0.5, 0.5]] * prefix + patches)
    assert model.grid((8, 20)) == (2, 5)
    assert torch.equal(model.positions((8, 20)), expected)


@pytest.mark.parametrize("name", [n for n in EVERY if n != "none"])
@pytest.mark.parametrize("size", [SIZE, (8, 20), (28, 4)])
def test_positions_are_the_models_own_by_default(name, size):
    model, x = _model(name), _images(2, size)
    positions = model.positions(size)
    logits = model(x)
    assert logits.shape == (2, 5)
    assert_close(logits, model(x, positions), 1e-12, "logits")
    assert (logits - model(x, positions.flip(-1))).abs().max() > 1e-6


@pytest.mark.parametrize("name", [n for n in EVERY if n != "none"])
def test_axes_are_row_then_column(name):
    """The image, the patches' filters and the axes transposed together: nothing changes. Its shape tells rows from columns."""
    model, x = _model(name), _images(2, (8, 20))
    turned = copy.deepcopy(model)
    filters = turned.patch_embed.proj.weight
    filters.data = filters.data.mT.contiguous()
    logits = model(x)
    assert_close(turned(x.mT, turned.positions((20, 8)).flip(-1)), logits, 1e-9, "logits")
    assert (turned(x.mT) - logits).abs().max() > 1e-6


@pytest.mark.parametrize("name", [n for n in EVERY if n != "none"])
def test_each_patch_is_at_its_own_position(name):
    """Two patches that change places together with their positions: a set of tokens has no other order."""
    model, size = _model(name), (8, 20)
    x, positions = _images(2, size), model.positions(size)
    moved, swapped = x.clone(), positions.clone()
    moved[..., 0:4, 12:16], moved[..., 4:8, 4:8] = x[..., 4:8, 4:8], x[..., 0:4, 12:16]  # (0, 3) and (1, 1)
    first, second = (
        (positions[1:] == torch.tensor([(row + 0.5) / 2, (column + 0.5) / 5])).all(-1).nonzero().item() + 1
        for row, column in ((0, 3), (1, 1))
    )
    swapped[[first, second]] = positions[[second, first]]
    assert_close(model(moved, swapped), model(x), 1e-9, "logits")
    assert (model(moved) - model(x)).abs().max() > 1e-6


@pytest.mark.parametrize("name", EVERY)
def test_positions_of_each_sample(name):
    model, x = _model(name), _images(3)
    positions = comrope.positions.offset(
        model.positions(SIZE), 0.3, batch_size=3, generator=torch.Generator().manual_seed(1)
    )
    together = model(x, positions)
    alone = torch.cat([model(x[i : i + 1], positions[i]) for i in range(3)])
    assert_close(together, alone, 1e-9, "logits")


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("vit", [{}, {"qk_norm": True}])
def test_attention_is_timms_with_queries_and_keys_turned(name, vit):
    model = _model(name, **vit)
    positions = model.positions(SIZE)
    for attention in (block.attn for block in model.blocks):
        assert type(attention) is Attention
        x, output = heard(attention, lambda: model(_images()))
        q, k, v = nn.Linear.forward(attention.qkv, x).view(3, -1, 3, 2, 16).permute(2, 0, 3, 1, 4)
        rotation = attention.encoding.rotation_matrices(positions)  # by matrix_exp
        q = reference.apply(rotation, attention.q_norm.forward(q))
        k = reference.apply(rotation, attention.k_norm.forward(k))
        mixed = (q @ k.mT / math.sqrt(16)).softmax(-1) @ v
        expected = attention.proj(mixed.transpose(1, 2).reshape(3, -1, 32))
        assert_close(output, expected, 1e-6 if name == "rope" else 1e-9, "attention")


def test_qk_norm_comes_before_the_rotation():
    """LayerNorm's weights act on features in their own places: after the rotation the logits would be others."""
    model = _model("rope", qk_norm=True)
    assert {"blocks.0.attn.q_norm.weight", "blocks.1.attn.k_norm.weight"} <= model.state_dict().keys()
    x = _images()
    before = model(x)
    for block in model.blocks:
        block.attn.q_norm.weight.data[1::2] *= 3
    assert (model(x) - before).abs().max() > 1e-3


def test_ape_adds_its_codes_and_turns_nothing():
    model = _model("ape")
    plain, x, size = _plain(model), _images(2, (8, 20)), (8, 20)
    assert all(type(block.attn.encoding) is NoEncoding for block in model.blocks)
    assert model.ape is not None and model.ape.grid == (3, 4)
    for positions in (model.positions(size), model.positions(size) + 0.13, torch.rand(2, 11, 2, dtype=torch.float64)):
        tokens = plain._pos_embed(plain.patch_embed(x)) + model.ape.codes(positions)
        expected = plain.forward_head(plain.norm(plain.blocks(tokens)))
        assert_close(model(x, positions), expected, 1e-12, "logits")


@pytest.mark.parametrize("name", EVERY)
def test_encoding_parameters_are_what_timm_does_not_have(name):
    model = _fresh(name)
    plain = VisionTransformer(img_size=SIZE, pos_embed="none", **SMALL)
    extra = dict(model.named_parameters()).keys() - dict(plain.named_parameters()).keys()
    found = angle_parameters(model)
    assert found.keys() == extra
    assert all(found[n] is p for n, p in model.named_parameters() if n in extra)
    assert model.no_weight_decay() == plain.no_weight_decay() | extra
    assert bool(extra) == (name not in ("none", "rope"))


@pytest.mark.parametrize("name", [*LEARNED, "ape"])
def test_optimizer_does_not_decay_the_encoding(name):
    model = _fresh(name)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decay[id(p)] for p in angle_parameters(model).values()} == {0.0}
    assert decay[id(model.blocks[0].attn.qkv.weight)] == decay[id(model.head.weight)] == 0.1
    assert len(decay) == len(list(model.parameters()))


@pytest.mark.parametrize("name", EVERY)
def test_gradients_reach_every_parameter(name):
    model = _model(name).train()
    torch.nn.functional.cross_entropy(model(_images()), torch.tensor([0, 1, 2])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, parameter_name


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigurationError, match="block_size"):
        _fresh("comrope-ld", {"block_size": 5})
    with pytest.raises(ConfigurationError, match="comrope-ld"):
        _fresh("comrope-ls")
