"""What a model of the zoo can do without an encoding, it can do with one: half precision, compilers, DDP, LoRA,
generation.

If an attempt fails with the attached model, it is repeated with the plain model, and the test is skipped if that fails
too. Compilers and exporters take 17 minutes for the whole zoo, pairs of processes one. By default one model is tested for
each kind of backbone and attention layer; this command tests all:

    COMROPE_EVERY_MODEL=1 python -m pytest tests/hosts/test_compatibility.py -k "compiles or exports or onnx or processes"
"""

import copy
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import onnxruntime
import peft
import pytest
import torch
from torch import Tensor, nn

import comrope
from comrope.hosts import Attachment, angle_parameters
from tests.hosts import model_table
from tests.hosts.distributed_gradients import WRAPPERS, gradient_differences
from tests.hosts.helpers import ENCODING, SUPPORTED, attached_model, close, loss, perturb_angles, run
from tests.hosts.zoo import ZOO
from tests.processes import in_two_processes

EVERY_MODEL = os.environ.get("COMROPE_EVERY_MODEL", "0") != "0"

TEXT_MODELS = [name for name in SUPPORTED if "input_ids" in ZOO[name].keywords()]

shared_model = functools.cache(attached_model)
"""Shared by the tests, which must not change it."""


def attempt_both(name: str, attempt: Callable[[nn.Module], Any]) -> Any:
    """Returns the result of an attempt with the attached model; skips the test if it fails with the plain model as well."""
    try:
        return attempt(shared_model(name))
    except Exception:
        try:
            attempt(ZOO[name].build())
        except Warning:
            raise
        except Exception as failed:
            why = f"{type(failed).__name__}: {failed}".strip().splitlines()[0]
            pytest.skip(f"nor does the plain model: {why[:200]}")
        raise


