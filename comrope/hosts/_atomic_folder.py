"""Atomic updates of a folder: if a process is killed at any time, the folder has all old files or all new ones.

New files are first written to a subfolder. The update takes effect when a list of them is written there; moving each file
to its place can be finished at any later time. Nothing outside of the folder is needed, which may be a mount point, and
other files in it are kept.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from comrope.errors import DataError

NEW, LIST = ".comrope-new", "whole.json"


@contextmanager
def update_atomically(folder: Path, stale: Sequence[str]) -> Iterator[Path]:
    """Yields an empty folder for new files. At the end they replace those in `folder`; after an exception they are
    deleted.

    Waits for other processes that update the same folder.

    Args:
        folder: created if it does not exist.
        stale: names of files in `folder` to delete, unless they are among the new ones.
    Raises:
        DataError: `folder` is a file, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name a folder.")
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / f"{NEW}.lock"
        with FileLock(lock):
            finish_update(folder)
            new = folder / NEW
            shutil.rmtree(new, ignore_errors=True)  # left over by a killed process
            new.mkdir()
            try:
                yield new
                _commit(new, stale)
                finish_update(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
                lock.unlink(missing_ok=True)
                if made and not any(folder.iterdir()):
                    folder.rmdir()
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error}): name another, or make room; what was there is as it was."
        ) from error


def is_taken(folder: Path) -> bool:
    """Returns whether there is anything at `folder` except the leftovers of a killed update."""
    if not folder.is_dir():
        return folder.exists()
    finish_update(folder)
    return any(not path.name.startswith(NEW) for path in folder.iterdir())


def finish_update(folder: Path) -> None:
    """Finishes an update whose process was killed after it took effect."""
    new = folder / NEW
    if not (new / LIST).exists():
        return
    for name in json.loads((new / LIST).read_text(encoding="utf-8"))["stale"]:
        (folder / name).unlink(missing_ok=True)
    for path in new.iterdir():
        if path.name != LIST:
            os.replace(path, folder / path.name)
    (new / LIST).unlink()
    new.rmdir()


def _commit(new: Path, stale: Sequence[str]) -> None:
    """Makes the update take effect, by an atomic write of the list."""
    names = {path.name for path in new.iterdir()}
    draft = new / f"{LIST}.draft"
    draft.write_text(json.dumps({"stale": [name for name in stale if name not in names]}), encoding="utf-8")
    mode = draft.stat().st_mode  # safetensors makes files that only their owner can read
    for name in names:
        (new / name).chmod(mode)
    os.replace(draft, new / LIST)
