"""Checkpoints of a run, from which training continues after a kill. Each is written atomically.

Checksums of its files reveal a checkpoint that was damaged later; the checkpoint before it is kept for that case.
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from comrope.errors import DataError
from comrope.lab.results import sum_of, writing

_PROGRESS = "progress.json"
KEPT = 2
"""How many checkpoints of a run are kept."""


@dataclass(frozen=True)
class Checkpoints:
    """The newest checkpoints of a run, in `folder`/step-<n>: weights and optimizer as Accelerate saves them, and progress."""

    folder: Path
    every: int | None = None
    """Steps between two checkpoints; the steps of an epoch if None."""

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Whether a checkpoint is to be saved after `step`."""
        return step % (self.every or steps_per_epoch) == 0

    def save(self, accelerator: Accelerator, progress: dict[str, Any]) -> None:
        """Saves a checkpoint, and removes all but the newest `KEPT`. All processes call this together.

        Raises:
            DataError: it cannot be written. Earlier checkpoints are unchanged.
        """
        partial, whole = self.folder / "partial", self.folder / f"step-{progress['step']}"
        with writing(whole, "it goes on from the checkpoint before"):
            if accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(partial))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                files = sorted(path for path in partial.rglob("*") if path.is_file())
                sums = {path.relative_to(partial).as_posix(): sum_of(path) for path in files}
                (partial / _PROGRESS).write_text(json.dumps({"progress": progress, "sums": sums}), encoding="utf-8")
                shutil.rmtree(whole, ignore_errors=True)  # one that was saved at another interval
                os.replace(partial, whole)
                for folder in self._found()[:-KEPT]:
                    shutil.rmtree(folder, ignore_errors=True)
        accelerator.wait_for_everyone()

    def restore(self, accelerator: Accelerator) -> dict[str, Any] | None:
        """Loads the newest undamaged checkpoint into what `accelerator` has prepared, and returns its progress, or None.

        Raises:
            DataError: there are checkpoints, and all are damaged.
        """
        found = self._found()
        accelerator.wait_for_everyone()
        for folder in reversed(found):
            damage = _damage(folder)
            if damage is None:
                accelerator.load_state(str(folder))
                return _read(folder)["progress"]
            logging.getLogger("comrope").warning(
                "%s is damaged (%s): looking for the checkpoint before it", folder, damage
            )
        if found:
            raise DataError(
                f"{self.folder}: all checkpoints are damaged. Remove this folder, and give the same command again to train "
                "from the start."
            )
        return None

    def progress(self) -> dict[str, Any]:
        """Returns the progress that was saved with the newest checkpoint."""
        return _read(self._found()[-1])["progress"]

    def remove(self) -> None:
        """Removes all checkpoints, when training is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> list[Path]:
        """Returns the folders of all checkpoints, the newest last."""
        return sorted(self.folder.glob("step-*"), key=lambda folder: int(folder.name.removeprefix("step-")))


def _damage(folder: Path) -> str | None:
    """Returns what is damaged in a checkpoint, or None."""
    try:
        about = _read(folder)
        for name, expected in about["sums"].items():
            if sum_of(folder / name) != expected:
                return f"{name} is not what was written"
        _ = about["progress"]["step"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
