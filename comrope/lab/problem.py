"""The interface of a problem. The modules `problem` of images, video, detection and text implement it.

The training loop, runs, checkpoints and studies depend on a problem through these functions alone. pyright checks each
module against `Problem`, in the `problem` property of its configuration.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from comrope.lab.train import Task


class Condition(Protocol):
    """The conditions of a measurement of a trained model. They are hashable, and equal ones give equal rows."""

    def describes(self, row: dict[str, Any]) -> bool:
        """Whether `row`, of `Problem.evaluate`, was measured under this condition."""
        ...


Config = TypeVar("Config", contravariant=True)
Options = TypeVar("Options", contravariant=True)
TrainSet = TypeVar("TrainSet")
EvalSet = TypeVar("EvalSet")
Measured = TypeVar("Measured", bound=Condition)


class Problem(Protocol[Config, Options, TrainSet, EvalSet, Measured]):
    """The functions of a problem. A module implements it by functions with these names and types."""

    def check(self, config: Config, /) -> None:
        """Raises ConfigurationError for a configuration that no model can have, before data are read."""
        ...

    def datasets(self, config: Config, /, unreadable: str = "fail") -> tuple[TrainSet, EvalSet]:
        """Returns the samples to train on and those to evaluate on.

        Args:
            config: the configuration, which names the data.
            unreadable: whether a file that cannot be read raises an error ("fail"), or is skipped and counted ("skip").
        """
        ...

    def build(self, config: Config, dataset: Any, /, runs: Path | None = None) -> nn.Module:
        """Returns the untrained model; with the same seed, weights outside of the encoding are the same for all encodings.

        Args:
            config: the configuration, which names the model.
            dataset: either result of `datasets`, whose classes and channels the model gets.
            runs: the folder that the folder of the run `config.start` is in.
        """
        ...

    def task(self, model: Any, train: TrainSet, evaluation: EvalSet, config: Config, /) -> Task:
        """Returns the training task: the training set and the loss."""
        ...

    def conditions(self, config: Config, /, options: Options | None = None) -> list[Measured]:
        """Returns the conditions that `options` asks for; those of the training itself if None."""
        ...

    def evaluate(
        self, model: Any, dataset: EvalSet, conditions: Sequence[Measured], /, *, num_workers: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Returns rows, one for each condition, ready for JSON; each is measured when it is asked for.

        If several processes call this together, each takes its share of the samples. The rows are over all processes.

        Raises:
            ConfigurationError, InputError: a condition that the model cannot be measured under, before any is.
        """
        ...
