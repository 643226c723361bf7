"""`comrope.rescale`: encodings by themselves and in models, folded, saved, exported and undone."""

import copy
import functools
import json

import pytest
import torch
from timm.models.eva import Eva
from torch import nn

import comrope
from comrope.encodings import FixedFrequencies, FixedMaps, FixedSpectrum
from comrope.errors import ConfigurationError, DataError, InputError, NoSpectrumError
from comrope.hosts._coordinate_grid import CoordinateGrid
from tests.helpers import COMMUTING, assert_close, build, call, draw, planes, scores
from tests.hosts.helpers import attached, error, images, tiny
from tests.hosts.saved_models import attached_from_zoo, keeps_arguments
from tests.hosts.zoo import ZOO

TRAINED, SHAPE = (4, 6), (8, 9)
SIZES = {"trained": TRAINED, "shape": SHAPE}
LARGE = (64, 72)
"""Pixels of SHAPE in patches of 8."""


def mapped() -> FixedMaps:
    """Plain RoPE after different maps of queries and of keys, as of an encoding of somebody else's."""
    pe = FixedMaps(2, 16, 2, block_size=4)
    for seed, buffer in enumerate(pe.buffers()):
        buffer.copy_(draw(*buffer.shape, seed=seed))
    return pe


@pytest.mark.parametrize("name", [*COMMUTING, "maps"])
def test_an_encoding_at_more_tokens_is_itself_at_other_positions(name):
    """Extrapolating, tokens are as far apart as in training; interpolating, the canvas is as large as in training."""
    pe = mapped() if name == "maps" else build(name, jitter=0.2, block_size=8)
    q, k = draw(2, 2, 72, 16), draw(2, 2, 72, 16, seed=1)
    grid = functools.partial(comrope.positions.grid, SHAPE, dtype=torch.float64)
    relative, counted, as_far_apart = grid(), grid(relative=False), grid(extents=TRAINED)
    further = comrope.rescale(copy.deepcopy(pe), "extrapolate", **SIZES, unit="relative")
    assert_close(call(further, q, k, relative), call(pe, q, k, as_far_apart), 1e-12)
    within = comrope.rescale(copy.deepcopy(pe), "linear", **SIZES, unit="index")
    squeezed = counted * torch.tensor(TRAINED) / torch.tensor(SHAPE)
    assert_close(call(within, q, k, counted), call(pe, q, k, squeezed), 1e-12)
    for fixed in (further, within):
        assert not list(fixed.parameters()) and comrope.check(fixed).holds


@pytest.mark.parametrize("name", [*COMMUTING, "maps"])
def test_maps_of_queries_and_keys_say_all_of_it(name):
    """Plain RoPE with them gives the scores, which are larger by the gain."""
    pe = comrope.rescale(mapped() if name == "maps" else build(name, block_size=8), "yarn", **SIZES, unit="relative")
    q, k, x = draw(2, 2, 5, 16), draw(2, 2, 5, 16, seed=1), draw(5, 2)
    maps = pe.folded()
    assert pe.gain > 1 and torch.equal(maps.frequencies, pe.scaled_frequencies())
    q_mapped, k_mapped = (
        torch.einsum("hmcd,bhlmd->bhlmc", each, tokens.unflatten(-1, (-1, pe.block_size))).flatten(-2)
        for each, tokens in ((maps.query_map, q), (maps.key_map, k))
    )
    expected = comrope.reference.rotate(q_mapped, k_mapped, planes(maps.frequencies), x)
    assert_close(call(pe, q, k, x), scores(*expected), 1e-10)


