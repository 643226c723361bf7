"""The page: its template, style, script and libraries in one HTML file that loads nothing else."""

import html
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from comrope.errors import ConfigurationError, DataError

LIBRARIES = ("d3", "plot.umd")
"""The files of `vendor`, in the order in which they run."""
SCRIPTS = ("data", "kernels", "words", "colours", "summary", "heads", "head", "spectrum", "reach", "attention", "start")
"""The files of `script`, which run one after the other in one function, whose names they share."""


def render(models: Sequence[dict[str, Any]]) -> str:
    """Returns the page about one or two models, each as `explore` returns it.

    Text of a user reaches the page in its title, escaped, and in its data, which the script shows as text.
    """
    if len({len(model["grid"]) for model in models}) > 1:
        raise ConfigurationError(
            f"{' and '.join(model['name'] for model in models)} have positions of {len(models[0]['grid'])} and "
            f"{len(models[1]['grid'])} axes: expected the same number of axes, to compare them."
        )
    title = " against ".join(model["name"] for model in models)
    data = json.dumps({"models": models}, allow_nan=False, separators=(",", ":"))
    return Template(_file("page.html")).substitute(
        title=html.escape(title),
        style=_file("page.css"),
        libraries="\n".join(f"<script>{_library(name)}</script>" for name in LIBRARIES),
        data=data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
        script=_script(),
    )


def _script() -> str:
    files = "\n".join(_file(f"script/{name}.js") for name in SCRIPTS)
    return f'"use strict";\n(async () => {{\n{files}}})();'


def _library(name: str) -> str:
    licence = _file(f"vendor/{name.partition('.')[0]}.LICENSE")
    return f"/*\n{licence}\n*/\n{_file(f'vendor/{name}.min.js')}"


def _file(name: str) -> str:
    return resources.files("comrope.explorer").joinpath(name).read_text("utf-8")


def check_path(path: Any) -> Path:
    """Returns the path of a file that can be written; DataError or ConfigurationError if it is none."""
    try:
        path = Path(path)
        is_folder = path.is_dir()
        above = next((parent for parent in path.absolute().parents if parent.exists()), path.absolute().parent)
    except (TypeError, ValueError, OSError) as error:
        raise ConfigurationError(f"path: got {path!r}, expected the name of a file ({error}).") from error
    if is_folder:
        raise DataError(f"{path} is a folder: name a file for the page, such as {path / 'show.html'}.")
    if above.exists() and not above.is_dir():
        raise DataError(f"{above} is a file, and {path} cannot lie in it: name another file for the page.")
    return path


def write(page: str, path: Path) -> Path:
    """Writes a page atomically and returns its path: an earlier file stays until the new one is complete."""
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=".", suffix=".html", delete=False
        ) as file:
            draft = file.name
            file.write(page)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(draft, 0o666 & ~mask)  # a temporary file can be read by its owner alone
        os.replace(draft, path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be written ({error}): name another file.") from error
    finally:
        if draft is not None:
            with suppress(FileNotFoundError):
                os.unlink(draft)
    return path
