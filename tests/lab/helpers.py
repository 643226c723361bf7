"""What the laboratory's tests share: a small experiment, and the names of all encodings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor, nn

import comrope
from comrope.lab.experiment import Recipe
from comrope.lab.images.config import ImageConfig
from comrope.lab.job import Job
from comrope.lab.styles import label

QUICK = ImageConfig(
    data="digits",
    num_train=60,
    num_test=40,
    model="tiny",
    image_size=(8, 8),
    recipe=Recipe(epochs=2, batch_size=20, learning_rate=3e-3),
)
"""Two epochs of three steps: a second."""

ENCODINGS = list(comrope.encodings.ENCODINGS)
LABELS = [label(name) for name in ENCODINGS]
"""As figures and tables have them, in the same order."""


def heard(module: nn.Module, run: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """What a module is given, and what it puts out, while `run` runs."""
    found: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, args, output: found.extend((args[0], output)))
    run()
    handle.remove()
    given, output = found
    return given, output


def job_processes(runs: Path, job: Job) -> list[psutil.Process]:
    """Returns the processes of submitit in which a job makes a run of the folder `runs`."""
    submitted = str(runs / "jobs" / job.name)
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if submitted in (process.info["cmdline"] or ()) and process.info["name"] not in ("srun", "bash")
    ]
