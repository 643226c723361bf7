"""The plan that a recipe returns: its runs, and the function that makes a result of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from comrope.lab.output import Outcome
from comrope.lab.study import Job


@dataclass(frozen=True)
class Plan:
    """Runs, and a function that makes the outcome, given the results of the runs in the same order."""

    title: str
    jobs: Sequence[Job]
    outcome: Callable[[list[dict[str, Any]]], Outcome]
    encodings: Sequence[str] = ()
    """The encodings that the recipe can compare, besides those of the jobs."""
    files: Sequence[str] = ()
    """Patterns of the names of its files that do not start with the recipe's name."""
    measures: bool = False
    """Whether the outcome measures times, so that it cannot be made again from the runs alone."""
