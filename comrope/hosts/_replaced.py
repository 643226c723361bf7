"""A folder whose files change all together, whatever is killed, and whatever else lies in it.

New files are written into a folder of their own inside of it. Once a list of them lies there they count as written, and what
is left to do, moving each to its place, can be done at any later time. So nothing beside the folder is needed, which may be the
mount of a disk, and files of others in it stay.
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
def replaced(folder: Path, stale: Sequence[str]) -> Iterator[Path]:
    """An empty folder to write files into, which come into `folder` when all went well, and vanish otherwise.

    Another process that writes there at the same time is waited for.

    Args:
        folder: made where it is missing.
        stale: files in `folder` that are to go, where they are not among the new ones.
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
            settle(folder)
            new = folder / NEW
            shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
            new.mkdir()
            try:
                yield new
                _count_as_written(new, stale)
                settle(folder)
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
    """Whether anything is there but the beginnings of a process that was killed."""
    if not folder.is_dir():
        return folder.exists()
    settle(folder)
    return any(not path.name.startswith(NEW) for path in folder.iterdir())


def settle(folder: Path) -> None:
    """Moves into `folder` what was written there when a process was killed that had not moved all of it."""
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


def _count_as_written(new: Path, stale: Sequence[str]) -> None:
    names = {path.name for path in new.iterdir()}
    draft = new / f"{LIST}.draft"
    draft.write_text(json.dumps({"stale": [name for name in stale if name not in names]}), encoding="utf-8")
    mode = draft.stat().st_mode  # safetensors writes files that nobody else can read
    for name in names:
        (new / name).chmod(mode)
    os.replace(draft, new / LIST)
