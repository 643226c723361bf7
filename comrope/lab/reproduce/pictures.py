"""The figures of the recipes: lines, points, densities; `planes.py` has frequencies."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from comrope.lab import figures
from comrope.lab.statistics import Difference, Summary

_MAX_TICKS = 16
Curve = Sequence[tuple[float, Summary]]
"""Points (x, value over seeds)."""


def curves(
    title: str,
    lines: Mapping[str, Curve],
    *,
    x: str,
    y: str,
    scale: str = "linear",
    y_scale: str = "linear",
    names: Mapping[float, str] | None = None,
    marked: tuple[float, str] | None = None,
    value: str = "{:.1f}",
) -> Figure:
    """Draws a line for each encoding through means over seeds, in a band of one standard deviation to each side.

    Args:
        title: the title of the figure.
        lines: the points of each line, by encoding.
        x, y: labels of the axes.
        scale, y_scale: "linear" or "log".
        names: labels of ticks on the x axis in place of numbers, by coordinate.
        marked: a coordinate on the x axis, and a note there.
        value: the format of the last value of a line, which is written at its end.
    """
    figure, axes = figures.line_axes(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xscale(scale)
    axes.set_yscale(y_scale)
    if y_scale == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    ticks = sorted({point for line in lines.values() for point, _ in line})
    names = names or {tick: f"{tick:g}" for tick in ticks}
    step = max(1, math.ceil(len(ticks) / _MAX_TICKS))
    figures.ticks(axes, ticks[step - 1 :: step], [names[tick] for tick in ticks[step - 1 :: step]])
    if marked is not None:
        figures.note_at(axes, *marked)
    for name, line in lines.items():
        if any(s.deviation for _, s in line):
            low, high = ([s.mean + side * (s.deviation or 0) for _, s in line] for side in (-1, 1))
            axes.fill_between(
                [p for p, _ in line], low, high, color=figures.style(name).colour, alpha=0.13, linewidth=0
            )
    drawn = [(name, [p for p, _ in line], [s.mean for _, s in line]) for name, line in lines.items()]
    ends = {xs[-1] for _, xs, _ in drawn if xs}
    figures.draw_lines(axes, drawn, value, f"at {names[ends.pop()]}" if len(ends) == 1 else "where it ends")
    return figure


def scatter(title: str, points: Mapping[str, Sequence[tuple[Summary, Summary]]], *, x: str, y: str) -> Figure:
    """Draws a point for each condition, with bars of one standard deviation over seeds in x and y; x is logarithmic.

    Args:
        title: the title of the figure.
        points: (x, y) of each point, by encoding.
        x, y: labels of the axes.
    """
    figure = _titled(title, 4.4)
    axes = figure.subplots()
    for name, each in points.items():
        look = figures.style(name)
        (x_mean, x_bar), (y_mean, y_bar) = (
            ([s.mean for s in side], [s.deviation or 0 for s in side]) for side in zip(*each, strict=True)
        )
        drawn: dict[str, Any] = {"fmt": look.marker, "color": look.colour, "label": look.label}
        axes.errorbar(x_mean, y_mean, xerr=x_bar, yerr=y_bar, elinewidth=0.8, markersize=6.5, **drawn)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(x, fontsize=figures.TEXT)
    axes.set_ylabel(y, fontsize=figures.TEXT)
    _plain(axes)
    figure.legend(loc="outside lower center", ncols=6, fontsize=figures.TEXT, frameon=False)
    return figure


def gains(title: str, panels: Mapping[str, Sequence[tuple[str, str, Difference]]], *, x: str) -> Figure:
    """Draws a panel for each way, and in it differences with their intervals, one below the other.

    Args:
        title: the title of the figure.
        panels: (encoding, its name in the figure, difference) of each row, by the panel's heading.
        x: label of the horizontal axes.
    """
    names = list(dict.fromkeys(name for rows in panels.values() for _, name, _ in rows))
    figure = _titled(title, 1.3 + 0.24 * len(names))
    drawn = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (heading, rows) in zip(drawn, panels.items(), strict=True):
        axes.axvline(0, color=figures.FAINT, linewidth=0.8)
        for encoding, name, found in rows:
            look, height = figures.style(encoding), names.index(name)
            if found.low is not None and found.high is not None:
                axes.hlines(height, found.low, found.high, color=look.colour, linewidth=1.6)
            axes.plot([found.mean], [height], look.marker, color=look.colour, markersize=5.5)
        axes.set_title(heading, fontsize=figures.TEXT, color=figures.INK)
        _plain(axes)
    drawn[0].set_yticks(range(len(names)), names)
    drawn[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel(x, fontsize=figures.TEXT)
    return figure


def densities(title: str, panels: Mapping[str, Mapping[str, Sequence[dict[str, Any]]]]) -> Figure:
    """Draws the density of the angle matrices' elements: a column for each panel, with a linear and a logarithmic axis.

    Args:
        title: the title of the figure.
        panels: histograms by heading, then by encoding, each with `bound` and `counts` over [−bound, bound]. Those of
            an encoding are added.
    """
    columns = max(1, len(panels))
    figure = _titled(title, 5.2)
    drawn = figure.subplots(2, columns, squeeze=False, sharex=True)
    for column, (heading, histograms) in enumerate(panels.items()):
        for across, axes in zip(("linear", "log"), drawn[:, column], strict=True):
            for name, each in histograms.items():
                look = figures.style(name)
                line = {"color": look.colour, "linestyle": look.line, "linewidth": look.width, "label": look.label}
                axes.plot(*_density(each, hide_empty=across == "log"), **line)
            axes.set_yscale(across)
            _plain(axes)
        drawn[0, column].set_title(heading, fontsize=figures.TEXT, color=figures.INK)
        drawn[1, column].set_xlabel("element (rad per canvas)", fontsize=figures.TEXT)
    drawn[0, 0].set_ylabel("density", fontsize=figures.TEXT)
    drawn[1, 0].set_ylabel("density, logarithmic", fontsize=figures.TEXT)
    handles, labels = drawn[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=figures.TEXT, frameon=False)
    return figure


def _titled(title: str, height: float) -> Figure:
    figure = Figure(figsize=(figures.WIDTH, height), facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=figures.TEXT + 2.5, color=figures.INK, weight="bold", x=0.02, ha="left")
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=figures.GRID, linewidth=0.8)
    axes.tick_params(labelsize=figures.TEXT - 1, colors=figures.INK)


def _density(histograms: Sequence[dict[str, Any]], hide_empty: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns centres of bins and the density in each. Rice's rule gives the number of bins."""
    bound = max(h["bound"] for h in histograms)
    total = sum(sum(h["counts"]) for h in histograms)
    edges = np.linspace(-bound, bound, 2 + round(2 * total ** (1 / 3)))
    below = np.zeros(len(edges))  # elements below each edge, even within the bins that were recorded
    for h in histograms:
        recorded = np.linspace(-h["bound"], h["bound"], len(h["counts"]) + 1)
        below += np.interp(edges, recorded, np.concatenate(([0], np.cumsum(h["counts"]))))
    heights = np.diff(below) / total / np.diff(edges)
    return (edges[1:] + edges[:-1]) / 2, np.where(heights > 0, heights, math.nan) if hide_empty else heights
