"""Models that encodings are attached to, and their files."""

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

import comrope
from comrope import hosts, positions
from tests.faults.given import ANY_AXES, PLACES, kept_encoding, unchanged
from tests.faults.subjects import Subject, flag, nothing, number, optional, several, whole


def _vit(**settings: Any) -> Any:
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **(sizes | settings))


def _attached() -> Any:
    return comrope.attach(_vit(), "comrope-ld")


def _attach_to(model: Any, **given: Any) -> Any:
    with unchanged(model):
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
    sizes = {"module": kept_encoding("comrope-ld"), "trained": (4, 4), "shape": (8, 6), "unit": "relative"}
    yield Subject(
        "rescale",
        comrope.rescale,
        lambda: sizes | {"method": "ntk"},
        {
            "module": nothing,
            "method": nothing,
            "trained": several(whole(1), 2),
            "shape": several(whole(1), 2),
            "unit": nothing,
            "span": optional(nothing),
            "gain": optional(number(1e-15)),
        },
    )
    counts = {"num_positions": whole(1, 2**12), "seed": whole(0, 2**63 - 1)}
    yield Subject("check an encoding", comrope.check, lambda: {"module": kept_encoding("comrope-ld")}, counts)
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
        model = kept_encoding("comrope-ld", block_size=8)
        state = {"freqs": freqs, "multiplier": torch.rand(1, 2, 2, 1, 1)}
        with unchanged(model):
            return comrope.load_official(model, **({"source": state} | given))

    yield Subject(
        "load_official",
        official,
        lambda: {"freqs": torch.rand(2, 1, 2, 8, 8)},
        {"source": nothing, "scale_factor": number(1e-15)},
        {"freqs": {"half", "double", "strided anyhow", "with a gradient", "2e15"}},
    )
    yield Subject("load_official into", comrope.load_official, lambda: {"source": {}}, {"model": nothing})


def subjects() -> Iterator[Subject]:
    yield from _models()
    yield from _files()
