"""timm models with encodings: values against a reference, image sizes, checkpointing, dropout, and further options of timm."""

import copy

import pytest
import timm
import torch
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_weight_decay
from torch import nn

import comrope
from comrope import hosts
from comrope.errors import ConfigurationError, InputError
from comrope.hosts._coordinate_grid import CoordinateGrid
from tests.hosts import helpers
from tests.hosts.helpers import (
    ALL_HOSTS,
    FAMILIES,
    ROPE_HOSTS,
    attached,
    block_of,
    coordinate_grid_of,
    error,
    images,
    tiny,
)

SIZE = (32, 48)
SAME_LOGITS = 1e-5


def _fits(host: str, family: str) -> bool:
    """Returns whether a family with blocks of 4 can represent the host's RoPE: one axis per block, or for LD one direction."""
    if not family.startswith("comrope") or family == "comrope-mt" or host not in ROPE_HOSTS:
        return True
    if host == "mrope":
        return False
    return "mixed" not in host or family == "comrope-ld"


MATRIX = [(host, family) for host in ALL_HOSTS for family in FAMILIES]


@pytest.mark.parametrize(("host", "family"), MATRIX, ids=lambda value: value)
def test_attaching_leaves_the_logits_and_training_moves_every_angle(host, family):
    model = tiny(host)
    (x,) = images(SIZE)
    expected = model(x).detach()
    settings = block_of(family, 4)
    if not _fits(host, family):
        settings = block_of(family, 2)
        if family == "comrope-ap":  # nor do axial planes fit those that turn with both axes
            with pytest.raises(ConfigurationError, match=r"blocks\.0\.attn.*does not hold these angles"):
                hosts.attach(model, family, **settings)
            return
    hosts.attach(model, family, **settings)
    logits = model(x)
    assert error(logits, expected) <= SAME_LOGITS
    assert not any(module.training for module in model.modules())
    angles = hosts.angle_parameters(model)
    assert {name.partition(".encoding.")[0] for name in angles} == {f"blocks.{i}.attn" for i in range(2)}
    gradients = torch.autograd.grad(logits.square().sum(), list(angles.values()))
    silent = [name for name, g in zip(angles, gradients, strict=True) if not g.any() and "axis_scale" not in name]
    # With all frequencies at zero no basis makes a difference yet, and with zero P no scale does.
    if host not in ROPE_HOSTS:
        silent = [name for name in silent if "basis_generator" not in name]
    assert not silent


@pytest.mark.parametrize("family", ["rope-mixed", "comrope-ld", "liere"])
@pytest.mark.parametrize("host", ["vit", "dinov2", "siglip", "cat", "grouped", "eva"])
def test_an_encoding_rotates_queries_and_keys_by_their_positions(host, family):
    """Against explicit attention in the first layer: scores of R(x)q and R(y)k by matrix_exp."""
    model = attached(tiny(host), family, init="normal", std=0.5, **block_of(family, 4)).double()
    (x,) = images(SIZE)
    x = x.double()
    attention, seen = model.blocks[0].attn, {}
    attention.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], y=output))
    model(x)
    with torch.no_grad():
        q, k, v = helpers.unrotated_qkv(attention, seen["x"])
        q, k = comrope.reference.rotate(
            q.contiguous(), k.contiguous(), attention.encoding.angle_matrices(), _positions(model)
        )
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        mixed = (q @ k.mT * attention.scale).softmax(-1) @ v
        expected = attention.proj(mixed.transpose(1, 2).flatten(2))
    assert error(seen["y"], expected) <= 1e-9


def _positions(model):
    prefix = model.num_prefix_tokens
    if coordinate_grid_of(model).prefix == "middle":
        return comrope.positions.grid((4, 6), num_prefix_tokens=prefix, dtype=torch.float64)
    patches = comrope.positions.grid((4, 6), relative=False, centre=False, dtype=torch.float64)
    return torch.cat((torch.zeros(prefix, 2, dtype=torch.float64), patches))


