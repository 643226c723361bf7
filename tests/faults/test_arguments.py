"""Every argument of every public function, with values that make no sense, drawn from a fixed seed.

A try calls a function with arguments that fit, but for one. What comes is either an error of comrope's that says what came and
what was expected; or, where the value makes sense after all, a result of the kind that was asked for, of finite numbers.

Left to others are devices, of which torch itself says what there are, and arguments that are missing or that nobody knows, of
which Python does.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import comrope
from comrope import hosts, positions, reference
from comrope.encodings import rotations
from comrope.errors import ComropeError
from tests.faults.subjects import Subject, flag, nothing, number, optional, several, whole
from tests.faults.values import is_finite, says_what_to_do

pytestmark = pytest.mark.area("arguments of the library")

SIZES = {"num_heads": 2, "head_dim": 16, "num_axes": 2}
ROTARY = ("none", "rope", "rope-mixed", "string", "liere", "comrope-ap", "comrope-ld", "comrope-mt")
LEARNED = ROTARY[2:]


# What the functions are tried on


@cache
def _kept(name: str, **settings: Any) -> Any:
    """An encoding that no try changes."""
    torch.manual_seed(0)
    return comrope.encoding(name, **(SIZES | settings))


def _fresh(name: str) -> Any:
    torch.manual_seed(0)
    return comrope.encoding(name, **SIZES, block_size=2 if name == "rope-mixed" else 8)


def _vit(**settings: Any) -> Any:
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **(sizes | settings))


def _attached() -> Any:
    return comrope.attach(_vit(), "comrope-ld")


def _grid() -> Tensor:
    return positions.grid((2, 2))


def _tokens() -> dict[str, Any]:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, 4, 16)
    return {"q": q, "k": k}


@contextmanager
def _unchanged(module: Any) -> Iterator[None]:
    """Where an error is raised a module is as it was."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    try:
        yield
    except ComropeError:
        after = module.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        raise


# Encodings

ALL_TOKENS = {"half", "double", "strided anyhow", "with a gradient", "more of the first dimension"}
PLACES = {"double", "whole numbers", "strided anyhow", "with a gradient", "one more dimension"}
OTHER_PLACES = PLACES | {"less of the one before", "none of the one before", "more of the first dimension"}
ANY_AXES = {
    "less of the last dimension",
    "more of the last dimension",
    "none of the last dimension",
    "last two swapped",
}
AXES = {
    "rope": (8,),
    "comrope-ap": (),
    "ape": (),
}
"""Which of 3 and 8 axes an encoding of heads of 16 can have, where it is not both."""


def _works(pe: Any, given: dict[str, Any]) -> bool:
    """Whether an encoding turns tokens into finite ones, of what it was asked for."""
    if isinstance(pe, comrope.encodings.AbsoluteEncoding):
        width = pe.code_book.shape[0]
        return is_finite(pe(torch.zeros(1, 3, width), torch.rand(3, pe.num_axes)))
    sizes = {name: given[name] for name in (*SIZES, "block_size") if given.get(name) is not None}
    q = torch.randn(1, pe.num_heads, 3, pe.head_dim)
    return all(getattr(pe, name) == size for name, size in sizes.items()) and is_finite(
        pe(q, q, torch.rand(3, pe.num_axes))
    )


def _encodings() -> Iterator[Subject]:
    for name in (*ROTARY, "ape"):
        more: dict[str, Any] = {"grid": (2, 3)} if name == "ape" else {}
        values = {
            "num_heads": whole(1, 2**20),
            "head_dim": {"ape": whole(1, 8), "comrope-ap": nothing}.get(name, whole(8, 8)),
            "num_axes": lambda v, name=name: whole(1, 8)(v) and v in AXES.get(name, (3, 8)),
            "dtype": optional(nothing),
        }
        if name != "ape":
            values["block_size"] = optional(whole(8, 8)) if name == "string" else whole(8, 8)  # None: a head wide
        if name in LEARNED:
            values |= {"std": optional(number()), "init": nothing}
        if name == "rope":
            values |= {"base": number(1e-15), "max_frequency": number(1e-15)}
        if name == "ape":
            values |= {"std": number(), "grid": several(whole(1, 2**20), 2)}
        yield Subject(name, partial(comrope.encoding, name), lambda more=more: SIZES | more, values, holds=_works)
    start = SIZES | {"init": "rope"}
    for name in ("rope-mixed", "string", "liere", "comrope-mt"):
        values = {"base": optional(number(1e-15)), "max_frequency": optional(number(1e-15))}
        values |= {"learn_frequencies": flag} if name == "string" else {}
        yield Subject(f"{name} as rope", partial(comrope.encoding, name), lambda: start, values, holds=_works)
    yield Subject("encoding", comrope.encoding, lambda: SIZES | {"name": "rope"}, {"name": nothing})


