"""Results on disk: whole, or not there at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comrope.errors import DataError
from comrope.lab import figures, report


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A folder to write a result into, which takes the place of `folder` when all went well and vanishes otherwise.

    An earlier result there stays until the new one is whole. Ctrl-C counts as not well.

    Raises:
        DataError: `folder` is a file, or holds something that is not a result: nothing of it is touched.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name a folder for the result.")
    if folder.exists() and any(folder.iterdir()) and not (folder / "results.json").exists():
        raise DataError(f"{folder} holds files that are no result of comrope: name another folder, or an empty one.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)
        former = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        if folder.exists():
            os.replace(folder, former)
        os.replace(partial, folder)
        shutil.rmtree(former)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read(path: Path) -> dict:
    """The results of a run, from its folder or its results.json.

    Raises:
        DataError: there are none, or the file is damaged.
    """
    path = path / "results.json" if path.is_dir() else path
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: `comrope demo` makes one.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged ({error}): run the command that made it again.") from None


def save(results: dict, folder: Path) -> None:
    """Writes results.json, report.html, and each figure as SVG and PNG into `folder`."""
    (folder / "results.json").write_text(json.dumps(results, allow_nan=False) + "\n", encoding="utf-8")
    report.write_report(results, folder / "report.html")
    for draw in (
        figures.accuracy_against_resolution,
        figures.accuracy_against_offset,
        figures.spectra,
        figures.training,
    ):
        figure = draw(results)
        for kind in ("svg", "png"):
            figure.savefig(folder / f"{draw.__name__}.{kind}", dpi=150, facecolor="white", bbox_inches="tight")
