"""Where the runs of a study are made: by processes of the command, or by jobs of a cluster's scheduler."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from comrope.errors import ConfigurationError
from comrope.lab.experiment import require

MOST_MINUTES = 60 * 24 * 365
MOST_PROCESSES = 1024
_SET = {
    "partition": "--partition",
    "time": "--time",
    "gpus_per_node": "--gpus",
    "gpus_per_task": "--gpus",
    "num_gpus": "--gpus",
    "ntasks_per_node": "--processes",
    "nodes": "nothing: a run has one node",
    "job_name": "nothing: it is the run's name",
    "stderr_to_stdout": "nothing: a job has one log",
}
"""Parameters of submitit that are set by other options, and by which."""


@dataclass(frozen=True)
class Place:
    """Where the runs of a study are made, and what a job of a scheduler gets."""

    on: Literal["pool", "slurm", "local"] = "pool"
    """pool: processes of this command make the runs. slurm: each run is a job of SLURM, for which this command waits; --runs
    has to be on a disk that all machines share. local: jobs on this machine, to try out what a cluster would do."""
    partition: str | None = None
    """SLURM's partition of the jobs; its default one by default."""
    time: int | None = None
    """Minutes that a job of SLURM may take, 240 by default. A longer run is queued again, and goes on from its checkpoint."""
    gpus: int = 0
    """GPUs of a job, on one machine. Without any it computes on the CPU, on one thread."""
    processes: int | None = None
    """Processes of a job, which share its run as those of torchrun do; one for each GPU by default."""
    slurm: tuple[str, ...] = ()
    """Further parameters of the jobs, as name=value, by the names of submitit's SlurmExecutor: mem=32GB cpus_per_task=8."""

    def __post_init__(self):
        expected = {
            "time": (f"1 to {MOST_MINUTES} minutes", self.time is None or 1 <= self.time <= MOST_MINUTES),
            "gpus": (f"0 to {MOST_PROCESSES}", 0 <= self.gpus <= MOST_PROCESSES),
            "processes": (f"1 to {MOST_PROCESSES}", self.processes is None or 1 <= self.processes <= MOST_PROCESSES),
        }
        require(self, expected)
        of_slurm = {"partition": self.partition, "time": self.time, "slurm": self.slurm}
        of_jobs = {"gpus": self.gpus, "processes": self.processes}
        for places, options in ((("slurm",), of_slurm), (("slurm", "local"), of_jobs)):
            given = [name for name, value in options.items() if value not in (None, 0, ())]
            if given and self.on not in places:
                raise ConfigurationError(
                    f"--{given[0]} is for --on {' or '.join(places)}, and this is --on {self.on}: leave it out."
                )
        _ = self.parameters

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters in `slurm` by their names. A value that is JSON, such as a number, true or a list, is read as that."""
        found: dict[str, Any] = {}
        for text in self.slurm:
            name, equals, value = text.partition("=")
            if not (name.isidentifier() and equals):
                raise ConfigurationError(f"--slurm {text!r}: expected name=value, as in mem=32GB.")
            if name in _SET:
                raise ConfigurationError(f"--slurm {text!r}: this is set by {_SET[name]}.")
            if name in found:
                raise ConfigurationError(f"--slurm {text!r}: {name} is given twice, leave one out.")
            try:
                found[name] = json.loads(value)
            except ValueError:
                found[name] = value
        return found


POOL = Place()
"""The place that runs are made at unless another is named."""
