"""What a recipe returns: runs to make, and what to make of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from comrope.lab.output import Outcome
from comrope.lab.study import Job


@dataclass(frozen=True)
class Plan:
    """Runs, and the function that makes an outcome of their results, given in the same order."""

    title: str
    jobs: Sequence[Job]
    outcome: Callable[[list[dict[str, Any]]], Outcome]
    encodings: Sequence[str] = ()
    """Those that it can compare, where no jobs say it."""
    files: Sequence[str] = ()
    """Patterns of files that it writes whose names do not start with the recipe's."""
    measures: bool = False
    """Whether the outcome takes times itself, so that the runs alone do not give it again."""