def test_it_starts_again_from_the_frequencies_of_before_and_is_undone():
    pe = build("comrope-mt", block_size=8)
    before = pe.spectrum()
    fixed = comrope.rescale(pe, "yarn", **SIZES, unit="relative")
    assert type(fixed) is FixedSpectrum and torch.equal(pe.spectrum().frequencies, before.frequencies)
    once = fixed.spectrum().frequencies
    assert comrope.rescale(fixed, "ntk", trained=TRAINED, shape=(40, 6), unit="index") is fixed
    assert not torch.equal(fixed.spectrum().frequencies, once)
    assert "scaled=ntk (4, 6) → (40, 6)" in repr(fixed)
    comrope.rescale(fixed, "yarn", **SIZES, unit="relative")
    assert torch.equal(fixed.spectrum().frequencies, once) and fixed.gain > 1
    comrope.rescale(fixed, "none")
    assert all(map(torch.equal, fixed.spectrum(), before)) and fixed.gain == 1
    assert call(fixed, *(q := [draw(1, 2, 3, 16)] * 2), draw(3, 2)).equal(call(comrope.freeze(pe), *q, draw(3, 2)))


def test_training_goes_on_from_scaled_frequencies():
    fixed = comrope.rescale(build("comrope-ld", block_size=8), "ntk", **SIZES, unit="relative")
    learned = build("comrope-mt", block_size=8)
    learned.set_spectrum(*fixed.spectrum())
    q, k, x = draw(1, 2, 72, 16), draw(1, 2, 72, 16, seed=1), comrope.positions.grid(SHAPE)
    assert_close(call(learned, q, k, x), call(fixed, q, k, x), 1e-12)


def test_other_frequencies_are_scaled_as_they_are_loaded():
    one, other = (comrope.freeze(build("rope-mixed", seed=seed)) for seed in (0, 1))
    comrope.rescale(one, "ntk", **SIZES, unit="index")
    one.load_state_dict(other.state_dict())
    expected = comrope.rescale(other, "ntk", **SIZES, unit="index").spectrum()
    assert torch.equal(one.spectrum().frequencies, expected.frequencies)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["none", "comrope-ld"])
def test_scores_are_larger_by_the_gain_and_so_are_gradients(name, dtype):
    pe = build(name, block_size=8)
    warm = comrope.rescale(pe, "linear", **SIZES, unit="relative", gain=3.0)
    x, found = draw(5, 2), []
    for encoding in (pe, warm):
        q, k = (draw(2, heads, 5, 16, seed=heads, dtype=dtype).requires_grad_() for heads in (4, 2))
        rotated = call(encoding, q, k, x)
        rotated.sin().sum().backward() if encoding is pe else (rotated / 3).sin().sum().backward()
        found.append((rotated.detach(), q.grad, k.grad))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert_close(found[1][0], 3 * found[0][0], tolerance)
    for plain, scaled in zip(found[0][1:], found[1][1:], strict=True):
        assert_close(scaled, plain, tolerance)
    rotation = warm.rotation(x)  # of float32, for tokens of float64
    q, k = draw(2, 4, 5, 16), draw(2, 2, 5, 16, seed=1)
    assert_close(rotation.rotate(q, k)[0], warm(q, k, x)[0], 1e-12)


def test_layers_with_different_gains_are_rotated_together():
    layers = [comrope.freeze(build("rope-mixed", seed=seed)) for seed in range(3)]
    comrope.rescale(layers[1], "yarn", **SIZES, unit="index")
    x, q = draw(4, 2), draw(1, 2, 4, 16)
    for layer, rotation in zip(layers, comrope.encodings.rotations(layers, x, dtype=torch.float64), strict=True):
        assert torch.equal(rotation.rotate(q, q)[0], layer(q, q, x)[0])


UNSCALED = {
    "vit": "linear",
    "cat": "extrapolate",
    "cat xy": "linear",
    "mixed": "extrapolate",
    "dinov3": "linear",
}
"""The method that changes nothing, by the positions that a host has: relative or counted."""


@pytest.mark.parametrize("host", UNSCALED)
@torch.no_grad()
def test_the_unit_is_that_of_the_host(host):
    model = attached(tiny(host, img_size=LARGE), "rope-mixed", perturbation=0.3)
    (x,) = images(LARGE)
    expected = model(x)
    other = {"linear": "extrapolate", "extrapolate": "linear"}[UNSCALED[host]]
    assert error(comrope.rescale(model, UNSCALED[host], **SIZES)(x), expected) <= 1e-5
    assert error(comrope.rescale(model, other, **SIZES)(x), expected) > 1e-2
    assert (
        error(
            comrope.rescale(model, other, **SIZES, unit="index" if other == "extrapolate" else "relative")(x), expected
        )
        <= 1e-5
    )