def _same_shapes(found: Any, given: dict[str, Any]) -> bool:
    return all(
        new.shape == old.shape and new.dtype == old.dtype for new, old in zip(found, given.values(), strict=False)
    )


def _calls() -> Iterator[Subject]:
    for name in ROTARY:
        yield Subject(
            f"{name}()",
            lambda name=name, **given: _kept(name)(**given),
            lambda: _tokens() | {"positions": _grid()},
            {"key_positions": optional(nothing)},
            {"q": ALL_TOKENS, "k": ALL_TOKENS, "positions": PLACES},
            through=("q", "k"),
            holds=_same_shapes,
        )


def _turned(name: str, **given: Any) -> Any:
    return _kept(name).rotation(_grid()).turn(**given)


def _rotations() -> Iterator[Subject]:
    for name in ROTARY:
        pe = partial(_kept, name)
        x = {"positions": OTHER_PLACES}
        dtypes = {"dtype": nothing, "key_positions": optional(nothing)}
        yield Subject(
            f"{name}.rotation",
            lambda pe=pe, **given: pe().rotation(**given),
            lambda: {"positions": _grid()},
            dtypes,
            {"positions": OTHER_PLACES | ({"meta"} if name in ("none", "rope") else set())},  # which have no parameters
        )
        yield Subject(
            f"{name}.rotation_matrices",
            lambda pe=pe, **given: pe().rotation_matrices(**given),
            lambda: {"positions": _grid()},
            {},
            x,
            holds=lambda found, given: found.shape[-5] == given["positions"].shape[-2],
        )
    for name in ("rope", "rope-mixed", "string", "liere", "comrope-ld", "comrope-mt"):
        yield Subject(
            f"{name}.rotation().turn",
            partial(_turned, name),
            _tokens,
            {} if name == "liere" else {"in_basis": flag},
            {"q": ALL_TOKENS, "k": ALL_TOKENS},
            ("q", "k"),
            holds=_same_shapes,
        )
    for name in ("rope", "comrope-mt"):
        yield Subject(
            f"{name}.rotation().into_basis",
            lambda name=name, **given: _kept(name).rotation(_grid()).into_basis(**given),
            lambda: {"weight": torch.rand(32, 6)},
            {},
            {
                "weight": {
                    *ALL_TOKENS,
                    *(
                        "a flat one",
                        "less of the last dimension",
                        "more of the last dimension",
                        "none of the last dimension",
                    ),
                }
            },
            ("weight",),
            holds=lambda found, given: found.shape == given["weight"].shape,
        )
    yield Subject(
        "rotations",
        rotations,
        lambda: {"encodings": [_kept("comrope-ld"), _kept("rope")], "positions": _grid()},
        {
            "encodings": lambda v: isinstance(v, Sequence) and not v,
            "key_positions": optional(nothing),
            "dtype": nothing,
        },
        {"positions": OTHER_PLACES},
    )


def _set_spectrum(name: str, **given: Any) -> Any:
    pe = _fresh(name)
    with _unchanged(pe):
        pe.set_spectrum(**given)
    return pe


def _spectra() -> Iterator[Subject]:
    for name in LEARNED:
        source = partial(_kept, "comrope-ld" if name == "liere" else name, block_size=2 if name == "rope-mixed" else 8)
        yield Subject(
            f"{name}.set_spectrum",
            partial(_set_spectrum, name),
            lambda source=source: source().spectrum()._asdict(),
            {"basis": lambda v: None if v is None else False},
            {name: {"double", "strided anyhow", "with a gradient"} for name in ("basis", "frequencies")},
            unsure={"half"},
            holds=lambda pe, given: is_finite(pe(*_tokens().values(), _grid())),
        )


def _codes() -> Iterator[Subject]:
    ape = partial(_kept, "ape", grid=(2, 3))
    yield Subject(
        "ape()",
        lambda **given: ape()(**given),
        lambda: {"tokens": torch.rand(1, 4, 32), "positions": _grid()},
        {},
        {"tokens": ALL_TOKENS, "positions": PLACES},
        ("tokens",),
        holds=lambda found, given: _same_shapes([found], given),
    )
    yield Subject(
        "ape.codes",
        lambda **given: ape().codes(**given),
        lambda: {"positions": _grid()},
        {},
        {"positions": OTHER_PLACES},
        holds=lambda found, given: found.shape == (*given["positions"].shape[:-1], 32),
    )


