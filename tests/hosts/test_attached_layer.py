"""The basis in the weights and rotation in place, against rotation of tokens out of place: values and gradients."""

from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

import comrope
from comrope.errors import InputError
from comrope.hosts import _attached_layer
from tests.hosts import model_table
from tests.hosts.helpers import close, perturb_angles
from tests.hosts.zoo import ZOO

MODELS = (
    "timm vit",  # queries, keys and values of one projection
    "timm eva mixed",
    "gpt-neox",  # head by head, a half layout of some features
    "phi3",  # grouped queries in one projection, a half layout
    "llama",  # a projection for each, grouped queries, a half layout
    "vit",
    "wan",
)
FAMILIES = {
    "rope-mixed": {},
    "comrope-ld": {"block_size": 4, "init": "normal", "std": 0.3},
    "comrope-mt": {"block_size": 4},
    "liere": {"block_size": 4, "init": "normal", "std": 0.3},
}


def _attached(name: str, family: str) -> nn.Module:
    torch.manual_seed(0)
    model = ZOO[name].build()
    with torch.no_grad():
        return perturb_angles(model_table.attach_to(ZOO[name], family, model=model, **FAMILIES[family])).double()


def _run(name: str, model: nn.Module) -> Tensor:
    """Returns the output for the example, cast to the dtype of the model."""
    entry, dtype = ZOO[name], next(model.parameters()).dtype
    given = {
        key: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
        for key, v in entry.keywords().items()
    }
    return entry.tensor(model(**given))


def _outcome(name: str, model: nn.Module) -> dict[str, Tensor]:
    """Returns the output of a model, and the gradient of every parameter that has one."""
    model.zero_grad()
    output = _run(name, model)
    output.sin().sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach()} | found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", MODELS)
def test_every_way_of_rotating_gives_the_same(name, family, monkeypatch):
    model = _attached(name, family)
    outcomes = {}
    for in_weights in (True, False):
        for in_place in (True, False):
            monkeypatch.setattr(_attached_layer, "_basis_pays_in_weights", lambda x, weight, answer=in_weights: answer)
            monkeypatch.setattr(_attached_layer, "_can_rotate_in_place", lambda x, answer=in_place: answer)
            outcomes[in_weights, in_place] = _outcome(name, model)
    expected = outcomes.pop((False, False))
    assert any(".encoding." in parameter for parameter in expected)
    for found in outcomes.values():
        assert found.keys() == expected.keys()
        for key, value in found.items():
            scale = expected[key].abs().max()
            assert (value - expected[key]).abs().max() <= 1e-9 * scale + 1e-13, key


@pytest.mark.parametrize("name", ["timm vit", "llama"])
def test_the_basis_is_multiplied_into_the_weights_if_there_are_enough_tokens(name, monkeypatch):
    model, calls = _attached(name, "comrope-ld"), []
    monkeypatch.setattr(
        _attached_layer,
        "mapped_rows",
        lambda *inputs, own=_attached_layer.mapped_rows: calls.append(1) or own(*inputs),
    )
    expected = _run(name, model)
    assert calls
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert _attached_layer._basis_pays_in_weights(torch.zeros(1, module.in_features // 4, 1), module.weight)
            assert not _attached_layer._basis_pays_in_weights(
                torch.zeros(1, module.in_features // 4 - 1, 1), module.weight
            )
    count = len(calls)
    monkeypatch.setattr(_attached_layer, "_basis_pays_in_weights", lambda x, weight: False)
    close(_run(name, model), expected, 1e-9)
    assert len(calls) == count


def test_in_half_precision_the_basis_stays_out_of_the_weights():
    weight = torch.zeros(8, 8, dtype=torch.bfloat16)
    assert not _attached_layer._basis_pays_in_weights(torch.zeros(1, 100, 8, dtype=torch.bfloat16), weight)


def test_queries_changed_in_place_raise_an_error():
    """As by attention that scales its queries in place. It is allowed without learned angles, or without gradients."""
    models = [_attached("llama", "comrope-mt"), comrope.freeze(_attached("llama", "comrope-mt"))]
    for model in models:
        projection = model.model.layers[0].self_attn.q_proj
        projection.register_forward_hook(lambda module, args, output: output.mul_(2.0))
        with torch.no_grad():
            _run("llama", model)
    with pytest.raises(InputError, match="changed in place"):
        _run("llama", models[0]).sum().backward()
    _run("llama", models[1]).sum().backward()


def test_projections_are_plain_again_after_detach():
    model = _attached("llama", "comrope-ld")
    projection = model.model.layers[0].self_attn.q_proj
    assert "forward" in vars(projection) and type(projection) is nn.Linear
    comrope.detach(model)
    assert "forward" not in vars(projection)


def test_a_projection_with_another_forward_keeps_it():
    """As from accelerate, for weights on disk or on another device. Its output is rotated by a hook."""
    torch.manual_seed(0)
    plain = ZOO["llama"].build()
    projection: Any = plain.model.layers[0].self_attn.q_proj
    add_hook_to_module(projection, ModelHook())
    other_forward = projection.forward
    with torch.no_grad():
        expected = _run("llama", plain)
        model = comrope.attach(plain, "comrope-ld", block_size=2)
        close(_run("llama", model), expected)
        assert projection.forward is other_forward
        changed = _run("llama", perturb_angles(model))
        assert (changed - expected).abs().max() > 1e-4
        comrope.detach(model)
        assert torch.equal(_run("llama", model), expected)
    assert projection.forward is other_forward


def test_accelerate_may_come_after():
    model = _attached("llama", "comrope-mt")
    projection: Any = model.model.layers[0].self_attn.q_proj
    expected = _run("llama", model)
    add_hook_to_module(projection, ModelHook())
    assert torch.equal(_run("llama", model), expected)
    remove_hook_from_module(projection)
    assert torch.equal(_run("llama", model), expected)
