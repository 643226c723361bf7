"""The state of a run on disk, so that it goes on after a kill where it was: each checkpoint whole, or not there at all."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

_PROGRESS = "progress.json"


@dataclass(frozen=True)
class Checkpoints:
    """The newest state of a run, in `folder`/step-<n>: weights and optimiser as Accelerate writes them, and progress."""

    folder: Path
    every: int | None = None
    """Steps between two; an epoch's if None."""

    def due(self, step: int, steps_per_epoch: int) -> bool:
        return step % (self.every or steps_per_epoch) == 0

    def save(self, accelerator: Accelerator, progress: dict[str, Any]) -> None:
        """Writes the state and removes the one before. All processes call this together."""
        partial, whole = self.folder / "partial", self.folder / f"step-{progress['step']}"
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (partial / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            before = self._found()
            shutil.rmtree(whole, ignore_errors=True)  # of a run of other checkpoints' spacing
            os.replace(partial, whole)
            for folder in before:
                if folder != whole:
                    shutil.rmtree(folder, ignore_errors=True)
        accelerator.wait_for_everyone()

    def restore(self, accelerator: Accelerator) -> dict[str, Any] | None:
        """Loads the newest state into what `accelerator` has prepared, and returns its progress; None if there is none."""
        found = self._found()
        accelerator.wait_for_everyone()
        if not found:
            return None
        accelerator.load_state(str(found[-1]))
        return self.progress()

    def progress(self) -> dict[str, Any]:
        """What was saved beside the newest state."""
        return json.loads((self._found()[-1] / _PROGRESS).read_text(encoding="utf-8"))

    def remove(self) -> None:
        """Forgets the state: the run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> list[Path]:
        """Whole checkpoints, the newest last."""
        return sorted(self.folder.glob("step-*"), key=lambda folder: int(folder.name.removeprefix("step-")))