@torch.no_grad()
def test_position_ids_are_counted():
    model, example = attached_from_zoo(ZOO["llama"], "comrope-ld")
    expected = ZOO["llama"].run(model)
    comrope.rescale(model, "extrapolate", trained=4, shape=12)
    assert torch.allclose(ZOO["llama"].run(model), expected, atol=1e-5)
    comrope.rescale(model, "linear", trained=4, shape=12)
    positions = torch.arange(12).expand(2, -1) / 3
    unscaled = model.__class__.forward(comrope.rescale(copy.deepcopy(model), "none"), **example, position_ids=positions)
    assert torch.allclose(ZOO["llama"].run(model), unscaled.logits, atol=1e-4)


@pytest.mark.parametrize("unit", ["relative", "index", "centred", "spread"])
@pytest.mark.parametrize("more", [{}, {"divisor": "max"}, {"reference_shape": (3, 5)}])
def test_the_pitch_of_a_grid_is_the_step_between_neighbours(unit, more):
    grid = CoordinateGrid(unit, **more)
    positions = grid.positions((3, 5), 0, like=torch.zeros(1, dtype=torch.float64)).view(3, 5, 2)
    expected = (positions[1, 0, 0] - positions[0, 0, 0]).item(), (positions[0, 1, 1] - positions[0, 0, 1]).item()
    assert grid.pitch((3, 5)) == pytest.approx(expected)


def test_models_with_positions_of_their_own_need_a_unit():
    model = nn.ModuleDict({"pe": build("comrope-ld", block_size=8)})
    before = model["pe"]
    with pytest.raises(ConfigurationError, match="unit: expected one of relative, index"):
        comrope.rescale(model, "ntk", **SIZES)
    assert model["pe"] is before
    comrope.rescale(model, "ntk", **SIZES, unit="relative")
    assert model["pe"].scaling.method == ("ntk", "ntk")
    known = tiny("vit")
    positions = comrope.positions.grid((4, 6), num_prefix_tokens=1)
    comrope.attach(known, "rope-mixed", positions=positions, example=images((32, 48))[0])
    with pytest.raises(ConfigurationError, match="not known what the positions here are"):
        comrope.rescale(known, "ntk", **SIZES)


def test_only_encodings_of_so_many_axes_are_scaled():
    model = nn.ModuleList([build("rope-mixed"), build("rope-mixed", num_axes=1)])
    comrope.rescale(model, "ntk", **SIZES, unit="relative")
    assert [pe.scaling is not None for pe in model] == [True, False]
    comrope.rescale(model, "yarn", trained=16, shape=64, unit="index")
    assert [pe.scaling.method for pe in model] == [("ntk", "ntk"), ("yarn",)]
    comrope.rescale(model, "none")
    assert [pe.scaling for pe in model] == [None, None]


def test_layers_that_share_an_encoding_go_on_sharing_it():
    shared = build("comrope-ld", block_size=8)
    model = nn.ModuleList([nn.ModuleDict({"pe": shared}), nn.ModuleDict({"pe": shared})])
    comrope.rescale(model, "ntk", **SIZES, unit="relative")
    assert model[0]["pe"] is model[1]["pe"] and model[0]["pe"].scaling is not None


