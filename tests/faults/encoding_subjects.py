"""Encodings, and what they are called with."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

import comrope
from comrope.encodings import rotations
from tests.faults.given import (
    ALL_TOKENS,
    LEARNED,
    OTHER_PLACES,
    PLACES,
    ROTARY,
    SIZES,
    fresh_encoding,
    grid,
    kept_encoding,
    tokens,
    unchanged,
)
from tests.faults.subjects import Subject, flag, nothing, number, optional, several, whole
from tests.faults.values import is_finite

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
            lambda name=name, **given: kept_encoding(name)(**given),
            lambda: tokens() | {"positions": grid()},
            {"key_positions": optional(nothing)},
            {"q": ALL_TOKENS, "k": ALL_TOKENS, "positions": PLACES},
            through=("q", "k"),
            holds=_same_shapes,
        )


def _rotated(name: str, **given: Any) -> Any:
    return kept_encoding(name).rotation(grid()).rotate(**given)


def _rotations() -> Iterator[Subject]:
    for name in ROTARY:
        pe = partial(kept_encoding, name)
        x = {"positions": OTHER_PLACES}
        dtypes = {"dtype": nothing, "key_positions": optional(nothing)}
        yield Subject(
            f"{name}.rotation",
            lambda pe=pe, **given: pe().rotation(**given),
            lambda: {"positions": grid()},
            dtypes,
            {"positions": OTHER_PLACES | ({"meta"} if name in ("none", "rope") else set())},  # which have no parameters
        )
        yield Subject(
            f"{name}.rotation_matrices",
            lambda pe=pe, **given: pe().rotation_matrices(**given),
            lambda: {"positions": grid()},
            {},
            x,
            holds=lambda found, given: found.shape[-5] == given["positions"].shape[-2],
        )
    for name in ("rope", "rope-mixed", "string", "liere", "comrope-ld", "comrope-mt"):
        yield Subject(
            f"{name}.rotation().rotate",
            partial(_rotated, name),
            tokens,
            {} if name == "liere" else {"in_basis": flag},
            {"q": ALL_TOKENS, "k": ALL_TOKENS},
            ("q", "k"),
            holds=_same_shapes,
        )
    for name in ("rope", "comrope-mt"):
        yield Subject(
            f"{name}.rotation().into_basis",
            lambda name=name, **given: kept_encoding(name).rotation(grid()).into_basis(**given),
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
        lambda: {"encodings": [kept_encoding("comrope-ld"), kept_encoding("rope")], "positions": grid()},
        {
            "encodings": lambda v: isinstance(v, Sequence) and not v,
            "key_positions": optional(nothing),
            "dtype": nothing,
        },
        {"positions": OTHER_PLACES},
    )


def _set_spectrum(name: str, **given: Any) -> Any:
    pe = fresh_encoding(name)
    with unchanged(pe):
        pe.set_spectrum(**given)
    return pe


def _spectra() -> Iterator[Subject]:
    for name in LEARNED:
        source = partial(
            kept_encoding, "comrope-ld" if name == "liere" else name, block_size=2 if name == "rope-mixed" else 8
        )
        yield Subject(
            f"{name}.set_spectrum",
            partial(_set_spectrum, name),
            lambda source=source: source().spectrum()._asdict(),
            {"basis": lambda v: None if v is None else False},
            {name: {"double", "strided anyhow", "with a gradient"} for name in ("basis", "frequencies")},
            unsure={"half"},
            holds=lambda pe, given: is_finite(pe(*tokens().values(), grid())),
        )


def _codes() -> Iterator[Subject]:
    ape = partial(kept_encoding, "ape", grid=(2, 3))
    yield Subject(
        "ape()",
        lambda **given: ape()(**given),
        lambda: {"tokens": torch.rand(1, 4, 32), "positions": grid()},
        {},
        {"tokens": ALL_TOKENS, "positions": PLACES},
        ("tokens",),
        holds=lambda found, given: _same_shapes([found], given),
    )
    yield Subject(
        "ape.codes",
        lambda **given: ape().codes(**given),
        lambda: {"positions": grid()},
        {},
        {"positions": OTHER_PLACES},
        holds=lambda found, given: found.shape == (*given["positions"].shape[:-1], 32),
    )


def subjects() -> Iterator[Subject]:
    yield from _encodings()
    yield from _calls()
    yield from _rotations()
    yield from _spectra()
    yield from _codes()
