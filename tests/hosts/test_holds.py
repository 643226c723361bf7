"""What a model of the zoo does without an encoding it does with one: half precision, compilers, processes, adapters, texts.

What the plain model itself does not do the attached one is not asked: where an attempt fails, it is made on the plain model,
and the test is skipped if that fails too. Compilers and exporters take 17 minutes over the whole zoo. There one model stands
for each kind of trunk and attention layer, and all are asked by

    COMROPE_EVERY_MODEL=1 python -m pytest tests/hosts/test_holds.py -k "compiles or exports or onnx"
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
from tests.hosts import outcomes
from tests.hosts.helpers import FAMILY, WORKING, close, loss, run, turned_away, with_encoding
from tests.hosts.shared import WAYS, reports
from tests.hosts.zoo import ZOO
from tests.processes import in_two_processes

EVERY = os.environ.get("COMROPE_EVERY_MODEL", "0") != "0"

READERS = [name for name in WORKING if "input_ids" in ZOO[name].keywords()]

attached = functools.cache(with_encoding)
"""Shared by the tests, which leave it as it is."""


def asked(name: str, attempt: Callable[[nn.Module], Any]) -> Any:
    """What an attempt makes of the attached model; skips where it fails and does with the plain model too."""
    try:
        return attempt(attached(name))
    except Exception:
        try:
            attempt(ZOO[name].build())
        except Warning:
            raise
        except Exception as failed:
            why = f"{type(failed).__name__}: {failed}".strip().splitlines()[0]
            pytest.skip(f"nor does the plain model: {why[:200]}")
        raise


def learned(output: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """The gradients of all angles."""
    angles = angle_parameters(model)
    if not angles:
        return {}
    return dict(zip(angles, torch.autograd.grad(loss(output), list(angles.values())), strict=True))


def assert_same_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert (found[key] - gradient).abs().max() <= tolerance * gradient.abs().max() + 1e-6, key


# Half precision


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's, of norms under autocast
@pytest.mark.parametrize("name", WORKING)
def test_autocast_trains_angles_in_float32(name):
    model, plain = attached(name), ZOO[name].build()
    with torch.no_grad():
        expected, without = run(name, model), run(name, plain)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(name, model)
        rounding = relative(run(name, plain).detach(), without)
    assert relative(found.detach(), expected) <= 3 * rounding + 0.01
    for gradient in learned(found, model).values():
        assert gradient.dtype == torch.float32 and gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("name", WORKING)
def test_bfloat16_rounds_weights_and_no_angle(name):
    def halved(model: nn.Module) -> Tensor:
        model = copy.deepcopy(model).bfloat16()
        keywords = {key: half(value) for key, value in ZOO[name].keywords().items()}
        with torch.no_grad():
            output = ZOO[name].tensor(model(**keywords))
        now, before = angle_parameters(model), angle_parameters(attached(name))
        assert all(p.dtype == torch.float32 and torch.equal(p, before[key]) for key, p in now.items())
        return output

    with torch.no_grad():
        found, expected, plain = asked(name, halved), run(name, attached(name)), ZOO[name].build()
        rounding = relative(halved(plain), run(name, plain))
    assert relative(found, expected) <= 3 * rounding + 0.01


def half(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value


def relative(found: Tensor, expected: Tensor) -> float:
    """The error as a whole, beside what was expected."""
    return ((found.float() - expected).norm() / expected.norm()).item()


# Compilers and exporters


def teller_and_way(graft: Any, seat: Any) -> tuple:
    """What tells positions, and where queries and keys are turned."""
    return type(graft.trunk), seat.way


def all_that_differs(graft: Any, seat: Any) -> tuple:
    """The same, with what puts out queries and keys, and the RoPE that the layer has."""
    parts = "".join(part.holds for part in seat.parts), bool(seat.norms()), seat.reading.groups > 1
    return (
        *teller_and_way(graft, seat),
        *parts,
        type(seat.reading.table),
        seat.reading.still in ("none", "origin"),
    )


def way_and_ids(graft: Any, seat: Any) -> tuple:
    """Where queries and keys are turned, and whether layers are called with the ids of positions."""
    return seat.way, seat.tokens.keyword == "position_ids"


@functools.cache
def kind_of(name: str, differing: Callable[..., tuple]) -> frozenset:
    return frozenset(differing(graft, seat) for graft, seat in seats(attached(name)))


def seats(model: nn.Module) -> list[tuple[Any, Any]]:
    """The attention layers that have an encoding, each after what it is a part of."""
    return [(graft, seat) for graft in Attachment.of(model).grafts for seat in graft.seats]


@functools.cache
def standing(differing: Callable[..., tuple]) -> dict[frozenset, str]:
    """For each kind its smallest model."""
    sizes = {name: sum(p.numel() for p in attached(name).parameters()) for name in WORKING}
    found: dict[frozenset, str] = {}
    for name in sorted(WORKING, key=lambda name: sizes[name]):
        found.setdefault(kind_of(name, differing), name)
    return {kind: name for kind, name in found.items() if len(kind) == 1}


def skip_if_another_stands_for(name: str, differing: Callable[..., tuple]) -> None:
    if not EVERY and name not in standing(differing).values():
        other = standing(differing).get(kind_of(name, differing), "a model for each of its parts")
        pytest.skip(f"{other} stands for it; COMROPE_EVERY_MODEL=1 asks it too")


class Bare(nn.Module):
    """A model of the zoo without caches, that gives the tensor which is compared and nothing else."""

    def __init__(self, name: str, model: nn.Module):
        super().__init__()
        self.model, self.tensor = model, ZOO[name].tensor
        self.eval()
        self.more = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def forward(self, **keywords: Any) -> Tensor:
        return self.tensor(self.model(**keywords, **self.more))


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", WORKING)
def test_compiles_as_the_plain_model_does(name):
    """As one graph; or broken nowhere but where the plain model is."""
    skip_if_another_stands_for(name, teller_and_way)
    model, expected = attached(name), run(name, attached(name))
    try:
        output = compiled(name, model, fullgraph=True)
    except Exception:
        with pytest.raises(Exception):  # noqa: B017
            compiled(name, ZOO[name].build(), fullgraph=True)
        assert breaks(name, model) <= breaks(name, ZOO[name].build())
        output = compiled(name, model)
    close(output, expected)
    assert_same_gradients(learned(output, model), learned(expected, model))


def compiled(name: str, model: nn.Module, **options: Any) -> Tensor:
    """What a model says when it is compiled."""
    torch._dynamo.reset()
    return torch.compile(Bare(name, model), backend="eager", **options)(**ZOO[name].keywords())


def breaks(name: str, model: nn.Module) -> set[tuple[str, int]]:
    """The lines at which graphs end. How many graphs there are tells less: hooks between them have their own."""
    torch._dynamo.reset()
    found = torch._dynamo.explain(Bare(name, model))(**ZOO[name].keywords())
    lines = [reason.user_stack[-1] for reason in found.break_reasons]
    return {(line.filename, line.lineno or 0) for line in lines}


@pytest.mark.parametrize("name", WORKING)
def test_exports_as_the_plain_model_does(name):
    skip_if_another_stands_for(name, all_that_differs)

    @torch.no_grad()
    def exported(model: nn.Module) -> Tensor:
        program = torch.export.export(Bare(name, model), (), ZOO[name].keywords())
        return program.module()(**ZOO[name].keywords())

    with torch.no_grad():
        close(asked(name, exported), run(name, attached(name)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", WORKING)
def test_onnxruntime_says_what_the_model_says(name):
    skip_if_another_stands_for(name, way_and_ids)

    @torch.no_grad()
    def exported(model: nn.Module) -> Tensor:
        model = copy.deepcopy(model)
        if angle_parameters(model):
            comrope.freeze(model)
        keywords = ZOO[name].keywords()
        program = torch.onnx.export(Bare(name, model), (), kwargs=keywords, dynamo=True, verbose=False)
        assert program is not None
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
        given = {each.name: keywords[each.name].numpy() for each in session.get_inputs()}
        return torch.from_numpy(session.run(None, given)[0])

    with torch.no_grad():
        close(asked(name, exported), run(name, attached(name)), 1e-4)


# Two processes


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> dict[str, str]:
    """All models in turn, so that the processes start once."""
    return in_two_processes(reports, tmp_path_factory.mktemp("shared"), WORKING)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", WORKING)
def test_two_processes_have_the_gradients_of_one(name, way, reported):
    report = reported[f"{way} {name}"]
    if "plain" in report:
        pytest.skip(report)
    assert not report


# Adapters


@pytest.mark.parametrize("name", WORKING)
def test_lora_beside_the_angles(name):
    """Adapters on all projections that are plain linear layers change nothing at their start; they and the angles train."""
    model = attached(name)
    found = {f"{seat.name}.{part.name}".strip(".") for _, seat in seats(model) for part in seat.projections}
    targets = [key for key in found if type(model.get_submodule(key)).__name__ in ("Linear", "Conv1D")]
    if not targets:
        pytest.skip("has no linear layers that are known to make queries and keys")
    turned = type(model.get_submodule(targets[0])).__name__ == "Conv1D"  # whose weights are (inputs, outputs)

    def adapted(model: nn.Module) -> None:
        angles, expected = ["encoding"] if angle_parameters(model) else None, run(name, model)
        config = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=angles, fan_in_fan_out=turned)
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

    asked(name, adapted)


# Texts


def asked_of_writers(name: str, attempt: Callable[[nn.Module], Any]) -> None:
    """`asked`, of models that write texts at any positions."""
    if "positions" in outcomes.ARGUMENTS.get(name, {}):
        pytest.skip(f"has positions for {outcomes.LENGTH} tokens, said by the test")
    if not getattr(attached(name), "can_generate", lambda: False)():
        pytest.skip("writes no texts")
    with torch.no_grad():
        asked(name, attempt)


def words(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(6, 50, (1, length), generator=generator) for length in lengths]


def logits(model: nn.Module, ids: Tensor, places: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Of a text, told where its tokens are where the model can be told."""
    told = places is not None and "position_ids" in inspect.signature(model.forward).parameters
    more = {"position_ids": places} if told else {}
    return model(input_ids=ids, attention_mask=mask, use_cache=False, **more).logits


