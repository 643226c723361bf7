"""What the laboratory knows of a problem: images, video, detection and text each have a `problem` module that is one.

The training loop, runs, checkpoints and studies call these functions and know nothing else of what is trained. pyright checks
each module against `Problem`, in the `problem` property of its configuration.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from comrope.lab.train import Task


class Condition(Protocol):
    """One measurement of a trained model. Hashable; equal conditions give equal rows."""

    def describes(self, row: dict[str, Any]) -> bool:
        """Whether `row`, of `Problem.evaluate`, was measured under this condition."""
        ...


Config = TypeVar("Config", contravariant=True)
Options = TypeVar("Options", contravariant=True)
TrainSet = TypeVar("TrainSet")
EvalSet = TypeVar("EvalSet")
Measured = TypeVar("Measured", bound=Condition)


class Problem(Protocol[Config, Options, TrainSet, EvalSet, Measured]):
    """The functions of a problem. A module whose functions have these names and types is one."""

    def check(self, config: Config, /) -> None:
        """Raises ConfigurationError for a configuration that no model can have, before data are read."""
        ...

    def datasets(self, config: Config, /, unreadable: str = "fail") -> tuple[TrainSet, EvalSet]:
        """The samples to train on and those to evaluate on.

        Args:
            config: which data.
            unreadable: whether a file that cannot be read is to "fail", or be left out ("skip") and counted.
        """
        ...

    def build(self, config: Config, dataset: Any, /, runs: Path | None = None) -> nn.Module:
        """The untrained model; with the same seed all encodings start from the same weights outside of themselves.

        Args:
            config: which model.
            dataset: either of `datasets`: the model has its classes and channels.
            runs: the folder that has the run `config.start` in it.
        """
        ...

    def task(self, model: Any, train: TrainSet, evaluation: EvalSet, config: Config, /) -> Task:
        """The training set and the loss, as the training loop takes them."""
        ...

    def conditions(self, config: Config, /, options: Options | None = None) -> list[Measured]:
        """The conditions that `options` asks for; those of the training itself if None."""
        ...

    def evaluate(
        self, model: Any, dataset: EvalSet, conditions: Sequence[Measured], /, *, num_workers: int = 0
    ) -> Iterator[dict[str, Any]]:
        """A row for each condition, ready for JSON, each as soon as it is measured.

        Called in several processes together, each takes its share of the samples, and the rows are of all of them.

        Raises:
            ConfigurationError, InputError: a condition that the model cannot be measured under, before any is.
        """
        ...
