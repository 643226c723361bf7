"""Every model of the zoo is attached, trained, copied, folded and detached; or refused, with its reason."""

import copy
import inspect
import warnings

import pytest
import torch
from torch import nn

import comrope
from comrope import hosts
from comrope.hosts._attached_layer import AttachedLayer
from tests.hosts import model_table
from tests.hosts.helpers import (
    ENCODING,
    SUPPORTED,
    UNAVAILABLE,
    attached_model,
    close,
    perturb_angles,
    recorded_outcomes,
    run,
)
from tests.hosts.tiny_transformers import checkpoint_blocks
from tests.hosts.zoo import LIBRARIES, ZOO, names

REFUSED = {name: why for library in LIBRARIES for name, why in recorded_outcomes(library).items() if why}


def test_the_zoo_is_recorded_for_these_versions():
    """Passes with other versions than the recorded ones too, but those of constraints.txt must be recorded."""
    assert len(SUPPORTED) > 60
    assert model_table.PAGE.read_text(encoding="utf-8") == model_table.page_with(model_table.table())


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_model_that_a_recorded_version_has_is_recorded(library):
    """A model that is not recorded is in none of the tests, and the page says that this version lacks it."""
    if library in UNAVAILABLE:
        pytest.skip(UNAVAILABLE[library])
    recorded = model_table.recorded_outcomes()[library].get(model_table.version(library))
    if recorded is None:
        pytest.skip("another version")
    missing = [
        name for name in names(library) if name not in recorded and model_table.attach_error(ZOO[name]) is not None
    ]
    assert not missing, (
        f"record {', '.join(missing)}: python -m tests.hosts.model_table, and tests.versions with --record"
    )


@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_the_page_says(name):
    entry = ZOO[name]
    model = entry.build()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    assert model_table.without_numbers(model_table.attach_error(entry) or "") == model_table.without_numbers(
        REFUSED[name]
    )
    with pytest.raises(comrope.errors.ComropeError):
        model_table.attach_to(entry, model=model)
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", SUPPORTED)
def test_starts_learns_copies_folds_and_comes_off(name):
    entry = ZOO[name]
    model = entry.build()
    with torch.no_grad():
        expected = run(name, model)
    before, num_hooks = {key: value.clone() for key, value in model.state_dict().items()}, _num_hooks(model)
    model_table.attach_to(entry, model=model, **ENCODING)
    with torch.no_grad():
        start = run(name, model)
        if "init" not in model_table.ARGUMENTS.get(name, {}):
            close(start, expected)
        rotated = run(name, perturb_angles(model))
    assert (rotated - start).abs().max() > 1e-4 * start.abs().max()

    angles = hosts.angle_parameters(model)
    assert {key.split(".encoding.")[0] for key in angles} == {layer.name for layer in _attached_layers(model)}
    gradients = torch.autograd.grad(run(name, model).square().sum(), list(angles.values()))
    assert all(gradient.any() for gradient in gradients)
    assert comrope.check(model).holds

    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(run(name, twin), rotated)
        if all(layer.rotate_at != "sdpa" for layer in _attached_layers(model)):  # where nothing can be folded
            close(run(name, comrope.fold(twin)), rotated, 1e-4)
        close(run(name, comrope.freeze(copy.deepcopy(model))), rotated, 1e-4)
        comrope.detach(model)
        assert torch.equal(run(name, model), expected)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert _num_hooks(model) == num_hooks


def _num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def _attached_layers(model: nn.Module) -> list[AttachedLayer]:
    return [layer for attached in hosts.Attachment.of(model).backbones for layer in attached.layers]


TRANSFORMERS = [n for n in SUPPORTED if ZOO[n].library == "transformers"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_eager_and_sdpa_agree(name):
    entry, outputs = ZOO[name], []
    for implementation in ("eager", "sdpa"):
        try:
            model = entry.build(attn_implementation=implementation)
        except ValueError:
            pytest.skip(f"{name} has no {implementation}")
        torch.manual_seed(0)
        try:
            model = perturb_angles(model_table.attach_to(entry, model=model, **ENCODING))
        except comrope.errors.ConfigurationError as refused:  # eager attention calls neither a projection nor SDPA
            assert "passed by" in str(refused)
            pytest.skip(str(refused))
        with torch.no_grad():
            outputs.append(run(name, model))
    if "gemma2" not in name:  # SDPA leaves out its soft cap on scores
        close(outputs[0], outputs[1], 1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's, of norms under autocast
@pytest.mark.parametrize("name", SUPPORTED)
def test_autocast_and_casts_leave_angles_alone(name):
    model = attached_model(name)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert run(name, model).isfinite().all()
    model.bfloat16()
    assert {p.dtype for p in hosts.angle_parameters(model).values()} == {torch.float32}


def _enable_checkpointing(model: nn.Module, *, reentrant: bool) -> bool:
    if hasattr(model, "set_grad_checkpointing") and not reentrant:
        model.set_grad_checkpointing(True)
        return True
    if getattr(model, "_supports_gradient_checkpointing", False) and not reentrant:
        model.enable_gradient_checkpointing()
        return True
    if getattr(model, "supports_gradient_checkpointing", False):
        checkpoint_blocks(model, reentrant=reentrant)
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("name", SUPPORTED)
def test_gradient_checkpointing_recomputes_the_same(name, reentrant):
    entry, found = ZOO[name], []
    plain = entry.build()
    if not _enable_checkpointing(plain, reentrant=reentrant):
        pytest.skip("has no gradient checkpointing of this kind")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "None of the inputs have requires_grad")
        try:
            run(name, plain.train())
        except UserWarning as refused:  # its blocks are called with keywords alone
            pytest.skip(f"nor does the plain model: {refused}")
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = attached_model(name)
        _disable_dropout(model.train())
        if checkpointed:
            _enable_checkpointing(model, reentrant=reentrant)
        run(name, model).square().mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-3, atol=1e-5, msg=key)


def _disable_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if "Drop" in type(module).__name__ or "Norm" in type(module).__name__:
            module.eval()
        for name in ("attention_dropout", "dropout", "dropout_prob", "layerdrop"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)


GENERATING = [n for n in SUPPORTED if ZOO[n].library == "transformers" and "vision" not in n]


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATING)
def test_generation_through_a_cache_is_that_without(name):
    """Keys are cached after rotation; padding on the left changes positions and nothing else."""
    entry = ZOO[name]
    model = entry.build()
    if (
        "positions" in model_table.ARGUMENTS.get(name, {})
        or not getattr(model, "can_generate", lambda: False)()
        or "llava" in name
    ):
        pytest.skip("does not generate")
    model = perturb_angles(model_table.attach_to(entry, model=model, **ENCODING))
    prompt = torch.randint(6, 40, (1, 5), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    text = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    slow = model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=False, **options)
    assert torch.equal(text, slow)
    if "position_ids" in inspect.signature(model.forward).parameters:
        padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), prompt), dim=1)
        mask = (padded != 0).long()
        assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 3:], text)