# Positions


def _is_grid(found: Tensor, given: dict[str, Any]) -> bool:
    shape = given["shape"] if isinstance(given["shape"], Sequence) else (given["shape"],)
    count = given.get("num_prefix_tokens", 0) + torch.Size(shape).numel()
    return found.shape == (count, len(shape)) and found.dtype == torch.float32


def _is_moved(found: Tensor, given: dict[str, Any]) -> bool:
    x, batch_size = given["positions"], given.get("batch_size")
    return (
        found.shape == (x.shape if batch_size is None or x.ndim == 3 else (batch_size, *x.shape))
        and found.dtype == x.dtype
    )


def _is_patch(value: Any) -> bool:
    if isinstance(value, Tensor):
        hidden = value.is_nested or value.layout != torch.strided or value.is_meta or value.is_complex()
        value = () if hidden or value.ndim != 1 else value.tolist()
    return several(lambda each: number()(each) and each > 0, 2)(value)


def _positions() -> Iterator[Subject]:
    some = several(whole(1), 1, 2, 3, 4)
    memory = lambda v: not isinstance(v, Sequence) or torch.tensor([float(n) for n in v]).prod() < 2**48  # noqa: E731
    yield Subject(
        "grid",
        positions.grid,
        lambda: {"shape": (2, 3)},
        {
            "shape": lambda v: (whole(1)(v) or some(v)) and memory(v),
            "relative": flag,
            "centre": flag,
            "extents": optional(several(number(1e-15), 2)),
            "num_prefix_tokens": whole(0),
            "dtype": nothing,
        },
        holds=_is_grid,
    )
    yield Subject(
        "sequence",
        positions.sequence,
        lambda: {"length": 3},
        {"length": whole(1, 2**24), "start": whole(-(2**24), 2**24 - 3), "dtype": nothing},
        holds=lambda found, given: (
            found.flatten().tolist() == list(range(given.get("start", 0), given.get("start", 0) + given["length"]))
        ),
    )
    moves = {"batch_size": optional(whole(0)), "generator": optional(lambda v: isinstance(v, torch.Generator))}
    places = OTHER_PLACES - {"whole numbers"} | {"meta"}
    yield Subject(
        "perturb",
        positions.perturb,
        lambda: {"positions": positions.grid((2, 3)), "patch_size": (0.5, 1 / 3), "intensity": 1.0},
        {
            "patch_size": _is_patch,
            "intensity": number(),
            "axes": optional(several(flag, 2)),
            "num_prefix_tokens": whole(0, 6),
            **moves,
        },
        {"positions": places},
        holds=_is_moved,
    )
    yield Subject(
        "offset",
        positions.offset,
        lambda: {"positions": positions.grid((2, 3)), "intensity": 1.0},
        {"intensity": number(), **moves},
        {"positions": places | ANY_AXES},
        holds=_is_moved,
    )


def _references() -> Iterator[Subject]:
    def angles() -> Tensor:
        return _kept("liere").angle_matrices().detach()

    precise = {"double", "strided anyhow", "with a gradient"}
    places = OTHER_PLACES | {"half"}
    yield Subject(
        "reference.rotation_matrices",
        reference.rotation_matrices,
        lambda: {"angle_matrices": angles(), "positions": _grid()},
        {},
        {"angle_matrices": precise, "positions": places},
        ("angle_matrices",),
    )
    yield Subject(
        "reference.rotate",
        reference.rotate,
        lambda: _tokens() | {"angle_matrices": angles(), "positions": _grid()},
        {},
        {"q": ALL_TOKENS, "k": ALL_TOKENS},
        ("q", "k"),
    )
    yield Subject(
        "reference.apply",
        reference.apply,
        lambda: {"rotation": reference.rotation_matrices(angles(), _grid()), "x": _tokens()["q"]},
        {},
        {"rotation": {*precise, "half", "one more dimension"}, "x": ALL_TOKENS},
        ("rotation", "x"),
    )


# Models


def _attach_to(model: Any, **given: Any) -> Any:
    with _unchanged(model):
        return comrope.attach(model, **given)


def _is_saved(found: None, given: dict[str, Any]) -> bool:
    """And gone afterwards: another try loads what is not there."""
    whole = (Path(given["folder"]) / "comrope.json").exists()
    shutil.rmtree(given["folder"])
    return whole


