"""Vision models of transformers with encodings: outputs before and after training, detach, fold, checkpointing, compilation."""

import copy

import pytest
import torch
import transformers as hf
from torch import nn

import comrope
from comrope import reference
from comrope.errors import ConfigurationError, InputError, NoSpectrumError
from comrope.hosts import angle_parameters, attach, detach, fold, param_groups
from tests.hosts.helpers import assert_as_before, by_heads, position_contexts_of, snapshot
from tests.hosts.tiny_transformers import (
    NUM_PREFIX_TOKENS,
    VISION,
    build,
    checkpoint_blocks,
    clip_model,
    forward,
    images,
    perturb_angles,
)

LEARNED = ("rope-mixed", "string", "comrope-ap", "comrope-ld", "comrope-mt")
HOSTS = tuple(VISION)
WITHOUT_ROPE = tuple(host for host in HOSTS if host != "dinov3")


def _projections(layer) -> tuple[nn.Module, nn.Module]:
    """Returns the projections of queries and keys; those of DINOv2 have other names in older versions."""
    return (layer.query, layer.key) if hasattr(layer, "query") else (layer.q_proj, layer.k_proj)


def attached(host: str, name: str = "comrope-ld", *, config: dict | None = None, **settings):
    if name.startswith("comrope"):
        settings.setdefault("block_size", 4)
    return attach(build(host, **(config or {})), name, **settings)


