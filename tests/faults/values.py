"""Values that make no sense, or hardly any, for arguments of all kinds; and what is asked of an error that says so."""

import re
import warnings
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comrope.errors import ComropeError

REMEDY = re.compile(
    r"expected|did you mean|known:|must|\b(attach|bring|call|cast|choose|detach|draw|freeze|give|keep|leave|load|make|move)\b|"
    r"\b(first|get|makes|put|run|name|need|needs|pass|remove|say|take|use|want|wants)\b",
    re.IGNORECASE,
)
"""An error says what was expected, or what to do."""


def _nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, torch says
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def _some_function(*args: Any, **kwargs: Any) -> None:
    return None


ANYTHING: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "-1": lambda: -1,
    "3": lambda: 3,
    "8": lambda: 8,
    "2^60": lambda: 2**60,
    "10^400": lambda: 10**400,
    "-10^400": lambda: -(10**400),
    "0.0": lambda: 0.0,
    "-0.5": lambda: -0.5,
    "0.5": lambda: 0.5,
    "8.0": lambda: 8.0,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: -float("inf"),
    "1e300": lambda: 1e300,
    "1e-300": lambda: 1e-300,
    "1j": lambda: 1j,
    "half": lambda: Fraction(1, 2),
    "a decimal": lambda: Decimal("0.5"),
    "numpy 8": lambda: np.int64(8),
    "numpy 0.5": lambda: np.float32(0.5),
    "numpy nan": lambda: np.float32("nan"),
    "numpy true": lambda: np.bool_(True),
    "numpy array": lambda: np.ones(3),
    "numpy text": lambda: np.array(["a", "b"]),
    "text 8": lambda: "8",
    "no text": lambda: "",
    "text": lambda: "no such",
    "bytes": lambda: b"8",
    "()": lambda: (),
    "[8]": lambda: [8],
    "(8, 8)": lambda: (8, 8),
    "(2, 2, 2, 2)": lambda: (2, 2, 2, 2),
    "(nan, nan)": lambda: (float("nan"), float("nan")),
    "(inf, 1)": lambda: (float("inf"), 1),
    "(1e300, 1e300)": lambda: (1e300, 1e300),
    "(1e-300, 1)": lambda: (1e-300, 1),
    "(2^60, 1)": lambda: (2**60, 1),
    "(2^40, 2^40)": lambda: (2**40, 2**40),
    "(True, True)": lambda: (True, True),
    "('a', 'b')": lambda: ("a", "b"),
    "(0, 0)": lambda: (0, 0),
    "(-1, -1)": lambda: (-1, -1),
    "nested list": lambda: [[8, 8], [8, 8]],
    "{}": dict,
    "a dict": lambda: {"a": 1},
    "a set": lambda: {1, 2},
    "a range": lambda: range(2),
    "an iterator": lambda: iter((1, 2)),
    "an object": object,
    "a class": lambda: int,
    "a function": lambda: _some_function,
    "a path": lambda: Path("no such folder"),
    "an exception": lambda: ValueError("value"),
    "float16": lambda: torch.float16,
    "int64": lambda: torch.int64,
    "complex64": lambda: torch.complex64,
    "a device": lambda: torch.device("meta"),
    "a module": lambda: torch.nn.Linear(2, 2),
    "a generator": lambda: torch.Generator().manual_seed(0),
    "tensor of nothing": lambda: torch.ones(0),
    "tensor of one": lambda: torch.tensor(0.5),
    "tensor of two": lambda: torch.ones(2),
    "tensor of nan": lambda: torch.full((2,), float("nan")),
    "tensor of 1e300": lambda: torch.full((2,), 1e300, dtype=torch.float64),
    "tensor of many dimensions": lambda: torch.ones(1, 1, 1, 1, 1, 1, 1),
    "sparse tensor": lambda: torch.ones(2).to_sparse(),
    "nested tensor": _nested,
    "float8 tensor": lambda: torch.ones(2).to(torch.float8_e4m3fn),
    "complex tensor": lambda: torch.ones(2, dtype=torch.complex64),
    "meta tensor": lambda: torch.ones(2, device="meta"),
}
"""What is given in place of any argument, by name."""


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda t: t.to_sparse(),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "complex": lambda t: t.to(torch.complex64),
    "whole numbers": lambda t: t.long(),
    "truth values": lambda t: t > 0,
    "numpy": lambda t: t.numpy(),
    "a list": lambda t: t.tolist(),
    "the first": lambda t: t[0],
    "one more dimension": lambda t: t.unsqueeze(0),
    "a flat one": lambda t: t.flatten(),
    "less of the last dimension": lambda t: t[..., :-1],
    "more of the last dimension": lambda t: torch.cat((t, t), -1),
    "none of the last dimension": lambda t: t[..., :0],
    "less of the one before": lambda t: t[..., :-1, :],
    "none of the one before": lambda t: t[..., :0, :],
    "more of the first dimension": lambda t: torch.cat((t, t, t)),
    "last two swapped": lambda t: t.mT[..., :1, :],
    "meta": lambda t: t.to("meta"),
    "all nan": lambda t: torch.full_like(t, float("nan")),
    "one inf": lambda t: torch.where(torch.arange(t.numel()).view(t.shape) == 1, -float("inf"), t),
    "1e300": lambda t: torch.full_like(t, 1e300, dtype=torch.float64),
    "2e15": lambda t: torch.full_like(t, -2e15, dtype=torch.float64),
    "strided anyhow": lambda t: t.mT.contiguous().mT,
    "with a gradient": lambda t: t.clone().requires_grad_(),
}
"""What is made of a tensor that fits, by name."""


def says_what_to_do(error: ComropeError, arguments: Iterable[str], value: Any) -> bool:
    """Whether a message says what came, by name or by kind, and what was expected or is to be done."""
    text = str(error)
    came = {*arguments, type(value).__name__, repr(value)}
    if isinstance(value, Tensor):
        came |= {str(value.dtype), str(value.device), "nested", "dense", "finite", "infinite"}
        came |= set() if value.is_nested else {str(tuple(value.shape))}
    return any(each and each in text for each in came) and REMEDY.search(text) is not None


def is_finite(found: Any) -> bool:
    """Whether all numbers in what was returned are finite, where it has any."""
    if isinstance(found, Tensor):
        return found.is_meta or bool(found.detach().isfinite().all())
    if isinstance(found, torch.nn.Module):
        return all(is_finite(tensor) for tensor in found.state_dict().values())
    if isinstance(found, (tuple, list)):
        return all(map(is_finite, found))
    return True