@pytest.mark.parametrize("shape", [(4, 6), (1, 5), (3, 3)])
def test_the_coordinate_grid_is_that_of_the_library(shape):
    like = torch.zeros(1)
    grid = comrope.positions.grid(shape, num_prefix_tokens=2)
    assert torch.equal(CoordinateGrid().positions(shape, 2, like=like), grid)
    assert torch.equal(CoordinateGrid().positions(shape, 2, 3, like=like), torch.cat((grid, grid[:1].expand(3, -1))))
    first = CoordinateGrid(prefix="first").positions(shape, 2, 1, like=like)
    assert torch.equal(first[[0, 1, -1]], first[2].expand(3, -1))
    indices = CoordinateGrid("index", "origin").positions(shape, 1, like=like)
    assert torch.equal(indices[1:], comrope.positions.grid(shape, relative=False, centre=False))
    assert not indices[0].any()


@pytest.mark.parametrize("host", ["vit", "dinov2", "clip", "cat", "mixed", "dinov3"])
def test_any_image_size(host):
    """Positions follow the size of the image, if the model accepts it; the model's own RoPE stays as it is."""
    model = tiny(host)
    for x in images((32, 48), (48, 32), (16, 64)):
        expected = model(x)
        hosts.attach(model, "comrope-mt")
        assert error(model(x), expected) <= SAME_LOGITS
        hosts.detach(model)
    rotated = attached(model, "comrope-mt", init="normal", std=0.5)
    wide, tall = (rotated(x) for x in (images((32, 48))[0], images((32, 48))[0].transpose(2, 3)))
    assert error(wide, tall) > 1e-3


def test_the_image_size_can_change_after_attaching():
    model = tiny("mixed rope")
    expected = copy.deepcopy(model)
    hosts.attach(model, "rope-mixed")
    for each in (model, expected):
        each.set_input_size(img_size=(48, 32))
    (x,) = images((48, 32))
    assert error(model(x), expected(x)) <= SAME_LOGITS
    assert torch.equal(hosts.detach(model)(x), expected(x))


@pytest.mark.parametrize("host", ["vit", "qk-norm", "grouped", "eva"])
def test_fused_and_unfused_attention_agree_with_masks_too(host):
    model = attached(tiny(host), "comrope-ld", init="normal", std=0.5)
    (x,) = images(SIZE)
    num_tokens = 24 + model.num_prefix_tokens
    mask = torch.rand(num_tokens, num_tokens) < 0.7
    mask.fill_diagonal_(True)
    fused = model(x), model.forward_features(x, attn_mask=mask), model.forward_features(x, is_causal=True)
    for block in model.blocks:
        block.attn.fused_attn = False
    unfused = model(x), model.forward_features(x, attn_mask=mask), model.forward_features(x, is_causal=True)
    assert all(error(a, b) <= 1e-5 for a, b in zip(fused, unfused, strict=True))
    assert error(fused[1], fused[2]) > 1e-2


def test_gates_and_biases_apart():
    """Options of timm's attention that its models do not offer yet."""
    model = tiny("cat")
    for block in model.blocks:
        block.attn = EvaAttention(32, 2, norm_layer=nn.LayerNorm, qkv_bias_separate=True, gated=True)
    helpers.randomise_weights(model)
    (x,) = images(SIZE)
    expected = model(x)
    assert error(hosts.attach(model, "comrope-mt")(x), expected) <= SAME_LOGITS


@pytest.mark.parametrize("host", ["vit", "mixed"])
def test_gradient_checkpointing_recomputes_at_the_right_positions(host):
    model = attached(tiny(host), "comrope-ld", **block_of("comrope-ld", 4), perturbation=0.3)
    wide, tall, other = images((32, 48), (48, 32), (48, 48))

    def gradients(loss):
        return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], materialize_grads=True)

    def same(a, b):
        return all(error(x, y) <= 1e-5 * max(1.0, y.abs().max().item()) for x, y in zip(a, b, strict=True))

    expected = gradients(model(wide).square().sum())
    model.set_grad_checkpointing(True)
    assert same(gradients(model(wide).square().sum()), expected)
    # Other images in between: of another number of tokens; without a graph; with a graph that is gone.
    loss, keep = model(wide).square().sum(), model(other)
    with torch.no_grad():
        model(tall)
    model(tall)
    assert same(gradients(loss), expected)
    # As many tokens on another grid, both waiting.
    loss, keep = model(wide).square().sum(), model(tall)
    with pytest.raises(InputError, match="different grids"):
        gradients(loss)
    del keep


