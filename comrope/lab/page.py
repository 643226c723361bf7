"""One self-contained HTML page of a result: notes, figures, tables, and how to run it again.

`page.html` beside this file is the template of every page; a recipe with a longer page extends it by a template of its
own.
"""

import io
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from comrope.errors import DataError
from comrope.lab.results import atomic_file
from comrope.lab.styles import STYLES, style
from comrope.lab.table import Table

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_LABELLED = {known.label: known for known in STYLES.values()}


def render(
    found: Mapping[str, Any],
    tables: Sequence[Table],
    figures: Mapping[str, Figure],
    *,
    lead: str = "",
    about: str = "",
    template: str = "page.html",
) -> str:
    """Returns the page as text. It needs nothing else: no script, no network, no fonts.

    Args:
        found: the content of results.json, of which `title`, `notes`, `command`, `versions` and the encodings of `runs`
            are shown.
        tables, figures: in the order of the page.
        lead: what was done, in a sentence or two.
        about: text for the end of the page.
        template: file in this package that extends page.html.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: resources.files("comrope.lab").joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    encodings = dict.fromkeys(run["experiment"]["encoding"] for run in found.get("runs", ()))
    return environment.get_template(template).render(
        title=found["title"],
        notes=list(found["notes"]),
        command=found["command"],
        versions=dict(found["versions"]),
        lead=lead,
        about=about,
        encodings={name: style(name) for name in encodings},
        tables={table.name: _shown(table) for table in tables},
        figures={name: inline(figure, name) for name, figure in figures.items()},
    )


def write(page: str, path: Path) -> None:
    """Writes a page atomically: an earlier file stays until the new one is complete. A missing folder is made.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder: name a file for the page, such as {path / 'report.html'}.")
    above = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if above is not None and not above.is_dir():
        raise DataError(f"{above} is a file, and {path} cannot lie in it: name another file for the page.")
    try:
        with atomic_file(path) as draft:
            draft.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error}): name another file.") from error


def _shown(table: Table) -> dict[str, Any]:
    """Returns the table as the template reads it: each cell's text, whether to mark it, and the style of what it names."""
    rows = [
        [
            {"text": text, "best": best, "style": _LABELLED.get(text) if i == 0 else None}
            for i, (text, best) in enumerate(zip(texts, marks, strict=True))
        ]
        for texts, marks in zip(table.printed(), table.marks(), strict=True)
    ]
    return {"name": table.name, "title": table.title, "columns": table.columns, "rows": rows}


def inline(figure: Figure, name: str) -> Markup:
    """Returns the figure as an <svg> element for a page: text as text, ids of its own, no style that leaks, no metadata."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{_XLINK}}}href" and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, re.sub(r"url\(#", f"url(#{name}-", value))
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", figure.texts[0].get_text() if figure.texts else name)
    return Markup(ElementTree.tostring(root, encoding="unicode"))
