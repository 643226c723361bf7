"""The command line as typed, for the record, and checks of its folders before slow imports."""

import shlex
import sys
from pathlib import Path

from comrope.errors import DataError


def typed() -> str:
    """Returns the command line that was typed. Bytes of file names that are not valid UTF-8 are escaped."""
    return shlex.join(["comrope", *sys.argv[1:]]).encode(errors="backslashreplace").decode()


def existing(folder: Path, what: str) -> None:
    """Raises DataError, which says that `folder` is no `what`, unless it is a folder."""
    if not folder.is_dir():
        where = "it is a file" if folder.exists() else "there is nothing of that name"
        raise DataError(f"{folder} is no {what}: {where}, and a folder is expected.")