def test_checkpointing_when_the_angles_alone_are_trained():
    model = attached(tiny("vit"), "rope-mixed", perturbation=0.3)
    angles = list(hosts.angle_parameters(model).values())
    model.requires_grad_(False)
    for parameter in angles:
        parameter.requires_grad_(True)
    wide, tall = images((32, 48), (48, 32))
    expected = torch.autograd.grad(model(wide).square().sum(), angles)
    model.set_grad_checkpointing(True)
    found = torch.autograd.grad(model(wide).square().sum(), angles)
    assert all(error(a, b) <= 1e-5 * b.abs().max() for a, b in zip(found, expected, strict=True))
    loss, keep = model(wide).square().sum(), model(tall)
    with pytest.raises(InputError, match="different grids"):
        torch.autograd.grad(loss, angles)
    del keep


def test_checkpointing_with_reentrant_backward():
    """The blocks first run without an autograd graph."""
    model = attached(tiny("vit"), "rope-mixed", perturbation=0.3)
    wide, tall = images((32, 48), (48, 32))
    angles = list(hosts.angle_parameters(model).values())
    expected = torch.autograd.grad(model(wide).square().sum(), angles)
    model.set_grad_checkpointing(True)
    timm.layers.set_reentrant_ckpt(True)
    try:
        model(wide).square().sum().backward()
        loss, keep = model(wide).square().sum(), model(tall)
        with pytest.raises(InputError, match="different grids"):
            loss.backward()
        del keep
    finally:
        timm.layers.set_reentrant_ckpt(False)
    assert all(error(p.grad, g) <= 1e-5 * g.abs().max() for p, g in zip(angles, expected, strict=True))


