"""The log of a training: lines of JSON, and events for TensorBoard."""

import json
from pathlib import Path
from typing import Any

from comrope.errors import ConfigurationError
from comrope.lab.train import StepProgress


def summary_writer() -> Any:
    """Returns TensorBoard's SummaryWriter class; raises ConfigurationError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigurationError("tensorboard is not installed: pip install tensorboard, or leave it out.") from None
    return SummaryWriter


class Log:
    """Writes a line of JSON every so many steps. After a kill, lines of steps that are trained again are removed first."""

    def __init__(self, path: Path, writes: bool, tensorboard: bool, every: int = 50):
        self.path, self.writes, self.every = path, writes, every
        self.begun = False
        self.board = summary_writer()(str(path.parent / "tensorboard")) if writes and tensorboard else None

    def write(self, progress: StepProgress) -> None:
        if not self.writes or (progress.step % self.every and progress.step != progress.total):
            return
        if not self.begun:
            self._cut(progress.step)
        row = {
            **vars(progress),
            "loss": progress.loss.item(),
            "samples_per_second": round(progress.samples_per_second, 1),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name in ("loss", "learning_rate", "samples_per_second"):
                self.board.add_scalar(name, row[name], progress.step)

    def _cut(self, step: int) -> None:
        self.begun = True
        if self.path.exists():
            kept = []
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    kept += [line] if json.loads(line)["step"] < step else []
                except json.JSONDecodeError:
                    continue  # cut off by a kill
            self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
