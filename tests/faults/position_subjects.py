"""Positions, and the reference."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from comrope import positions, reference
from tests.faults.given import ALL_TOKENS, ANY_AXES, OTHER_PLACES, grid, kept_encoding, tokens
from tests.faults.subjects import Subject, flag, nothing, number, optional, several, whole


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
        return kept_encoding("liere").angle_matrices().detach()

    precise = {"double", "strided anyhow", "with a gradient"}
    places = OTHER_PLACES | {"half"}
    yield Subject(
        "reference.rotation_matrices",
        reference.rotation_matrices,
        lambda: {"angle_matrices": angles(), "positions": grid()},
        {},
        {"angle_matrices": precise, "positions": places},
        ("angle_matrices",),
    )
    yield Subject(
        "reference.rotate",
        reference.rotate,
        lambda: tokens() | {"angle_matrices": angles(), "positions": grid()},
        {},
        {"q": ALL_TOKENS, "k": ALL_TOKENS},
        ("q", "k"),
    )
    yield Subject(
        "reference.apply",
        reference.apply,
        lambda: {"rotation": reference.rotation_matrices(angles(), grid()), "x": tokens()["q"]},
        {},
        {"rotation": {*precise, "half", "one more dimension"}, "x": ALL_TOKENS},
        ("rotation", "x"),
    )


def subjects() -> Iterator[Subject]:
    yield from _positions()
    yield from _references()
