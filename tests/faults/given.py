"""What the functions of the library are tried on, and the changes of tensors that make sense to most of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

import comrope
from comrope import positions
from comrope.errors import ComropeError

SIZES = {"num_heads": 2, "head_dim": 16, "num_axes": 2}
ROTARY = ("none", "rope", "rope-mixed", "string", "liere", "comrope-ap", "comrope-ld", "comrope-mt")
LEARNED = ROTARY[2:]

ALL_TOKENS = {"half", "double", "strided anyhow", "with a gradient", "more of the first dimension"}
PLACES = {"double", "whole numbers", "strided anyhow", "with a gradient", "one more dimension"}
OTHER_PLACES = PLACES | {"less of the one before", "none of the one before", "more of the first dimension"}
ANY_AXES = {
    "less of the last dimension",
    "more of the last dimension",
    "none of the last dimension",
    "last two swapped",
}


@cache
def kept_encoding(name: str, **settings: Any) -> Any:
    """An encoding that no try changes."""
    torch.manual_seed(0)
    return comrope.encoding(name, **(SIZES | settings))


def fresh_encoding(name: str) -> Any:
    torch.manual_seed(0)
    return comrope.encoding(name, **SIZES, block_size=2 if name == "rope-mixed" else 8)


def grid() -> Tensor:
    return positions.grid((2, 2))


def tokens() -> dict[str, Any]:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, 4, 16)
    return {"q": q, "k": k}


@contextmanager
def unchanged(module: Any) -> Iterator[None]:
    """Where an error is raised a module is as it was."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    try:
        yield
    except ComropeError:
        after = module.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        raise