def close(actual, expected, tolerance: float = 1e-5):
    error = (actual - expected).abs().max().item()
    assert error <= tolerance * expected.abs().max().item(), f"error {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "name"),
    # LieRE holds no RoPE, and zero angles are not DINOv3, which has one.
    [(host, name) for host in HOSTS for name in LEARNED] + [(host, "liere") for host in WITHOUT_ROPE],
)
def test_outputs_stay_until_angles_change(host, name):
    x, model = images(3, 5), attached(host, name)
    expected = forward(build(host), x)
    close(forward(model, x), expected)
    changed = forward(perturb_angles(model), x)
    assert (changed - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", ["comrope-ap", "comrope-mt", "liere"])
@pytest.mark.parametrize("host", WITHOUT_ROPE)
def test_attention_is_that_of_queries_and_keys_rotated_at_their_positions(host, name):
    """Against matrix_exp, on an image that is not square."""
    model = attached(host, name, init="normal", std=0.5, config={"attn_implementation": "eager"})
    layer = next(m for m in model.modules() if hasattr(m, "encoding"))
    seen = {}
    layer.register_forward_hook(
        lambda module, args, kwargs, out: seen.update(x=(args or [kwargs["hidden_states"]])[0], weights=out[1]),
        with_kwargs=True,
    )
    forward(model, images(3, 5))
    # The forward of their class gives the outputs of projections without rotation.
    q, k = (by_heads(nn.Linear.forward(part, seen["x"]), 16) for part in _projections(layer))
    positions = comrope.positions.grid((3, 5), num_prefix_tokens=NUM_PREFIX_TOKENS[host])
    q, k = reference.rotate(q, k, layer.encoding.angle_matrices(), positions)
    torch.testing.assert_close(seen["weights"], (q @ k.mT / 4).softmax(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [None, [1]])
def test_dinov3_in_training_moves_its_coordinates_as_ever(layers):
    config = {"pos_embed_shift": 0.3, "pos_embed_jitter": 1.5, "pos_embed_rescale": 2.0}
    x, outputs = images(3, 5), []
    for model in (build("dinov3", **config), attached("dinov3", "comrope-mt", layers=layers, config=config)):
        torch.manual_seed(7)
        outputs.append(forward(model.train(), x))
    close(outputs[1], outputs[0])
    assert (forward(model, x) - outputs[1]).abs().max() > 1e-3  # another draw gives other positions


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("host", ["vit", "dinov2", "dinov3"])
def test_every_angle_gets_a_gradient(host, name, attention):
    model = perturb_angles(attached(host, name, config={"attn_implementation": attention}), 0.1)
    forward(model, images()).square().mean().backward()
    angles = angle_parameters(model)
    assert len(angles) >= 2
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in angles.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("host", HOSTS)
def test_training_starts_from_where_the_model_was(host, name):
    model = attached(host, name)
    before = {n: p.clone() for n, p in angle_parameters(model).items()}
    target = torch.randn_like(forward(model, images()))
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2), lr=1e-4)
    losses = []
    for _ in range(6):
        loss = (forward(model, images()) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # From zero angles the axis scales and bases have no gradient in the first step; they have one since.
    assert all((p != before[n]).any() for n, p in angle_parameters(model).items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["comrope-ap", "rope", "none"])
@pytest.mark.parametrize("keep_ape", [True, False])
@pytest.mark.parametrize("host", HOSTS)
def test_detach_is_exact(host, keep_ape, name):
    model, x = build(host), images()
    before, expected = snapshot(model), forward(model, x)
    attach(model, name, keep_ape=keep_ape)
    forward(model, x)
    detach(model)
    assert_as_before(model, before)
    assert torch.equal(forward(model, x), expected)


@pytest.mark.parametrize("host", WITHOUT_ROPE)
def test_without_its_ape_a_model_knows_order_only_from_the_encoding(host):
    x = images()
    shuffled = x.unflatten(2, (4, 8)).roll(1, dims=2).flatten(2, 3)  # rows of patches
    for name, sees in (("none", False), ("comrope-mt", True)):
        model = attached(host, name, keep_ape=False, **({"init": "normal"} if sees else {}))
        outputs = [forward(model, images).flatten(1).sort(dim=1)[0] for images in (x, shuffled)]
        assert (outputs[0] - outputs[1]).abs().max().gt(1e-4) == sees


@pytest.mark.slow
@pytest.mark.parametrize("name", ["comrope-ld", "comrope-mt", "rope-mixed", "string"])
@pytest.mark.parametrize("host", HOSTS)
def test_fold_keeps_the_outputs(host, name):
    x, model = images(3, 5), perturb_angles(attached(host, name))
    expected = forward(model, x)
    close(forward(fold(model), x), expected, 1e-4)
    kinds = {type(m.encoding).__name__ for m in model.modules() if hasattr(m, "encoding")}
    assert kinds == {"FixedFrequencies"}


def test_fold_refuses_liere_and_changes_nothing():
    x, model = images(), perturb_angles(attached("vit", "liere", init="identity"))
    expected = forward(model, x)
    with pytest.raises(NoSpectrumError, match=r"layers\.0\.attention: LieRE"):
        fold(model)
    assert torch.equal(forward(model, x), expected)


@pytest.mark.parametrize("host", HOSTS)
def test_attentions_and_hidden_states_are_recorded_as_before(host):
    options = {"output_attentions": True, "output_hidden_states": True}
    model = build(host, attn_implementation="eager")
    before = model(images(), **options)
    after = attach(model, "comrope-mt", block_size=4)(images(), **options)
    assert len(before.attentions) == len(after.attentions) == 2
    for kind in ("attentions", "hidden_states"):
        torch.testing.assert_close(after[kind], before[kind], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("host", ["clip", "dinov2", "dinov3"])
def test_gradient_checkpointing_recomputes_the_same(host, reentrant):
    gradients = []
    for checkpointed in (False, True):
        model = perturb_angles(attached(host)).train()
        if checkpointed:
            checkpoint_blocks(model, reentrant=reentrant)
        loss = forward(model, images(3, 5)).square().mean()
        forward(model.eval(), images(5, 3))  # as many tokens at other positions, without a backward pass
        model.train()
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_gradient_checkpointing_never_guesses_between_grids():
    model = attached("vit").train()
    checkpoint_blocks(model)
    losses = [forward(model, images(*grid)).square().mean() for grid in ((3, 5), (5, 3))]
    with pytest.raises(InputError, match="different grids"):
        sum(losses).backward()


@pytest.mark.parametrize("host", ["vit", "dinov3"])
def test_half_precision_does_not_change_angles_and_positions(host):
    x, model = images(), perturb_angles(attached(host))
    expected = forward(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        close(forward(model, x), expected, 0.1)
    angles = {n: p.clone() for n, p in angle_parameters(model).items()}
    close(forward(model.bfloat16(), x.bfloat16()).float(), expected, 0.1)
    assert all(p.dtype == torch.float32 and torch.equal(p, angles[n]) for n, p in angle_parameters(model).items())


def test_a_copy_has_positions_of_its_own():
    model = perturb_angles(attached("vit"))
    twin = copy.deepcopy(model)
    expected = forward(model, images(3, 5))
    forward(model, images(5, 3))
    assert torch.equal(forward(twin, images(3, 5)), expected)
    (position_context,) = set(position_contexts_of(twin))
    assert position_context not in position_contexts_of(model)


def test_masked_tokens_stay_masked():
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[0, 9:] = 0
    expected = build("vit")(images(), attention_mask=mask).logits
    assert (expected - build("vit")(images()).logits).abs().max() > 1e-3
    close(attached("vit")(images(), attention_mask=mask).logits, expected)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("host", ["vit", "dinov3"])
def test_compiles_whole(host):
    model = perturb_angles(attached(host, config={"num_hidden_layers": 1}))
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=False, backend="eager")
    options = {"interpolate_pos_encoding": True} if host == "vit" else {}
    with torch.no_grad():
        for grid in ((4, 4), (3, 5)):
            close(compiled(images(*grid), **options)[0], forward(model, images(*grid)))


def test_clip_changes_in_its_vision_tower_alone():
    model = clip_model()
    text = snapshot(model.text_model)
    ids = torch.randint(3, 50, (2, 7))
    before = model(input_ids=ids, pixel_values=images())
    after = attach(model, "comrope-mt", block_size=4)(input_ids=ids, pixel_values=images())
    assert_as_before(model.text_model, text)
    assert torch.equal(after.text_embeds, before.text_embeds)
    close(after.logits_per_image, before.logits_per_image)
    close(after.image_embeds, before.image_embeds)


def test_siglip_s_pooling_head_stays():
    model = build("siglip")
    assert isinstance(model.head.attention, nn.MultiheadAttention)
    head = snapshot(model.head)
    assert_as_before(attach(model, "comrope-ld", block_size=4).head, head)


def test_backbones_are_towers_too():
    config = hf.DINOv3ViTConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    backbone = hf.DINOv3ViTBackbone(config).eval()
    x = images(4, 6)
    expected = backbone(x).feature_maps[0]
    close(attach(backbone, "comrope-mt")(x).feature_maps[0], expected)


def test_a_block_that_does_not_fit_is_refused_by_layer():
    model = build("clip")
    before = snapshot(model)
    with pytest.raises(ConfigurationError, match=r"encoder\.layers\.0\.self_attn.*block_size=6"):
        attach(model, "comrope-ld", block_size=6)
    assert_as_before(model, before)


def _roformer() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return hf.RoFormerModel(hf.RoFormerConfig(vocab_size=50, embedding_size=32, max_position_embeddings=64, **sizes))


def _sam3() -> nn.Module:
    if not hasattr(hf, "Sam3ViTModel"):
        pytest.skip("this version of transformers has no Sam3ViTModel")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    windows = {"window_size": 4, "global_attn_indexes": [1], "pretrain_image_size": 32}
    return hf.Sam3ViTModel(hf.Sam3ViTConfig(image_size=64, patch_size=8, **sizes, **windows))


@pytest.mark.parametrize(
    "make, reason", [(_roformer, "not with position ids or tokens"), (_sam3, "2 modules that make RoPE tables")]
)
def test_positions_that_are_known_in_no_way_of_ours_are_refused_with_the_reason(make, reason):
    model = make()
    before = snapshot(model)
    with pytest.raises(ConfigurationError, match=reason):
        attach(model, "rope-mixed")
    assert_as_before(model, before)
