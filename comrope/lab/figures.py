"""Code that all figures share: sizes and colours, axes with room for names, and lines named at their ends.

Every encoding has one colour, marker and line (`comrope.lab.styles`). The lines of the ComRoPE family are thick, those
of other commuting encodings thin, and those of encodings that do not commute or do not rotate dashed or dotted. Lines
are named at their right end rather than in a legend, with the last value beside the name.

Nothing here touches pyplot or its global state.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.optimize import isotonic_regression

from comrope.lab.styles import style as style

INK, FAINT, GRID = "#22252a", "#6a6f78", "#dfe1e5"
WIDTH = 8.0  # inches; at a page's 800 px, text of 9 points is text of 12.5 px
_PLOT_HEIGHT = 3.02  # inches, of the line figures' axes
TEXT = 9.0  # points


def percent(row: Mapping[str, Any]) -> float:
    """Returns the accuracy in % of a row with `correct` and `total`; NaN if there are no images."""
    return 100 * row["correct"] / row["total"] if row["total"] else math.nan


def line_axes(title: str) -> tuple[Figure, Axes]:
    """Returns a figure and its axes, with room on the right for the names of the lines."""
    height, left = 4.07, 0.68
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    axes = figure.add_axes((left / WIDTH, 0.5 / height, 5.35 / WIDTH, _PLOT_HEIGHT / height), facecolor="none")
    add_title(figure, title, left)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=TEXT, colors=INK)
    axes.xaxis.label.set(fontsize=TEXT + 0.5, color=INK)
    axes.yaxis.label.set(fontsize=TEXT + 0.5, color=INK)
    return figure, axes


def add_title(figure: Figure, title: str, left: float) -> None:
    """Writes the title above a figure, `left` inches from its edge."""
    height = figure.get_figheight()
    add_text(figure, left / WIDTH, 1 - 0.28 / height, title, size=TEXT + 2.5, color=INK, weight="bold")


def add_text(where: Figure | Axes, x: float, y: float, text: str, *, size: float, **keywords) -> None:
    """Writes text literally: names come from a file, and a dollar sign in them must not start a formula."""
    where.text(x, y, text, fontsize=size, parse_math=False, **keywords)


def ticks(axes: Axes, xs: list[float], labels: list[str]) -> None:
    """Labels the x axis at these coordinates and nowhere else."""
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(xs, labels)


def note_at(axes: Axes, x: float, note: str) -> None:
    """Draws a dotted line at x, with a note above it."""
    keywords = {"color": FAINT, "transform": axes.get_xaxis_transform()}
    axes.vlines(x, 0, 1, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1, **keywords)
    add_text(axes, x, 1.015, note, size=TEXT - 1, ha="center", va="bottom", **keywords)


def draw_lines(axes: Axes, lines: list[tuple[str, list[float], list[float]]], value: str, values: str) -> None:
    """Draws a line for each encoding, thick ones on top, each named at its right end with its last finite value."""
    ends = []
    for order, (name, xs, ys) in enumerate(lines):
        look = style(name)
        axes.plot(
            xs, ys, label=name, color=look.colour, marker=look.marker, linestyle=look.line, linewidth=look.width,
            markersize=6.5 if look.ours else 5.5, markeredgecolor=look.colour if look.marker in "x." else "white",
            markeredgewidth=1.4 if look.marker == "x" else 0.6, zorder=3 + look.width + order / 100,
        )  # fmt: skip
        finite = [y for y in ys if math.isfinite(y)]
        if finite:
            ends.append((finite[-1], look, value.format(finite[-1])))
    axes.margins(x=0.04, y=0.06)
    axes.autoscale_view()
    if not ends:
        return
    # The heights of the ends in points above the bottom of the axes; names must be a line apart.
    points = 72 * _PLOT_HEIGHT
    to_axes = axes.transData + axes.transAxes.inverted()
    x_last = axes.get_xlim()[1]
    wanted = [float(to_axes.transform((x_last, y))[1]) * points for y, _, _ in ends]
    placed = [y / points for y in _spread(wanted, gap=1.45 * TEXT, low=0.5 * TEXT, high=points - 0.5 * TEXT)]
    leaders = [[(1.0, true / points), (1.035, y)] for true, y in zip(wanted, placed, strict=True)]
    colours = [look.colour for _, look, _ in ends]
    axes.add_collection(
        LineCollection(leaders, colors=colours, linewidths=0.9, transform=axes.transAxes, clip_on=False), autolim=False
    )
    add_text(axes, 1.36, 1.015, values, size=TEXT - 1, color=FAINT, transform=axes.transAxes, va="bottom", ha="right")
    for (_, look, shown), y in zip(ends, placed, strict=True):
        axes.scatter(
            [1.05], [y], s=38, marker=look.marker, color=look.colour,
            linewidths=1.4 if look.marker == "x" else 0, transform=axes.transAxes, clip_on=False,
        )  # fmt: skip
        weight = "bold" if look.ours else "normal"
        keywords = {"color": INK, "weight": weight, "transform": axes.transAxes, "va": "center_baseline"}
        add_text(axes, 1.07, y, look.label, size=TEXT, **keywords)
        add_text(axes, 1.36, y, shown, size=TEXT, ha="right", **keywords)


def _spread(wanted: list[float], *, gap: float, low: float, high: float) -> list[float]:
    """Returns the heights nearest to the wanted ones (least squares) that are a gap apart, in their order, in [low, high].

    If the i-th height is lowered by i gaps, the only condition is that heights do not decrease: isotonic regression.
    """
    order = np.argsort(wanted, kind="stable")
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    gaps = gap * np.arange(len(wanted))
    level = isotonic_regression(np.array(wanted)[order] - gaps).x
    heights = np.empty(len(wanted))
    heights[order] = level.clip(low, high - gap * (len(wanted) - 1)) + gaps
    return heights.tolist()
