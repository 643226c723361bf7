"""Files and folders that are whole or not there at all. What a result's files hold is `comrope.lab.output`'s."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from comrope.errors import DataError

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
_BROKEN_OFF = re.compile("PytorchStreamWriter|os error|I/O error", re.IGNORECASE)
"""How torch and safetensors put it."""
DRAFT, LOCK = ".draft", "lock"
UNCHANGED = "what was there is as it was"
FILES = ("results.json", "tables.md", "report.html")
"""In every result."""


@contextmanager
def atomic_folder(folder: Path, patterns: Sequence[str] = ()) -> Iterator[Path]:
    """Yields a folder to write a result into, which replaces `folder` when all went well and vanishes otherwise.

    An earlier result there stays until the new one is whole. Ctrl-C counts as not well.

    Args:
        folder: of the result; made where it is missing.
        patterns: of the names that files of such a result may have beside FILES.
    Raises:
        DataError: `folder` is a file or below one, or holds other files, which a result would replace: nothing is touched.
    """
    folder = folder.resolve()
    refuse_file(folder)
    names = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    foreign = [name for name in names if not any(fnmatch(name, pattern) for pattern in (*FILES, *patterns))]
    if foreign:
        raise DataError(f"{folder} holds what is no result of comrope ({', '.join(foreign[:3])}): name another folder.")
    missing = [place for place in folder.parents if not place.exists()]
    with writing(folder, UNCHANGED):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*{DRAFT}"):
            _tidy(left, folder)
        partial, lock = _begin(folder)
    former, whole = partial / "former", partial / "whole"
    try:
        with writing(folder, UNCHANGED):
            whole.mkdir()
            yield whole
            try:
                _swap(whole, folder, former)
            except BaseException:
                if former.exists() and not folder.exists():
                    os.replace(former, folder)
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.release()
        for place in missing:
            with suppress(OSError):  # there is something in it
                place.rmdir()


def _begin(folder: Path) -> tuple[Path, FileLock]:
    """A new draft beside `folder`, and its lock, held: what nobody holds another process may take for a leftover."""
    while True:
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=DRAFT, dir=folder.parent))
        lock = FileLock(partial / LOCK)
        with suppress(FileNotFoundError):
            lock.acquire()
            if (partial / LOCK).exists():
                return partial, lock


def _swap(whole: Path, folder: Path, former: Path) -> None:
    """`whole` takes the place of `folder`, which becomes `former`, again and again while other processes do the same."""
    while True:
        shutil.rmtree(former, ignore_errors=True)  # a result that another process has replaced meanwhile
        with suppress(FileNotFoundError):
            os.replace(folder, former)
        try:
            return os.replace(whole, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def refuse_file(folder: Path) -> None:
    """DataError where `folder` cannot be one."""
    if any(place.exists() and not place.is_dir() for place in (folder, *folder.parents)):
        raise DataError(f"{folder} is a file, or below one: name a folder.")


def _tidy(left: Path, folder: Path) -> None:
    """Removes what a process left behind that was killed; what it had set aside comes back."""
    try:
        with FileLock(left / LOCK, timeout=0):  # its process would hold it
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
    """Writes `results` in one step: an earlier file stays until the new one is whole."""
    with atomic_file(path) as draft:
        draft.write_text(json.dumps(results, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def atomic_file(path: Path, so_far: str = UNCHANGED) -> Iterator[Path]:
    """Yields where to write a file, which replaces `path` when all went well and vanishes otherwise.

    The folder is made where it is missing. Waits for other processes that write the same file.

    Args:
        path: of the file. The draft has its suffix.
        so_far: of what is left where the disk is full, a clause for the message.
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
                with lock.open("rb") as like:  # some libraries make files that only their owner can read
                    draft.chmod(os.fstat(like.fileno()).st_mode)
                os.replace(draft, path)
            finally:
                for left in (draft, lock):
                    with suppress(OSError):
                        left.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, so_far: str) -> Iterator[None]:
    """Makes a DataError of what the system and the libraries raise where a disk is full, or may not be written to."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        full = error.errno in _UNWRITABLE if isinstance(error, OSError) else _BROKEN_OFF.search(str(error))
        if not full:
            raise
        raise DataError(
            f"{path} cannot be written ({error}): make room, or make its folder writable, and give the same command again; "
            f"{so_far}."
        ) from error


def sum_of(path: Path) -> str:
    """What tells the bytes of a file from all others."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
