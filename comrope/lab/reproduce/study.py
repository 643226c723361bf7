"""What a recipe is made of: runs to make, and what to make of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from comrope.lab.study import Job
from comrope.lab.table import Table


@dataclass(frozen=True)
class Outcome:
    """What a recipe found."""

    tables: list[Table]
    figures: dict[str, Figure] = field(default_factory=dict)
    """By the name of their files."""
    notes: list[str] = field(default_factory=list)
    """What a reader has to know of the numbers: sentences."""


@dataclass(frozen=True)
class Study:
    """Runs, and the function that makes their results, in the same order, an outcome."""

    title: str
    jobs: Sequence[Job]
    outcome: Callable[[list[dict[str, Any]]], Outcome]
    encodings: Sequence[str] = ()
    """Those that it can compare, where no jobs say it."""
