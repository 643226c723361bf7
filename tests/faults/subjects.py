"""A public function that is tried on values which make no sense, drawn from a fixed seed."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import pytest

from tests.faults.values import ANYTHING, CHANGES

SEED = 0
TRIES = 3
"""For each argument; of tensors as many others again, made of one that fits."""

NO_NUMBERS = {"all nan", "one inf", "1e300", "2e15"}
Fits = Callable[[Any], bool | None]
"""Whether a value makes sense; None where it may, or may be refused."""


def nothing(value: Any) -> bool:
    return False


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def number(least: float = 0.0, most: float = 1e15) -> Fits:
    return lambda value: isinstance(value, Real) and not isinstance(value, bool) and least <= value <= most


def whole(least: int, most: int = 2**48) -> Fits:
    return lambda value: isinstance(value, Integral) and not isinstance(value, bool) and least <= value <= most


def optional(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def several(fits: Fits, *counts: int) -> Fits:
    """A sequence of so many values that fit; of any number of them without `counts`."""
    return lambda value: (
        isinstance(value, Sequence)
        and (not counts or len(value) in counts)
        and len(value) > 0
        and all(map(fits, value))
    )


@dataclass(frozen=True)
class Subject:
    """A public function, arguments that fit, and what else does."""

    name: str
    call: Callable[..., Any]
    fitting: Callable[[], dict[str, Any]] = dict
    values: dict[str, Fits] = field(default_factory=dict)
    """Arguments that are given values of `ANYTHING`, and which of them make sense."""
    tensors: dict[str, set[str]] = field(default_factory=dict)
    """Arguments that are given `CHANGES` of the tensor that fits as well, and which of them make sense."""
    through: tuple[str, ...] = ()
    """Arguments that may be of any numbers, which come out as they went in: what is NaN stays NaN."""
    unsure: set[str] = field(default_factory=set)
    """Changes that may make sense."""
    omitted: set[str] = field(default_factory=set)
    """Values that are not tried."""
    holds: Callable[[Any, dict[str, Any]], Any] = lambda found, given: True
    """Whether what was found is of the kind that was asked for."""

    def tries(self) -> Iterator[Any]:
        for argument in self.values | self.tensors:
            fits = self.values.get(argument, nothing)
            for name in self._drawn(argument, ANYTHING):
                yield self._try(argument, name, lambda given, make=ANYTHING[name]: make(), fits)
        for argument, fitting in self.tensors.items():
            for name in self._drawn(f"changed {argument}", CHANGES):
                any_number = argument in self.through and name in NO_NUMBERS
                makes_sense = None if name in self.unsure else name in fitting or any_number
                fits = lambda value, makes_sense=makes_sense: makes_sense  # noqa: E731
                yield self._try(argument, name, CHANGES[name], fits)

    def _drawn(self, what: str, names: dict[str, Any]) -> list[str]:
        asked = [name for name in names if name not in self.omitted]
        return random.Random(f"{SEED} {self.name} {what}").sample(asked, min(TRIES, len(asked)))

    def _try(self, argument: str, name: str, make: Callable[[Any], Any], fits: Fits) -> Any:
        return pytest.param(self, argument, name, make, fits, id=f"{self.name} {argument}={name}")
