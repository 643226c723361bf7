"""Attach and detach as operations: all changes or none, exact undo, and independent copies."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from comrope import hosts
from comrope.encodings import ENCODINGS
from comrope.errors import ConfigurationError, InputError
from comrope.hosts._attachment import Attachment
from comrope.hosts._coordinate_grid import CoordinateGrid
from comrope.hosts._host_rope import one_axis_per_block
from comrope.hosts._position_context import PositionContext
from tests.helpers import ROTARY
from tests.hosts.helpers import (
    ALL_HOSTS,
    assert_as_before,
    attached,
    error,
    images,
    position_contexts_of,
    snapshot,
    tiny,
)

SIZE = (32, 48)


def _compiled(model):
    model.blocks[1].compile()
    return model


REFUSED = {
    "an unknown class": (
        lambda: nn.Sequential(nn.Linear(4, 4)),
        {},
        "Sequential is no model .*comrope can find, nor.*positions=",
    ),
    "another attention": (lambda: tiny("vit", attn_layer="diff"), {}, r"^blocks\.0\.attn: .*this DiffAttention: it"),
    "another block size": (lambda: tiny("vit"), {"block_size": 6}, r"^blocks\.0\.attn: block_size=6 with head_dim=16"),
    "an unknown encoding": (lambda: tiny("vit"), {"name": "comrope-dl"}, "did you mean 'comrope-ld'"),
    "ape": (lambda: tiny("vit"), {"name": "ape"}, "adds to tokens"),
    "an unknown setting": (lambda: tiny("vit"), {"blocksize": 8}, "no use for blocksize"),
    "no such layer": (lambda: tiny("vit"), {"layers": [0, 2]}, r"layers=\[0, 2\].*2 attention layers"),
    "a layer twice": (lambda: tiny("vit"), {"layers": [1, -1]}, "different indices"),
    "no layer": (lambda: tiny("vit"), {"layers": []}, "at least one"),
    "no such name": (
        lambda: tiny("vit"),
        {"layers": ["blocks.7.attn"]},
        r"blocks\.7\.attn.*'blocks\.0\.attn' to 'blocks\.1\.attn'",
    ),
    "a layer by number and by name": (
        lambda: tiny("vit"),
        {"layers": [1, "blocks.1.attn"]},
        "different indices or names",
    ),
    "a pattern that no layer fits": (
        lambda: tiny("vit"),
        {"layers": "block.*.attn"},
        r"layers='block\.\*\.attn'.*pattern",
    ),
    "a star for several parts": (lambda: tiny("vit"), {"layers": "*"}, r"layers='\*'.*pattern"),
    "a number for layers": (lambda: tiny("vit"), {"layers": 1}, "expected a list"),
    "another prefix": (lambda: tiny("vit"), {"prefix": "last"}, "expected 'middle' or 'first'"),
    "a second attach": (lambda: attached(tiny("vit"), "rope-mixed"), {}, "attached already: comrope.detach"),
    "a compiled block": (lambda: _compiled(tiny("vit")), {}, "is compiled.*attach first, then compile"),
    "a compiled model": (lambda: torch.compile(tiny("vit")), {}, "is compiled"),
    "rope that does not fit": (
        lambda: tiny("mixed"),
        {"name": "comrope-ap"},
        r"^blocks\.0\.attn: .*does not hold these",
    ),
    "a base for the host's rope": (lambda: tiny("cat"), {"base": 100.0}, "base= has no use here"),
    "a frequency for the host's rope": (lambda: tiny("cat"), {"max_frequency": 14.0}, "max_frequency= has no use here"),
    "no module": (lambda: None, {}, "got NoneType"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_the_model_untouched(case):
    make, settings, message = REFUSED[case]
    model = make()
    before = None if model is None else snapshot(model)
    with pytest.raises(ConfigurationError, match=message):
        hosts.attach(model, **{"name": "comrope-ld"} | settings)
    if model is not None:
        assert_as_before(model, before)


def test_a_model_without_values_is_refused():
    model = tiny("vit").to("meta")
    with pytest.raises(ConfigurationError, match=r"meta device.*load or draw its weights first"):
        hosts.attach(model, "comrope-ld")
    assert not hosts.angle_parameters(model)


def test_a_failure_in_the_middle_of_the_changes_undoes_them(monkeypatch):
    """It occurs after the model, the first layer and half of the second have changed."""
    model = tiny("vit")
    before, (x,) = snapshot(model), images(SIZE)
    expected, original = model(x), nn.Module.__setattr__

    def refusing(self, name, value):
        if name == "order" and self is model.blocks[1].attn:
            assert all(hasattr(block.attn, "encoding") for block in model.blocks)
            raise RuntimeError("no more")
        original(self, name, value)

    monkeypatch.setattr(nn.Module, "__setattr__", refusing)
    with pytest.raises(RuntimeError, match="no more"):
        hosts.attach(model, "comrope-ld")
    monkeypatch.undo()
    assert_as_before(model, before)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("host", ALL_HOSTS)
def test_detaching_restores_everything_bit_for_bit(host):
    model = tiny(host)
    before, (x,) = snapshot(model), images(SIZE)
    expected = model(x)
    for name in ("comrope-mt", "liere", "rope") if host == "vit" else ("comrope-mt",):
        hosts.attach(model, name, **({"init": "normal"} if name != "rope" else {}))
        assert error(model(x), expected) > 1e-4
        hosts.detach(model)
        assert_as_before(model, before)
        assert torch.equal(model(x), expected)
    with pytest.raises(ConfigurationError, match="no encoding attached"):
        hosts.detach(model)


def test_what_is_removed_follows_the_model():
    model = tiny("dinov3", use_abs_pos_emb=True).train()
    hosts.attach(model, "rope-mixed", keep_ape=False)
    hosts.detach(model.double().eval())
    assert model.pos_embed.dtype == torch.float64
    assert not model.rope.training
    expected = tiny("dinov3", use_abs_pos_emb=True).double()
    x = images(SIZE)[0].double()
    assert torch.equal(model(x), expected(x))


LAYERS = [
    ([0], {0}),
    ([1], {1}),
    ([-1], {1}),
    ([1, 0], {0, 1}),
    (["blocks.1.attn"], {1}),
    ([0, "blocks.1.attn"], {0, 1}),
    ("blocks.1.attn", {1}),
    ("blocks.[!1].attn", {0}),
    ("blocks.*.attn", {0, 1}),
    (None, {0, 1}),
]


@pytest.mark.parametrize(("layers", "chosen"), LAYERS)
def test_only_the_chosen_layers_get_an_encoding(layers, chosen):
    model = hosts.attach(tiny("mixed"), "rope-mixed", layers=layers)
    assert {i for i, block in enumerate(model.blocks) if hasattr(block.attn, "encoding")} == chosen
    (x,) = images(SIZE)
    assert error(model(x), tiny("mixed")(x)) <= 1e-5
    assert (model.rope is None) == (len(chosen) == 2)


@pytest.mark.parametrize("host", ["vit", "mixed", "dinov3"])
@pytest.mark.parametrize("through", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(host, through):
    model = attached(tiny(host), "comrope-mt", perturbation=0.3, keep_ape=False)
    wide, tall = images((32, 48), (48, 32)) if host != "mixed" else images(SIZE, SIZE)
    expected = model(wide)
    twin = through(model)
    (position_context,) = set(position_contexts_of(twin))
    assert position_context not in position_contexts_of(model)
    twin(tall)
    assert torch.equal(twin(wide), expected)
    hosts.detach(twin)
    assert torch.equal(twin(wide), tiny(host)(wide))
    assert torch.equal(model(wide), expected)


def test_state_dicts_go_from_one_attached_model_to_another():
    model, other = (attached(tiny("vit", seed=seed), "comrope-mt", perturbation=0.3) for seed in (0, 1))
    other.load_state_dict(model.state_dict())
    (x,) = images(SIZE)
    assert torch.equal(other(x), model(x))
    plain = tiny("vit").state_dict()
    assert {key: value for key, value in model.state_dict().items() if ".encoding." not in key}.keys() == plain.keys()


def test_a_model_inside_another():
    inner = tiny("vit")
    outer = nn.Sequential(inner, nn.Linear(5, 2))
    (x,) = images(SIZE)
    expected = outer(x)
    hosts.attach(outer, "comrope-ld")
    assert error(outer(x), expected) <= 1e-5
    assert {name.split(".")[0] for name in hosts.angle_parameters(outer)} == {"0"}
    with pytest.raises(ConfigurationError, match="attached already"):
        hosts.attach(inner, "comrope-ld")
    with pytest.raises(ConfigurationError, match="has no encoding attached"):
        hosts.detach(inner)
    assert torch.equal(hosts.detach(outer)(x), expected)


def test_two_models_in_one_keep_their_own_positions():
    towers = nn.ModuleList([tiny("vit"), tiny("vit", seed=1)])
    hosts.attach(towers, "comrope-mt", init="normal", layers=[0, 1, 3])
    assert [hasattr(block.attn, "encoding") for tower in towers for block in tower.blocks] == [True, True, False, True]
    wide, tall = images((32, 48), (48, 32))
    expected = towers[0](wide)

    def run_other(*_):
        towers[1](tall)

    hook = towers[0].blocks[0].register_forward_hook(run_other)
    assert torch.equal(towers[0](wide), expected)
    hook.remove()
    hosts.detach(towers)
    assert not any(hasattr(block.attn, "encoding") for tower in towers for block in tower.blocks)


def test_the_arguments_of_attach_are_recorded():
    model = hosts.attach(tiny("vit"), "comrope-ld", block_size=4, layers=[1], keep_ape=False, init="normal", std=0.5)
    expected = {"name": "comrope-ld", "block_size": 4, "layers": [1], "keep_ape": False, "prefix": "middle"}
    assert Attachment.of(model).settings == expected | {"init": "normal", "std": 0.5}
    assert Attachment.of(hosts.attach(tiny("vit"), "rope", layers="*.0.*")).settings["layers"] == "*.0.*"
    again = hosts.attach(tiny("vit"), **Attachment.of(model).settings)
    assert again.state_dict().keys() == model.state_dict().keys()


def test_param_groups_put_every_parameter_in_its_place():
    model = attached(tiny("dinov2"), "comrope-ld")
    model.head.requires_grad_(False)
    weights, no_decay, angles = hosts.param_groups(model, lr=0.1, weight_decay=0.05)
    assert (weights["weight_decay"], no_decay["weight_decay"], angles["weight_decay"]) == (0.05, 0, 0)
    assert "lr" not in weights
    assert "lr" not in no_decay
    assert angles["lr"] == 0.1
    names = {id(p): name for name, p in model.named_parameters()}
    found = [[names[id(p)] for p in group["params"]] for group in (weights, no_decay, angles)]
    assert sorted(name for group in found for name in group) == sorted(
        name for name in names.values() if not name.startswith("head")
    )
    assert set(found[2]) == set(hosts.angle_parameters(model))
    assert {"pos_embed", "cls_token", "reg_token", "norm.weight", "blocks.0.attn.qkv.bias"} <= set(found[1])
    assert "blocks.0.attn.qkv.weight" in found[0]
    optimizer = torch.optim.AdamW(hosts.param_groups(model), lr=1e-3, weight_decay=0.2)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(1e-3, 0.2), (1e-3, 0), (1e-3, 0)]


def test_param_groups_of_a_model_without_encodings():
    groups = hosts.param_groups(nn.Linear(3, 2))
    assert [group.get("weight_decay") for group in groups] == [None, 0]


@pytest.mark.parametrize("name", ROTARY)
def test_every_rotary_encoding_attaches(name):
    model = attached(tiny("vit"), name)
    assert all(type(block.attn.encoding) is ENCODINGS[name] for block in model.blocks)


def test_positions_have_to_be_set():
    position_context = PositionContext()
    with pytest.raises(InputError, match="none were set"):
        position_context.get(4)
    positions = position_context.set(CoordinateGrid().positions((2, 2), 1, like=torch.zeros(1)))
    assert position_context.get(5) is positions
    with pytest.raises(InputError, match=r"4 tokens.*set for 5"):
        position_context.get(4)
    model = attached(tiny("vit"), "comrope-ld")
    with pytest.raises(InputError, match="Call the whole model"):
        model.blocks(torch.zeros(1, 7, 32))


def test_axial_planes_are_sorted_into_blocks_of_one_axis():
    rows = torch.tensor([[1.0, 2, 3, 4, 0, 0, 0, 0], [0, 0, 0, 0, 5, 6, 7, 8]]).unsqueeze(1)
    order = one_axis_per_block(rows, block_size=4)
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert one_axis_per_block(rows, block_size=16) is None
    assert one_axis_per_block(rows + 1, block_size=4) is None


@pytest.mark.slow
def test_importing_hosts_imports_no_library():
    code = "import sys, comrope.hosts; print(*{'timm', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
