"""One self-contained HTML page of a comparison of encodings: pictures, tables, and what to look for in them.

`write_report` is the whole of it. The prose is in report.html beside this file; here every number in it is worked out.
"""

import base64
import io
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.image import imsave

from comrope.errors import DataError
from comrope.lab import figures

_ABOUT = {
    "none": "no positions at all: the model sees a bag of patches and cannot know where any of them was",
    "ape": "absolute position encoding: a learned vector for each place is added to the token, sampled in between",
    "rope": "rotary encoding: each pair of channels is turned by row or column times a fixed frequency",
    "rope-mixed": "RoPE with learned frequencies for both axes in every pair of channels",
    "string": "Cayley-STRING: the same in a learned basis, common to a whole head",
    "liere": "learned rotations, one free matrix an axis, which do not commute",
    "comrope-ap": "axial partition: learned rotations, each block serving one axis",
    "comrope-ld": "linearly dependent: learned rotations, all axes of a block sharing one matrix, scaled",
    "comrope-mt": "maximal torus: a free basis and free frequencies, every family that commutes",
}
_NBSP = "\N{NO-BREAK SPACE}"
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_COUNTS = dict(
    enumerate(
        ["One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve"], start=1
    )
)
_Z = 1.959964  # of the normal distribution, for 95 %