def _models() -> Iterator[Subject]:
    kept = cache(_attached)
    ld = {"name": "comrope-ld"}
    yield Subject("attach", comrope.attach, lambda: ld, {"model": nothing})
    yield Subject(
        "attach to a ViT",
        lambda **given: _attach_to(_vit(), **given),
        lambda: ld,
        {
            "name": nothing,
            "block_size": optional(whole(8, 8)),
            "init": optional(nothing),
            "layers": optional(nothing),
            "keep_ape": flag,
            "prefix": nothing,
            "positions": optional(nothing),
            "example": optional(nothing),
        },
    )
    yield Subject(
        "attach at random",
        lambda **given: _attach_to(_vit(), **given),
        lambda: ld | {"init": "normal"},
        {"std": optional(number())},
    )
    yield Subject(
        "attach with positions",
        lambda **given: _attach_to(_vit(), **given),
        lambda: ld | {"positions": positions.grid((2, 2), num_prefix_tokens=1), "example": torch.rand(1, 3, 16, 16)},
        {"positions": optional(nothing)},
        {
            "positions": PLACES | ANY_AXES - {"none of the last dimension", "last two swapped"},
            "example": {"strided anyhow", "with a gradient", "more of the first dimension"},
        },
        unsure={"whole numbers"},
        omitted={"a class", "a module", "a function"},  # what a function of the user's own raises is not ours
    )
    for call in (comrope.detach, comrope.fold, comrope.export_timm, comrope.freeze, comrope.check):
        yield Subject(
            call.__name__, call, dict, {"module" if call in (comrope.freeze, comrope.check) else "model": nothing}
        )
    counts = {"num_positions": whole(1, 2**12), "seed": whole(0, 2**63 - 1)}
    yield Subject("check an encoding", comrope.check, lambda: {"module": _kept("comrope-ld")}, counts)
    a_module = {"model": lambda v: isinstance(v, torch.nn.Module)}
    yield Subject("angle_parameters", hosts.angle_parameters, dict, a_module)
    rates = {"lr": optional(number()), "weight_decay": optional(number())}
    yield Subject("param_groups", comrope.param_groups, lambda: {"model": kept()}, a_module | rates)
    yield Subject("save", comrope.save, lambda: {"folder": "somewhere"}, {"model": nothing})
    yield Subject(
        "save a ViT",
        comrope.save,
        lambda: {"model": kept()},
        {"folder": lambda v: isinstance(v, (str, Path)) and str(v) != ""},
        holds=_is_saved,
    )


def _load_saved(**given: Any) -> Any:
    comrope.save(_attached(), "saved")
    return comrope.load("saved", **given)


def _files() -> Iterator[Subject]:
    yield Subject("load", comrope.load, dict, {"folder": nothing})
    again = {"kind": optional(nothing), "positions": optional(nothing), "example": optional(nothing)}
    yield Subject("load what was saved", _load_saved, dict, again)

    def official(freqs: Tensor, **given: Any) -> Any:
        model = _kept("comrope-ld", block_size=8)
        state = {"freqs": freqs, "multiplier": torch.rand(1, 2, 2, 1, 1)}
        with _unchanged(model):
            return comrope.load_official(model, **({"source": state} | given))

    yield Subject(
        "load_official",
        official,
        lambda: {"freqs": torch.rand(2, 1, 2, 8, 8)},
        {"source": nothing, "scale_factor": number(1e-15)},
        {"freqs": {"half", "double", "strided anyhow", "with a gradient", "2e15"}},
    )
    yield Subject("load_official into", comrope.load_official, lambda: {"source": {}}, {"model": nothing})


SUBJECTS = [
    *_encodings(), *_calls(), *_rotations(), *_spectra(), *_codes(), *_positions(), *_references(), *_models(), *_files()
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _elsewhere(tmp_path_factory):
    """Where models are saved by names that were drawn."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.mark.parametrize(("subject", "argument", "name", "make", "fits"), [t for s in SUBJECTS for t in s.tries()])
def test_a_bad_value_is_refused_or_makes_sense(subject, argument, name, make, fits):
    given = subject.fitting()
    given = given | {argument: make(given.get(argument))}
    makes_sense = fits(given[argument])
    try:
        found = subject.call(**given)
    except ComropeError as error:
        assert not makes_sense, f"refused: {error}"
        assert says_what_to_do(error, given, given[argument]), error
        return
    assert makes_sense is not False, f"taken for {found!r}"
    assert subject.holds(found, given)
    assert argument in subject.through or is_finite(found)