def test_a_whole_model_under_a_checkpoint():
    model = attached(tiny("vit"), "rope-mixed", perturbation=0.3)
    (x,) = images(SIZE)
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(model(x).square().sum(), parameters)
    logits = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    found = torch.autograd.grad(logits.square().sum(), parameters)
    assert all(error(a, b) <= 1e-5 * max(1, b.abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("host", ["vit", "dinov3"])
def test_autocast(host):
    model = attached(tiny(host), "comrope-mt", perturbation=0.3)
    (x,) = images(SIZE)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
        logits.float().square().sum().backward()
    assert logits.dtype == torch.bfloat16
    assert error(logits.float(), expected) <= 0.1 * expected.abs().max()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in hosts.angle_parameters(model).values())


def test_casting_the_model_leaves_its_angles():
    model = attached(tiny("vit"), "comrope-ld", perturbation=0.3).bfloat16()
    assert {p.dtype for p in hosts.angle_parameters(model).values()} == {torch.float32}
    assert model(images(SIZE)[0].bfloat16()).isfinite().all()


@pytest.mark.parametrize("host", ["vit", "mixed", "dinov3"])
def test_patch_dropout_selects_positions(host):
    """Kept patches keep their positions, different ones in each sample; in eval mode nothing is dropped."""
    model = attached(tiny(host, patch_drop_rate=0.5, depth=1), "comrope-mt", perturbation=0.3)
    plain = attached(tiny(host, depth=1), "comrope-mt")
    plain.load_state_dict(model.state_dict())
    (x,) = images(SIZE)
    assert error(model(x), plain(x)) <= 1e-6
    model.train()
    recorded, dropped = helpers.record_positions(model.blocks[0].attn), {}
    model.patch_drop.register_forward_hook(lambda module, came, went: dropped.update(came=came[0], went=went))
    model(x).sum().backward()
    (positions_used,), prefix = recorded, model.num_prefix_tokens
    everywhere = coordinate_grid_of(model).positions((4, 6), prefix, like=x)
    went = dropped["went"][0] if isinstance(dropped["went"], tuple) else dropped["went"]
    assert went.shape[1] == prefix + 12
    for before, after, positions in zip(dropped["came"], went, positions_used, strict=True):
        source = torch.cdist(after, before).argmin(1)  # which token each was
        assert torch.equal(source[:prefix], torch.arange(prefix))
        assert torch.equal(positions, everywhere[source])
    assert not torch.equal(positions_used[0], positions_used[1])


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    model = hosts.attach(tiny("vit"), "comrope-ld").train()
    (x,) = images(SIZE, batch=8)
    target = torch.arange(8) % 5
    optimizer = torch.optim.AdamW(hosts.param_groups(model, lr=1e-2), 1e-3)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert comrope.check(model).holds
    assert any(module.encoding.angle_matrices().abs().max() > 1e-3 for module in (b.attn for b in model.blocks))


@pytest.mark.parametrize("host", ["vit", "cat"])
def test_the_ape_can_be_left_out(host):
    model = tiny(host)
    assert model.pos_embed is not None
    (x,) = images(SIZE)
    expected = copy.deepcopy(model)
    expected.pos_embed = None
    before = helpers.snapshot(model)
    hosts.attach(model, "comrope-mt", keep_ape=False)
    assert "pos_embed" not in model.state_dict()
    assert error(model(x), expected(x)) <= SAME_LOGITS
    helpers.assert_as_before(hosts.detach(model), before)


@pytest.mark.parametrize("name", ["none", "rope", "liere"])
def test_encodings_without_init(name):
    model = tiny("vit")
    (x,) = images(SIZE)
    expected = model(x)
    hosts.attach(model, name)
    assert (error(model(x), expected) <= SAME_LOGITS) == (name != "rope")
    assert torch.equal(hosts.detach(model)(x), expected)


class Louder(VisionTransformer):
    """A user's subclass with its own forward."""

    def forward(self, x):
        return 3 * super().forward(x.flip(2))


def test_a_subclass_of_a_user_is_a_model_like_any_other():
    model = helpers.randomise_weights(Louder(**helpers.VIT))
    before, (x,) = helpers.snapshot(model), images(SIZE)
    expected = model(x)
    hosts.attach(model, "comrope-ld")
    assert type(model) is Louder
    assert error(model(x), expected) <= 3 * SAME_LOGITS
    with torch.no_grad():
        for parameter in hosts.angle_parameters(model).values():
            parameter.add_(torch.randn_like(parameter))
    rotated = model(x)
    assert error(rotated, expected) > 1e-2
    assert error(hosts.fold(copy.deepcopy(model))(x), rotated) <= 1e-3
    helpers.assert_as_before(hosts.detach(model), before)
    assert torch.equal(model(x), expected)


def test_models_made_by_timms_factory():
    model = helpers.randomise_weights(
        timm.create_model("deit_tiny_distilled_patch16_224", depth=1, img_size=32, num_classes=3)
    )
    (x,) = images((32, 32))
    expected = model(x)
    hosts.attach(model, "comrope-ap")
    assert error(model(x), expected) <= SAME_LOGITS
    features = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, features_only=True, out_indices=[0, 1])
    expected = features(x)
    hosts.attach(features, "comrope-ap")
    assert all(error(a, b) <= SAME_LOGITS for a, b in zip(features(x), expected, strict=True))


def test_angles_do_not_decay():
    model = attached(tiny("mixed"), "comrope-ld", **block_of("comrope-ld", 4))
    assert set(hosts.angle_parameters(model)) <= model.no_weight_decay()
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    angles = {id(p) for p in hosts.angle_parameters(model).values()}
    assert all(group["weight_decay"] == 0 for group in groups if angles & {id(p) for p in group["params"]})


@pytest.mark.slow
@pytest.mark.compile
def test_compiles_as_one_graph_at_any_size():
    torch._dynamo.reset()
    model = attached(tiny("dinov3", depth=1), "comrope-mt", perturbation=0.3, block_size=4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for x in images((32, 48), (16, 64)):
        assert error(compiled(x), model(x)) <= 1e-5