def write_report(results: Mapping[str, Any], path: Path) -> None:
    """Writes the results of `comrope demo` as one HTML file that needs nothing else: no script, no network, no fonts.

    The page is complete before the file is touched, and replaces it in one step, so that a failure leaves an earlier
    report as it was.

    Args:
        results: what the demo writes as results.json. `samples` may be added to it, pictures to show: a list of
            {"caption": str, "image": rows of grey values, or of [red, green, blue], in [0, 1]}.
        path: the file to write; its folder is made where it is missing.
    Raises:
        DataError: a part of the results is missing, or the file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder: name a file for the report, such as {path / 'report.html'}.")
    above = next((place for place in path.absolute().parents if place.exists()), None)
    if above is not None and not above.is_dir():
        raise DataError(f"{above} is a file, and {path} cannot lie in it: name another file for the report.")
    page = render(results)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(page, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error}): name another file, or make room.") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def render(results: Mapping[str, Any]) -> str:
    """The page as text. Raises DataError where a part of the results is missing."""
    if not results.get("runs"):
        raise DataError(
            "results: got no runs, expected one for each encoding under 'runs', as `comrope demo` writes them."
        )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(resources.files("comrope.lab").joinpath("report.html").read_text("utf-8"))
    try:
        return template.render(_context(results))
    except (KeyError, jinja2.UndefinedError) as error:
        raise DataError(
            f"results: {error} is missing or incomplete. Expected what `comrope demo` writes to results.json."
        ) from error
    except DataError:
        raise
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise DataError(
            f"results: some part is of another kind ({error}). Expected what `comrope demo` writes to results.json."
        ) from error


def half_width(correct: float, total: int) -> float:
    """Half the width in percentage points of the 95 % interval of an accuracy on `total` images (Wilson's).

    >>> round(half_width(225, 450), 1), round(half_width(441, 450), 1)
    (4.6, 1.4)
    """
    p = correct / total
    return 100 * _Z / (1 + _Z**2 / total) * math.sqrt(p * (1 - p) / total + (_Z / (2 * total)) ** 2)


def _context(results: Mapping[str, Any]) -> dict[str, Any]:
    settings, runs, timing = results["settings"], results["runs"], results["timing"]
    labels = {run["encoding"]: figures.style(run["encoding"]) for run in runs}
    total = settings["num_test"]
    trained = [_at(run["resolutions"], "size", settings["training_size"]) for run in runs]
    typical = statistics.median_high([figures.percent(row) for row in trained if row and row["total"]] or [50.0])
    return {
        "settings": settings,
        "command": results["command"],
        "versions": results["versions"],
        "timing": timing,
        "looks": labels,
        "count": _COUNTS.get(len(runs), str(len(runs))),
        "encodings": [run["encoding"] for run in runs],
        "about": _ABOUT,
        "size": figures.size_text(settings["training_size"]).replace(" ", _NBSP),
        "parameters": _range([run["num_parameters"] for run in runs]),
        "table": _main_table(settings["training_size"], runs),
        "checks": [_check_row(run) for run in runs],
        "found": _findings(settings["training_size"], runs),
        "typical": typical,
        "typical_half_width": half_width(typical / 100 * total, total),
        "worst_half_width": half_width(total / 2, total),
        "figures": {
            "resolution": inline(
                figures.accuracy_against_resolution(results), "resolution", "Accuracy against image size"
            ),
            "offset": inline(figures.accuracy_against_offset(results), "offset", "Accuracy against offset"),
            "spectra": inline(figures.spectra(results), "spectra", "Learned frequencies of each encoding"),
            "training": inline(figures.training(results), "training", "Training loss against epoch"),
        },
        "samples": [{"caption": s["caption"], "source": _png(s["image"])} for s in results.get("samples", [])],
    }


def _main_table(training_size: Sequence[int], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Heads and rows of text, the best of each column (all of them, where several are equal) marked."""
    sizes = sorted({tuple(r["size"]) for run in runs for r in run["resolutions"]}, key=lambda s: (math.prod(s), s))
    sizes.sort(key=lambda size: size != tuple(training_size))  # the trained one first, the others by area
    offsets = sorted({r["offset"] for run in runs for r in run["offsets"]})
    decimals = 1 if all(r["total"] < 1000 for run in runs for r in run["resolutions"] + run["offsets"]) else 2
    columns = [[_share(_at(run["resolutions"], "size", size)) for run in runs] for size in sizes]
    columns += [[_share(_at(run["offsets"], "offset", offset)) for run in runs] for offset in offsets]
    changed = [_at(run["offsets"], "offset", offsets[-1]) for run in runs] if offsets else [None] * len(runs)
    counts = [
        [None if row is None else row["changed"] for row in changed],
        [run["num_encoding_parameters"] for run in runs],
    ]
    cells = [_marked(c, max, lambda v: f"{100 * float(v):.{decimals}f}") for c in columns]
    cells += [_marked(c, min, lambda v: f"{v:,}") for c in counts]
    square = all(rows == columns for rows, columns in sizes)
    return {
        "square": square,
        "sizes": [
            {"text": str(s[0]) if square else figures.size_text(s), "trained": s == tuple(training_size)} for s in sizes
        ],
        "offsets": [f"{offset:g}" for offset in offsets],
        "rows": list(zip([run["encoding"] for run in runs], zip(*cells, strict=True), strict=True)),
    }


def _marked(column: list[Any], best, text) -> list[dict[str, Any]]:
    known = [value for value in column if value is not None]
    first = best(known) if known else None
    return [{"text": "–" if v is None else text(v), "best": v is not None and v == first} for v in column]


def _at(rows: Sequence[Mapping[str, Any]], key: str, wanted: Any) -> Mapping[str, Any] | None:
    wanted = tuple(wanted) if key == "size" else wanted
    return next((row for row in rows if (tuple(row[key]) if key == "size" else row[key]) == wanted), None)


def _share(row: Mapping[str, Any] | None) -> Fraction | None:
    """Exact, so that equal accuracies compare equal whatever the number of images."""
    return Fraction(row["correct"], row["total"]) if row and row["total"] else None


def _check_row(run: Mapping[str, Any]) -> dict[str, Any]:
    """The largest of each measure over an encoding's layers, and whether the law holds in all of them."""
    layers = run["check"]
    measures = ("commutator", "equation", "offset_drift")
    worst = [_scientific(max(layer[measure] for layer in layers)) for measure in measures] if layers else []
    holds = all(layer["holds"] for layer in layers) if layers else None
    return {"encoding": run["encoding"], "num_layers": len(layers), "worst": worst, "holds": holds}


def _scientific(value: float) -> str:
    """Two digits, as people write them: 0, 0.47, 3.1 × 10⁻¹⁵."""
    if value == 0 or value >= 1e-3 or not math.isfinite(value):
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _findings(training_size: Sequence[int], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the data say, in the words of the text: nothing here presumes how an experiment should have come out."""

    def at_size(size: Sequence[int]) -> list[tuple[float, str]]:
        rows = [(run["encoding"], _at(run["resolutions"], "size", size)) for run in runs]
        return sorted((figures.percent(row), figures.style(name).label) for name, row in rows if row and row["total"])

    sizes = sorted({tuple(r["size"]) for run in runs for r in run["resolutions"]}, key=math.prod)
    ends = [size for size in dict.fromkeys((sizes[0], sizes[-1])) if size != tuple(training_size)] if sizes else []
    offsets = sorted({row["offset"] for run in runs for row in run["offsets"]})
    moved = []
    for run in runs:
        still, far = (
            (_at(run["offsets"], "offset", offset) for offset in (offsets[0], offsets[-1])) if offsets else (None, None)
        )
        if still and far and still["total"] and far["total"]:
            moved.append(
                {
                    "label": figures.style(run["encoding"]).label,
                    "holds": bool(run["check"]) and all(layer["holds"] for layer in run["check"]),
                    "drop": figures.percent(still) - figures.percent(far),
                    "changed": far["changed"],
                }
            )
    lawful, others = ([m for m in moved if m["holds"] is holds] for holds in (True, False))
    return {
        "trained": at_size(training_size),
        "ends": [
            {"size": figures.size_text(s).replace(" ", _NBSP), "ranking": ranks} for s in ends if (ranks := at_size(s))
        ],
        "largest_offset": f"{offsets[-1]:g}" if offsets else None,
        "lawful": lawful,
        "lawful_changed": max((m["changed"] for m in lawful), default=0),
        "others": sorted(others, key=lambda m: -m["drop"]),
    }


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def inline(figure: Figure, name: str, title: str) -> Markup:
    """The figure as an <svg> element for a page: text as text, ids of its own, no style that leaks, no metadata."""
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
    root.set("aria-label", title)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _png(image: Sequence[Any]) -> str:
    """A picture of grey or coloured values in [0, 1] as a data URL."""
    pixels = np.clip(np.asarray(image, dtype=float), 0, 1)
    if pixels.ndim == 2:
        pixels = pixels[..., None].repeat(3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError(
            f"samples: got an image of shape {pixels.shape}, expected (rows, columns) or (rows, columns, 3)."
        )
    file = io.BytesIO()
    imsave(file, pixels, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
