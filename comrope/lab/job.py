"""A job of a study: one run, and what it is evaluated under. It is made by a worker process or a job of a scheduler."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from comrope.lab import run_folder, runs
from comrope.lab.experiment import ExperimentConfig

OnRunProgress = Callable[[str, str, int, int, float], None]
"""Is called with (name of the run, stage, done, total, samples per second)."""


@dataclass(frozen=True)
class Job:
    """One run, and the conditions to evaluate it under."""

    experiment: ExperimentConfig
    conditions: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """The name of the run and of its folder."""
        return self.experiment.name

    def run(self, folder: Path, settings: dict[str, Any], on_progress: OnRunProgress) -> dict[str, Any]:
        """Makes the run, in its folder inside of `folder`, and returns its result; see `comrope.lab.runs.run`."""

        def tell(stage: str, done: int, total: int, speed: float) -> None:
            on_progress(self.name, stage, done, total, speed)

        return runs.run(self.experiment, self.conditions, folder / self.name, on_progress=tell, **settings)

    def is_complete(self, folder: Path) -> bool:
        """Whether the folder has the finished run with all conditions."""
        result = run_folder.result_in(folder / self.name)
        return result is not None and not runs.missing(result, self.conditions)


def use_one_thread() -> None:
    """Makes this process compute on one thread and, on the CPU, the same bits as every other that does."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # Nothing reads fresh memory, and filling it takes time in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
