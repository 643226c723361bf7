"""What was typed: for the record that results carry, and looked at before anything is imported that takes seconds."""

import shlex
import sys
from pathlib import Path

from comrope.errors import DataError


def typed() -> str:
    """Names of files may have bytes that are no text: these are spelt out."""
    return shlex.join(["comrope", *sys.argv[1:]]).encode(errors="backslashreplace").decode()


def existing(folder: Path, what: str) -> None:
    """DataError, that it is no `what`, where there is no such folder."""
    if not folder.is_dir():
        where = "it is a file" if folder.exists() else "there is nothing of that name"
        raise DataError(f"{folder} is no {what}: {where}, and a folder is expected.")
