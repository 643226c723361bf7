"""Atomic files and folders: they appear complete, or not at all. `comrope.lab.output` writes their content."""

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

import comrope
from comrope.errors import DataError

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
_WRITE_FAILED = re.compile("PytorchStreamWriter|os error|I/O error", re.IGNORECASE)
"""Matches messages of torch and safetensors if a file cannot be written."""
DRAFT, LOCK = ".draft", "lock"
UNCHANGED = "what was there is as it was"
FILES = ("results.json", "tables.md", "report.html")
"""The files of every result."""


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of comrope, of other installed packages, and of Python."""
    installed = {package: version(package) for package in packages}
    return {"comrope": comrope.__version__} | installed | {"python": platform.python_version()}


@contextmanager
def atomic_folder(folder: Path, patterns: Sequence[str] = ()) -> Iterator[Path]:
    """Yields a draft folder to write a result into. It replaces `folder` if the block succeeds, and is removed otherwise.

    An earlier result stays until the new one is complete. An interruption by Ctrl-C counts as a failure.

    Args:
        folder: the folder of the result; made if it is missing.
        patterns: patterns of the file names that such a result may have besides FILES.
    Raises:
        DataError: `folder` is a file or below one, or holds other files, which would be lost. Nothing is changed.
    """
    folder = folder.resolve()
    refuse_file(folder)
    names: list[str] = []
    with suppress(FileNotFoundError):  # there is none, or another process replaces it right now
        names = sorted(entry.name for entry in folder.iterdir())
    foreign = [name for name in names if not any(fnmatch(name, pattern) for pattern in (*FILES, *patterns))]
    if foreign:
        raise DataError(f"{folder} holds what is no result of comrope ({', '.join(foreign[:3])}): name another folder.")
    missing = [parent for parent in folder.parents if not parent.exists()]
    with writing(folder, UNCHANGED):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*{DRAFT}"):
            _clean_up(left, folder)
        partial, lock = _new_draft(folder)
    former, whole = partial / "former", partial / "whole"
    try:
        with writing(folder, UNCHANGED):
            whole.mkdir()
            yield whole
            try:
                _replace(whole, folder, former)
            except BaseException:
                if former.exists() and not folder.exists():
                    os.replace(former, folder)
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.release()
        for parent in missing:
            with suppress(OSError):  # it is not empty
                parent.rmdir()


def _new_draft(folder: Path) -> tuple[Path, FileLock]:
    """Returns a new draft folder beside `folder` and its lock, acquired. Other processes remove drafts that are not locked."""
    while True:
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=DRAFT, dir=folder.parent))
        lock = FileLock(partial / LOCK)
        with suppress(FileNotFoundError):
            lock.acquire()
            if (partial / LOCK).exists():
                return partial, lock


def _replace(whole: Path, folder: Path, former: Path) -> None:
    """Replaces `folder` by `whole` and moves it to `former`; retries if other processes replace it at the same time."""
    while True:
        shutil.rmtree(former, ignore_errors=True)  # from an earlier try
        with suppress(FileNotFoundError):
            os.replace(folder, former)
        try:
            return os.replace(whole, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def refuse_file(folder: Path) -> None:
    """Raises DataError if `folder` is a file or below one."""
    if any(_is_file(path) for path in (folder, *folder.parents)):
        raise DataError(f"{folder} is a file, or below one: name a folder.")


def _is_file(path: Path) -> bool:
    """Whether anything but a folder is there; asked of the system once, since other processes may replace the folder."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):  # of what is below a file, the file itself is found
        return False


def _clean_up(left: Path, folder: Path) -> None:
    """Removes the draft folder of a killed process; an earlier result that it had moved there is restored."""
    try:
        with FileLock(left / LOCK, timeout=0):  # raises Timeout while its process runs
            if (left / "former").exists() and not folder.exists():
                os.replace(left / "former", folder)
            shutil.rmtree(left, ignore_errors=True)
    except (Timeout, FileNotFoundError):
        return


def read(path: Path) -> dict:
    """Returns what a results.json holds, given the file or its folder.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        path = path / "results.json" if path.is_dir() else path
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: `comrope demo` and `comrope reproduce` make one.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): name the folder of a result, or its results.json.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}): run the command that made it again.") from None
    if not isinstance(results, dict):
        raise DataError(f"{path} is damaged (no results in it): run the command that made it again.")
    return results


def write_json(results: dict, path: Path) -> None:
    """Writes `results` atomically: an earlier file stays until the new one is complete."""
    with atomic_file(path) as draft:
        draft.write_text(json.dumps(results, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def atomic_file(path: Path, so_far: str = UNCHANGED) -> Iterator[Path]:
    """Yields the path of a draft file. It replaces `path` if the block succeeds, and is removed otherwise.

    A missing folder is made. If another process writes the same file, this one waits.

    Args:
        path: the file to write. The draft has the same suffix.
        so_far: a clause for the error message: what is left if the file cannot be written.
    Raises:
        DataError: the file cannot be written.
    """
    draft = path.with_name(f".{path.stem}{DRAFT}{path.suffix}")
    lock = draft.with_name(f"{draft.name}.lock")
    with writing(path, so_far):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            try:
                yield draft
                with lock.open("rb") as like:  # some libraries make files that only the owner can read
                    draft.chmod(os.fstat(like.fileno()).st_mode)
                os.replace(draft, path)
            finally:
                for left in (draft, lock):
                    with suppress(OSError):
                        left.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, so_far: str) -> Iterator[None]:
    """Raises DataError in place of the errors of the system and of libraries if a disk is full or not writable."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        full = error.errno in _UNWRITABLE if isinstance(error, OSError) else _WRITE_FAILED.search(str(error))
        if not full:
            raise
        raise DataError(
            f"{path} cannot be written ({error}): make room, or make its folder writable, and give the same command again; "
            f"{so_far}."
        ) from error


def sum_of(path: Path) -> str:
    """Returns the SHA-256 checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