def angle_gradients(output: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Returns the gradients of all angles."""
    angles = angle_parameters(model)
    if not angles:
        return {}
    return dict(zip(angles, torch.autograd.grad(loss(output), list(angles.values())), strict=True))


def assert_same_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert (found[key] - gradient).abs().max() <= tolerance * gradient.abs().max() + 1e-6, key


# Half precision


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's, of norms under autocast
@pytest.mark.parametrize("name", SUPPORTED)
def test_autocast_trains_angles_in_float32(name):
    model, plain = shared_model(name), ZOO[name].build()
    with torch.no_grad():
        expected, without = run(name, model), run(name, plain)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(name, model)
        rounding = relative_error(run(name, plain).detach(), without)
    assert relative_error(found.detach(), expected) <= 3 * rounding + 0.01
    for gradient in angle_gradients(found, model).values():
        assert gradient.dtype == torch.float32 and gradient.isfinite().all() and gradient.any()


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPORTED)
def test_bfloat16_rounds_weights_and_no_angle(name):
    def halved(model: nn.Module) -> Tensor:
        model = copy.deepcopy(model).bfloat16()
        keywords = {key: to_bfloat16(value) for key, value in ZOO[name].keywords().items()}
        with torch.no_grad():
            output = ZOO[name].tensor(model(**keywords))
        now, before = angle_parameters(model), angle_parameters(shared_model(name))
        assert all(p.dtype == torch.float32 and torch.equal(p, before[key]) for key, p in now.items())
        return output

    with torch.no_grad():
        found, expected, plain = attempt_both(name, halved), run(name, shared_model(name)), ZOO[name].build()
        rounding = relative_error(halved(plain), run(name, plain))
    assert relative_error(found, expected) <= 3 * rounding + 0.01


def to_bfloat16(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Returns the norm of the error relative to that of the expected tensor."""
    return ((found.float() - expected).norm() / expected.norm()).item()


# Compilers and exporters


def backbone_and_rotation(attached: Any, layer: Any) -> tuple:
    """Returns what positions are known from, and where queries and keys are rotated."""
    return type(attached.backbone), layer.rotate_at


def everything_that_matters(attached: Any, layer: Any) -> tuple:
    """Returns these, with the modules that output queries and keys, and the RoPE that the layer has."""
    modules = "".join(module.output for module in layer.rotated_modules), bool(layer.norms())
    return (
        *backbone_and_rotation(attached, layer),
        *modules,
        layer.convention.num_groups > 1,
        type(layer.convention.rope_argument),
        layer.convention.disable_rope in ("none", "origin"),
    )


def rotation_and_ids(attached: Any, layer: Any) -> tuple:
    """Returns where queries and keys are rotated, and whether layers are called with position ids."""
    return layer.rotate_at, layer.position_context.position_argument == "position_ids"


@functools.cache
def kinds_of(name: str, key: Callable[..., tuple]) -> frozenset:
    return frozenset(key(attached, layer) for attached, layer in attached_layers(shared_model(name)))


def attached_layers(model: nn.Module) -> list[tuple[Any, Any]]:
    """Returns the attention layers with an encoding, each with its backbone."""
    return [(attached, layer) for attached in Attachment.of(model).backbones for layer in attached.layers]


@functools.cache
def representatives(key: Callable[..., tuple]) -> dict[frozenset, str]:
    """Returns the smallest model of each kind."""
    sizes = {name: sum(p.numel() for p in shared_model(name).parameters()) for name in SUPPORTED}
    found: dict[frozenset, str] = {}
    for name in sorted(SUPPORTED, key=lambda name: sizes[name]):
        found.setdefault(kinds_of(name, key), name)
    return {kind: name for kind, name in found.items() if len(kind) == 1}


def is_represented(name: str, key: Callable[..., tuple]) -> bool:
    return not EVERY_MODEL and name not in representatives(key).values()


def skip_if_represented(name: str, key: Callable[..., tuple]) -> None:
    if is_represented(name, key):
        other = representatives(key).get(kinds_of(name, key), "a model for each of its parts")
        pytest.skip(f"{other} represents it; COMROPE_EVERY_MODEL=1 runs it too")


class SingleOutput(nn.Module):
    """A model of the zoo that uses no cache, and returns only the tensor that is compared."""

    def __init__(self, name: str, model: nn.Module):
        super().__init__()
        self.model, self.tensor = model, ZOO[name].tensor
        self.eval()
        self.more = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def forward(self, **keywords: Any) -> Tensor:
        return self.tensor(self.model(**keywords, **self.more))


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", SUPPORTED)
def test_compiles_as_the_plain_model_does(name):
    """As one graph, or with breaks only where the plain model has them."""
    skip_if_represented(name, backbone_and_rotation)
    model, expected = shared_model(name), run(name, shared_model(name))
    try:
        output = compiled_output(name, model, fullgraph=True)
    except Exception:
        with pytest.raises(Exception):  # noqa: B017
            compiled_output(name, ZOO[name].build(), fullgraph=True)
        assert graph_breaks(name, model) <= graph_breaks(name, ZOO[name].build())
        output = compiled_output(name, model)
    close(output, expected)
    assert_same_gradients(angle_gradients(output, model), angle_gradients(expected, model))


def compiled_output(name: str, model: nn.Module, **options: Any) -> Tensor:
    """Returns the output of the compiled model."""
    torch._dynamo.reset()
    return torch.compile(SingleOutput(name, model), backend="eager", **options)(**ZOO[name].keywords())


def graph_breaks(name: str, model: nn.Module) -> set[tuple[str, int]]:
    """Returns the lines at which graphs end. Their number would not do, since hooks between graphs have graphs of their own."""
    torch._dynamo.reset()
    found = torch._dynamo.explain(SingleOutput(name, model))(**ZOO[name].keywords())
    lines = [reason.user_stack[-1] for reason in found.break_reasons]
    return {(line.filename, line.lineno or 0) for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPORTED)
def test_exports_as_the_plain_model_does(name):
    skip_if_represented(name, everything_that_matters)

    @torch.no_grad()
    def exported(model: nn.Module) -> Tensor:
        program = torch.export.export(SingleOutput(name, model), (), ZOO[name].keywords())
        return program.module()(**ZOO[name].keywords())

    with torch.no_grad():
        close(attempt_both(name, exported), run(name, shared_model(name)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", SUPPORTED)
def test_onnxruntime_agrees_with_torch(name):
    skip_if_represented(name, rotation_and_ids)

    @torch.no_grad()
    def exported(model: nn.Module) -> Tensor:
        model = copy.deepcopy(model)
        if angle_parameters(model):
            comrope.freeze(model)
        keywords = ZOO[name].keywords()
        program = torch.onnx.export(SingleOutput(name, model), (), kwargs=keywords, dynamo=True, verbose=False)
        assert program is not None
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
        given = {each.name: keywords[each.name].numpy() for each in session.get_inputs()}
        return torch.from_numpy(session.run(None, given)[0])

    with torch.no_grad():
        close(attempt_both(name, exported), run(name, shared_model(name)), 1e-4)


# Two processes


@pytest.fixture(scope="module")
def differences(request, tmp_path_factory) -> dict[str, str]:
    """Of all models that are tested at once, so that the processes start once."""
    tested = [item for item in request.session.items if "differences" in getattr(item, "fixturenames", ())]
    names = dict.fromkeys(item.callspec.params["name"] for item in tested)
    names = [name for name in names if not is_represented(name, everything_that_matters)]
    return in_two_processes(gradient_differences, tmp_path_factory.mktemp("distributed"), names)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", SUPPORTED)
def test_two_processes_have_the_gradients_of_one(name, wrapper, differences):
    skip_if_represented(name, everything_that_matters)
    difference = differences[f"{wrapper} {name}"]
    if "plain" in difference:
        pytest.skip(difference)
    assert not difference


# Adapters


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPORTED)
def test_lora_and_angles_train_together(name):
    """With LoRA on all linear projections, outputs are the same at the start, and both the adapters and the angles train."""
    model = shared_model(name)
    found = {
        f"{layer.name}.{module.name}".strip(".") for _, layer in attached_layers(model) for module in layer.projections
    }
    targets = [key for key in found if type(model.get_submodule(key)).__name__ in ("Linear", "Conv1D")]
    if not targets:
        pytest.skip("has no linear layers that are known to make queries and keys")
    transposed = type(model.get_submodule(targets[0])).__name__ == "Conv1D"  # whose weights are (inputs, outputs)

    def adapted(model: nn.Module) -> None:
        angles, expected = ["encoding"] if angle_parameters(model) else None, run(name, model)
        config = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=angles, fan_in_fan_out=transposed)
        wrapped = peft.get_peft_model(copy.deepcopy(model), config)  # pyright: ignore[reportArgumentType]
        output = run(name, wrapped)
        close(output, expected)
        loss(output).backward()
        assert all(p.grad is not None and p.grad.any() for key, p in wrapped.named_parameters() if "lora_B" in key)
        trained = {key for key, p in wrapped.named_parameters() if p.requires_grad and "lora" not in key}
        assert trained == {key for key in angle_parameters(wrapped) if "original" not in key}
        assert all(p.grad is not None and p.grad.any() for key, p in wrapped.named_parameters() if key in trained)
        with torch.no_grad():
            for key, parameter in wrapped.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(0, 0.3)
            changed = run(name, wrapped)
            assert (changed - expected).abs().max() > 1e-3 * expected.abs().max()
            close(run(name, wrapped.merge_and_unload()), changed, 1e-4)

    attempt_both(name, adapted)


# Texts


def attempt_generating(name: str, attempt: Callable[[nn.Module], Any]) -> None:
    """`attempt_both`, for models that generate text and can do so at any positions."""
    if "positions" in model_table.ARGUMENTS.get(name, {}):
        pytest.skip(f"has positions for {model_table.NUM_TOKENS} tokens, given by the test")
    if not getattr(shared_model(name), "can_generate", lambda: False)():
        pytest.skip("does not generate")
    with torch.no_grad():
        attempt_both(name, attempt)


def random_tokens(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(6, 50, (1, length), generator=generator) for length in lengths]


def logits(model: nn.Module, ids: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Returns the logits of a text, at the given positions if the model accepts them."""
    accepts = positions is not None and "position_ids" in inspect.signature(model.forward).parameters
    more = {"position_ids": positions} if accepts else {}
    return model(input_ids=ids, attention_mask=mask, use_cache=False, **more).logits


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_padding_on_the_left_changes_no_logits(name):
    (text,) = random_tokens(6)
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), text), dim=1)
    mask = (padded != 0).long()

    def check(model: nn.Module) -> None:
        found = logits(model, padded, (mask.cumsum(1) - 1).clamp(min=0), mask)
        close(found[:, 3:], logits(model, text), 1e-4)

    attempt_generating(name, check)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_static_cache_agrees_with_a_dynamic_one(name):
    text, longer = random_tokens(4, 6)
    padded = torch.cat((torch.cat((torch.zeros(1, 2, dtype=torch.long), text), dim=1), longer))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options |= {"attention_mask": (padded != 0).long(), "return_dict_in_generate": True, "output_logits": True}

    def check(model: Any) -> None:
        dynamic = model.generate(padded, **options)
        static = model.generate(padded, cache_implementation="static", **options)
        assert torch.equal(static.sequences, dynamic.sequences)
        close(torch.stack(static.logits), torch.stack(dynamic.logits), 1e-4)

    attempt_generating(name, check)


@pytest.mark.parametrize("how", ["masked", "by positions alone"])
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_packed_texts_agree_with_single_texts(name, how):
    texts = random_tokens(5, 6)
    positions = torch.cat([torch.arange(text.shape[1]) for text in texts]).unsqueeze(0)
    visible = torch.block_diag(*(torch.ones(text.shape[1], text.shape[1]).tril() for text in texts)).bool()
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None] if how == "masked" else None

    def check(model: nn.Module) -> None:
        found = logits(model, torch.cat(texts, dim=1), positions, mask)
        close(found, torch.cat([logits(model, text) for text in texts], dim=1), 1e-4)

    attempt_generating(name, check)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_MODELS)
@torch.no_grad()
def test_position_ids_are_used(name):
    plain, model = ZOO[name].build(), model_table.attach_to(ZOO[name], **ENCODING)
    if "position_ids" not in inspect.signature(plain.forward).parameters:
        pytest.skip("does not take position_ids")
    keywords = ZOO[name].keywords()
    keywords |= {"attention_mask": torch.ones_like(keywords["input_ids"])}
    near = torch.arange(model_table.NUM_TOKENS).expand(2, -1)
    gaps = torch.randint(1, 4, (2, model_table.NUM_TOKENS), generator=torch.Generator().manual_seed(1))

    def output_at(model: nn.Module, positions: Tensor) -> Tensor:
        return ZOO[name].tensor(model(**keywords, position_ids=positions))

    expected = output_at(plain, gaps.cumsum(1))
    close(output_at(model, gaps.cumsum(1)), expected)
    perturb_angles(model)
    assert (output_at(model, gaps.cumsum(1)) - output_at(model, near)).abs().max() > 1e-2 * expected.abs().max()
