"""Every model of the zoo: attached, trained, copied, folded, taken out again; or refused, with its reason."""

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn

import comrope
from comrope import hosts as attaching
from tests.hosts import outcomes
from tests.hosts.tiny_transformers import checkpoint_blocks
from tests.hosts.zoo import ZOO, Entry

ABSENT: dict[str, str] = {}
"""Libraries that cannot be imported beside the installed versions of the others, and why."""


def _version(library: str) -> str:
    try:
        return outcomes.version(library)
    except ImportError as error:
        ABSENT[library] = str(error)
        return ""


NUMBERS = {library: _version(library) for library in ("timm", "transformers", "diffusers", "torch")}


@pytest.fixture(autouse=True)
def _importable(request):
    case = getattr(request.node, "callspec", None)
    library = ZOO[case.params["name"]].library if case else ""
    if library in ABSENT:
        pytest.skip(ABSENT[library])


def _recorded(library: str) -> dict[str, str]:
    """What this version made of each model when the page was written; of one that is newer, the newest known."""
    versions = outcomes.recorded()[library]
    number = NUMBERS[library] if NUMBERS[library] in versions else outcomes.in_order(versions)[-1]
    return versions[number]


RECORDED = {library: _recorded(library) for library in NUMBERS}
WORKING = [name for library in NUMBERS for name, reason in RECORDED[library].items() if not reason]
REFUSED = [name for library in NUMBERS for name, reason in RECORDED[library].items() if reason]


def _close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def _stirred(model: nn.Module, size: float = 0.3) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in attaching.angle_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return model


def _family(entry: Entry) -> dict:
    """LD in the smallest blocks, which hold every start."""
    return {"name": "comrope-ld", "block_size": 2}


def _run(entry: Entry, model: nn.Module) -> Tensor:
    torch.manual_seed(3)
    return entry.run(model)


def test_the_zoo_is_recorded_for_these_versions():
    """Other versions than the recorded ones are no reason to fail, but those of constraints.txt must be there."""
    assert len(WORKING) > 60
    assert outcomes.PAGE.read_text(encoding="utf-8") == outcomes.page_with(outcomes.table())


@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_the_page_says(name):
    entry = ZOO[name]
    model = entry.build()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    assert outcomes.roughly(outcomes.outcome(entry) or "") == outcomes.roughly(RECORDED[entry.library][name])
    with pytest.raises(comrope.errors.ComropeError):
        outcomes.attached(entry, model=model)
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", WORKING)
def test_starts_learns_copies_folds_and_comes_off(name):
    entry = ZOO[name]
    model = entry.build()
    with torch.no_grad():
        expected = _run(entry, model)
    before, hooks = {key: value.clone() for key, value in model.state_dict().items()}, _hooks(model)
    outcomes.attached(entry, model=model, **_family(entry))
    with torch.no_grad():
        start = _run(entry, model)
        if "init" not in outcomes.ARGUMENTS.get(name, {}):
            _close(start, expected)
        turned = _run(entry, _stirred(model))
    assert (turned - start).abs().max() > 1e-4 * start.abs().max()

    angles = attaching.angle_parameters(model)
    assert {key.split(".encoding.")[0] for key in angles} == {seat.name for seat in _seats(model)}
    gradients = torch.autograd.grad(_run(entry, model).square().sum(), list(angles.values()))
    assert all(gradient.any() for gradient in gradients)
    assert comrope.check(model).holds

    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(_run(entry, twin), turned)
        if name not in ("torch own", "flux"):  # which are caught at their scores
            _close(_run(entry, comrope.fold(twin)), turned, 1e-4)
        _close(_run(entry, comrope.freeze(copy.deepcopy(model))), turned, 1e-4)
        comrope.detach(model)
        assert torch.equal(_run(entry, model), expected)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert _hooks(model) == hooks


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def _seats(model: nn.Module) -> list:
    return [seat for graft in attaching.Attachment.of(model).grafts for seat in graft.seats]


EAGER = [n for n in WORKING if ZOO[n].library == "transformers"]


@pytest.mark.parametrize("name", EAGER)
def test_eager_and_sdpa_agree(name):
    entry, outputs = ZOO[name], []
    for implementation in ("eager", "sdpa"):
        try:
            model = entry.build(attn_implementation=implementation)
        except ValueError:
            pytest.skip(f"{name} has no {implementation}")
        torch.manual_seed(0)
        try:
            model = _stirred(outcomes.attached(entry, model=model, **_family(entry)))
        except (
            comrope.errors.ConfigurationError
        ) as refused:  # no module makes its queries, and no torch function its scores
            assert "passed by" in str(refused)
            pytest.skip(str(refused))
        with torch.no_grad():
            outputs.append(_run(entry, model))
    if "gemma2" not in name:  # whose capped scores SDPA leaves out
        _close(outputs[0], outputs[1], 1e-4)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's, of norms under autocast
@pytest.mark.parametrize("name", WORKING)
def test_autocast_and_casts_leave_angles_alone(name):
    entry = ZOO[name]
    model = _stirred(outcomes.attached(entry, **_family(entry)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert _run(entry, model).isfinite().all()
    model.bfloat16()
    assert {p.dtype for p in attaching.angle_parameters(model).values()} == {torch.float32}


def _checkpointing(model: nn.Module, *, reentrant: bool) -> bool:
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


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("name", WORKING)
def test_gradient_checkpointing_recomputes_the_same(name, reentrant):
    entry, found = ZOO[name], []
    if not _checkpointing(entry.build(), reentrant=reentrant):
        pytest.skip("has no gradient checkpointing of this kind")
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = _stirred(outcomes.attached(entry, **_family(entry)))
        _without_dropout(model.train())
        if checkpointed:
            _checkpointing(model, reentrant=reentrant)
        _run(entry, model).square().mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-3, atol=1e-5, msg=key)


def _without_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if "Drop" in type(module).__name__ or "Norm" in type(module).__name__:
            module.eval()
        for name in ("attention_dropout", "dropout", "dropout_prob", "layerdrop"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)


GENERATES = [n for n in WORKING if ZOO[n].library == "transformers" and "vision" not in n]


@pytest.mark.parametrize("name", GENERATES)
def test_generation_through_a_cache_is_that_without(name):
    """Keys are kept as they were turned; padding on the left moves positions and nothing else."""
    entry = ZOO[name]
    model = entry.build()
    if (
        "positions" in outcomes.ARGUMENTS.get(name, {})
        or not getattr(model, "can_generate", lambda: False)()
        or "llava" in name
    ):
        pytest.skip("does not generate")
    model = _stirred(outcomes.attached(entry, model=model, **_family(entry)))
    prompt = torch.randint(6, 40, (1, 5), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    text = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    slow = model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=False, **options)
    assert torch.equal(text, slow)
    if "position_ids" in inspect.signature(model.forward).parameters:
        padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), prompt), dim=1)
        mask = (padded != 0).long()
        assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 3:], text)