WRONG = {
    "no encoding": (lambda: nn.Linear(2, 2), {}, InputError, "holds no rotary encoding"),
    "no module": (lambda: "vit", {}, InputError, "got str"),
    "LieRE": (lambda: build("liere"), {}, NoSpectrumError, "commute"),
    "other axes": (lambda: build("rope"), {"trained": 4, "shape": 8}, InputError, "have 2: give one number of tokens"),
    "no sizes": (lambda: build("rope"), {"shape": None}, ConfigurationError, "wants trained= and shape="),
    "an unknown unit": (lambda: build("rope"), {"unit": "pixels"}, ConfigurationError, "unit='pixels'"),
    "sizes to undo": (lambda: build("rope"), {"method": "none"}, ConfigurationError, "takes no other argument"),
    "no values": (lambda: build("rope-mixed", device="meta"), {}, InputError, "meta"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_scaled_is_refused(case):
    make, settings, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        comrope.rescale(make(), **{"method": "ntk", **SIZES, "unit": "relative", **settings})


def test_a_failed_call_leaves_the_model_unchanged():
    model = nn.ModuleList([build("comrope-ld", block_size=8), build("liere")])
    with pytest.raises(NoSpectrumError):
        comrope.rescale(model, "ntk", **SIZES, unit="relative")
    assert [type(m).__name__ for m in model] == ["ComRoPELD", "LieRE"]


@pytest.mark.parametrize("host", ["vit", "qk-norm", "cat", "dinov3", "grouped"])
@torch.no_grad()
def test_before_or_after_folding_is_the_same(host):
    model = attached(tiny(host, img_size=LARGE), "rope-mixed", perturbation=0.3)
    (x,) = images(LARGE)
    plain = model(x)
    scaled, folded = comrope.rescale(copy.deepcopy(model), "yarn", **SIZES), comrope.fold(copy.deepcopy(model))
    expected = scaled(x)
    assert error(expected, plain) > 1e-3
    assert error(comrope.rescale(folded, "yarn", **SIZES)(x), expected) <= 1e-4
    assert error(comrope.fold(scaled)(x), expected) <= 1e-4
    for model in (scaled, folded):
        assert error(comrope.rescale(model, "none")(x), plain) <= 1e-4


@torch.no_grad()
def test_a_basis_is_folded_and_scaling_stays():
    model = attached(tiny("vit", img_size=LARGE), "comrope-mt", perturbation=0.3)
    (x,) = images(LARGE)
    expected = comrope.rescale(model, "yarn", **SIZES)(x)
    comrope.fold(model)
    encoding = model.blocks[0].attn.encoding
    assert type(encoding) is FixedFrequencies and encoding.scaling.method == ("yarn", "yarn")
    assert error(model(x), expected) <= 1e-4


@torch.no_grad()
def test_a_fold_that_fails_leaves_the_scaling():
    model = attached(tiny("qk-norm", img_size=LARGE), "comrope-mt", perturbation=0.3)
    (x,) = images(LARGE)
    expected = comrope.rescale(model, "yarn", **SIZES)(x)
    with pytest.raises(ConfigurationError, match="does not commute"):
        comrope.fold(model)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("method", ["ntk", "yarn"])
@torch.no_grad()
def test_a_host_s_own_rope_holds_scaled_frequencies_and_its_weights_the_gain(method):
    model = attached(tiny("mixed", img_size=LARGE), "comrope-mt", perturbation=0.3, block_size=2)
    (x,) = images(LARGE)
    expected = comrope.rescale(model, method, **SIZES)(x)
    comrope.fold(model)
    assert type(model) is Eva and not any(isinstance(m, FixedFrequencies) for m in model.modules())
    assert error(model(x), expected) <= 1e-4


@torch.no_grad()
def test_a_gain_behind_a_norm_stays_at_run_time():
    model = attached(tiny("mixed", img_size=LARGE, qk_norm=True), "rope-mixed", perturbation=0.3)
    (x,) = images(LARGE)
    expected = comrope.rescale(model, "yarn", **SIZES)(x)
    comrope.fold(model)
    assert any(isinstance(m, FixedFrequencies) for m in model.modules())
    assert error(model(x), expected) <= 1e-4


@pytest.mark.parametrize("method", ["extrapolate", "yarn"])
@torch.no_grad()
def test_the_exported_model_is_for_the_size_that_was_asked_for(method):
    pytest.importorskip("timm", minversion="1.0.31")
    model = attached(tiny("vit"), "comrope-ld", init="normal", std=0.5, prefix="first")
    (x,) = images(LARGE)
    expected = comrope.rescale(model, method, **SIZES)(x)
    exported = comrope.export_timm(model)
    assert type(exported) is Eva and error(exported(x), expected) <= 1e-4
    assert error(model(x), expected) == 0


def test_a_gain_that_no_weight_can_hold_is_not_exported():
    pytest.importorskip("timm", minversion="1.0.31")
    model = comrope.attach(tiny("qk-norm"), "rope-mixed", init="normal", prefix="first")
    comrope.rescale(model, "yarn", **SIZES)
    with pytest.raises(ConfigurationError, match="gain=1 leaves them as they were"):
        comrope.export_timm(model)


@keeps_arguments
@pytest.mark.parametrize("change", ["rescaled", "folded", "rescaled and undone"])
@pytest.mark.parametrize("name", ["rope", "comrope-ld", "none"])
@torch.no_grad()
def test_a_saved_model_is_loaded_scaled(name, change, tmp_path):
    import timm

    small = {"img_size": (32, 48), "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_small_patch16_224", patch_size=8, dynamic_img_size=True, **small).eval()
    comrope.attach(model, name, **({"init": "normal"} if name == "comrope-ld" else {}))
    comrope.rescale(model, ("yarn", "ntk"), **SIZES, gain=1.5)
    if change == "folded":
        comrope.fold(model)
    if "undone" in change:
        comrope.rescale(model, "none")
    (x,) = images(LARGE)
    comrope.save(model, tmp_path)
    loaded = comrope.load(tmp_path)
    assert torch.equal(loaded(x), model(x))
    scalings = [m.scaling for m in loaded.modules() if isinstance(m, FixedFrequencies)]
    assert len(scalings) == 2 and all((s is None) == ("undone" in change) for s in scalings)
    assert torch.equal(comrope.rescale(loaded, "none")(x), comrope.rescale(model, "none")(x))


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("host", ["llama", "dit"])
@torch.no_grad()
def test_save_pretrained_writes_the_scaling_too(host, folded, tmp_path):
    entry = ZOO[host]
    model, _ = attached_from_zoo(entry, "comrope-ld")
    sizes = {"trained": 4, "shape": 12} if host == "llama" else {"trained": (2, 3), "shape": (4, 3)}
    plain = entry.run(model)
    comrope.rescale(model, "yarn", **sizes)
    if folded:
        comrope.fold(model)
    model.save_pretrained(tmp_path)
    found = entry.run(comrope.load(tmp_path))
    assert torch.equal(found, entry.run(model)) and (found - plain).abs().max() > 1e-4


@keeps_arguments
@pytest.mark.parametrize(
    "rescaled", [[{"method": ["ntk"]}], [{"unknown": 1}], [3], [None, None], [{"method": 3, "trained": [0]}]]
)
def test_a_crafted_scaling_is_no_scaling(rescaled, tmp_path):
    import timm

    model = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2)
    comrope.save(comrope.freeze(comrope.attach(model, "comrope-ld")), tmp_path)
    settings = json.loads((tmp_path / "comrope.json").read_text())
    (tmp_path / "comrope.json").write_text(json.dumps(settings | {"rescaled": rescaled}))
    with pytest.raises(DataError, match=r"'rescaled' is not what comrope\.save writes"):
        comrope.load(tmp_path)


@keeps_arguments
def test_layers_that_are_scaled_differently_are_not_saved(tmp_path):
    import timm

    model = comrope.attach(timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=32, num_heads=2), "comrope-ld")
    comrope.rescale(model, "ntk", trained=(14, 14), shape=(28, 28))
    comrope.rescale(model.blocks[0], "linear", trained=(14, 14), shape=(28, 28), unit="relative")
    with pytest.raises(ConfigurationError, match="rescale the whole model"):
        comrope.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@torch.no_grad()
def test_a_rescaled_model_is_detached_and_copied():
    model = tiny("vit", img_size=LARGE)
    (x,) = images(LARGE)
    before = model(x)
    comrope.rescale(comrope.attach(model, "comrope-ld", init="normal"), "yarn", **SIZES)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert torch.equal(comrope.detach(model)(x), before)