@pytest.mark.parametrize("name", READERS)
def test_padding_on_the_left_changes_no_logits(name):
    (text,) = words(6)
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), text), dim=1)
    mask = (padded != 0).long()

    def same(model: nn.Module) -> None:
        found = logits(model, padded, (mask.cumsum(1) - 1).clamp(min=0), mask)
        close(found[:, 3:], logits(model, text), 1e-4)

    asked_of_writers(name, same)


@pytest.mark.parametrize("name", READERS)
def test_a_static_cache_is_a_dynamic_one(name):
    text, longer = words(4, 6)
    padded = torch.cat((torch.cat((torch.zeros(1, 2, dtype=torch.long), text), dim=1), longer))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options |= {"attention_mask": (padded != 0).long(), "return_dict_in_generate": True, "output_logits": True}

    def same(model: Any) -> None:
        dynamic = model.generate(padded, **options)
        static = model.generate(padded, cache_implementation="static", **options)
        assert torch.equal(static.sequences, dynamic.sequences)
        close(torch.stack(static.logits), torch.stack(dynamic.logits), 1e-4)

    asked_of_writers(name, same)


@pytest.mark.parametrize("how", ["masked", "by positions alone"])
@pytest.mark.parametrize("name", READERS)
def test_texts_in_one_row_are_those_texts(name, how):
    texts = words(5, 6)
    places = torch.cat([torch.arange(text.shape[1]) for text in texts]).unsqueeze(0)
    visible = torch.block_diag(*(torch.ones(text.shape[1], text.shape[1]).tril() for text in texts)).bool()
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None] if how == "masked" else None

    def same(model: nn.Module) -> None:
        found = logits(model, torch.cat(texts, dim=1), places, mask)
        close(found, torch.cat([logits(model, text) for text in texts], dim=1), 1e-4)

    asked_of_writers(name, same)


@pytest.mark.parametrize("name", READERS)
@torch.no_grad()
def test_positions_that_a_text_is_given_are_heard(name):
    plain, model = ZOO[name].build(), outcomes.attached(ZOO[name], **FAMILY)
    if "position_ids" not in inspect.signature(plain.forward).parameters:
        pytest.skip("cannot be told")
    keywords = ZOO[name].keywords()
    keywords |= {"attention_mask": torch.ones_like(keywords["input_ids"])}
    near = torch.arange(outcomes.LENGTH).expand(2, -1)
    gaps = torch.randint(1, 4, (2, outcomes.LENGTH), generator=torch.Generator().manual_seed(1))

    def told(model: nn.Module, places: Tensor) -> Tensor:
        return ZOO[name].tensor(model(**keywords, position_ids=places))

    expected = told(plain, gaps.cumsum(1))
    close(told(model, gaps.cumsum(1)), expected)
    turned_away(model)
    assert (told(model, gaps.cumsum(1)) - told(model, near)).abs().max() > 1e-2 * expected.abs().max()
