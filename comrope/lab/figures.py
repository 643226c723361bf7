"""The pictures of a comparison of encodings: one function a figure, from the results of `comrope demo` to a Figure.

Every encoding has one colour, marker and line, the same in all figures (`style`): the ComRoPE family is drawn thick,
relatives that commute as well thin, and what does not commute or does not rotate dashed or dotted. The colours are
Okabe and Ito's, which colour-blind readers can tell apart; the markers say the same again. Lines are named at their
right end rather than in a legend, with the last value beside the name.

Nothing here touches pyplot or its global state.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

INK, FAINT, GRID = "#22252a", "#6a6f78", "#dfe1e5"
WIDTH = 8.0  # inches; at the report's 800 px, text of 9 points is text of 12.5 px
_PLOT_HEIGHT = 3.02  # inches, of the line figures' axes
TEXT = 9.0  # points
_NO_SPECTRUM = {
    "none": "it turns nothing",
    "ape": "it adds a code to the tokens",
    "liere": "its matrices do not commute, so no planes are common to both axes",
}


@dataclass(frozen=True)
class Style:
    """How an encoding is written and drawn."""

    label: str
    colour: str = "#4d4d4d"
    marker: str = "o"
    dashes: str = "-"
    width: float = 1.2
    """Line width in points; the ComRoPE family has 2.4."""


_STYLES = {
    "none": Style("No encoding", "#8c8c8c", ".", ":"),
    "ape": Style("APE", "#6b4c2a", "x", "--"),
    "rope": Style("RoPE", "#56b4e9", "v"),
    "rope-mixed": Style("RoPE-Mixed", "#e69f00", "^"),
    "string": Style("STRING", "#cc79a7", "p"),
    "liere": Style("LieRE", "#000000", "X", "--"),
    "comrope-ap": Style("ComRoPE-AP", "#0072b2", "o", width=2.4),
    "comrope-ld": Style("ComRoPE-LD", "#d55e00", "s", width=2.4),
    "comrope-mt": Style("ComRoPE-MT", "#009e73", "D", width=2.4),
}


def style(encoding: str) -> Style:
    """The label, colour, marker and line of an encoding; a name that is not ours is drawn grey under that name."""
    return _STYLES.get(encoding, Style(encoding))


def accuracy_against_resolution(results: Mapping[str, Any]) -> Figure:
    """Test accuracy in % against the test images' size, one line an encoding (the paper's Figure 3).

    Square sizes lie on a logarithmic axis by their edge; as soon as one is not square, all are evenly spaced by area.
    """
    trained = tuple(results["settings"]["training_size"])
    sizes = sorted({_size(r) for run in results["runs"] for r in run["resolutions"]} | {trained}, key=_area_then_rows)
    square = all(rows == columns for rows, columns in sizes)
    place = {size: float(size[0] if square else i) for i, size in enumerate(sizes)}
    lines = []
    for run in results["runs"]:
        rows = sorted(run["resolutions"], key=lambda r: place[_size(r)])
        lines.append((run["encoding"], [place[_size(r)] for r in rows], [percent(r) for r in rows]))

    figure, axes = line_axes("Accuracy at other image sizes than the one trained on, without retraining")
    axes.set_xlabel(
        "edge of the square test images (pixels)" if square else "size of the test images (rows × columns, pixels)"
    )
    axes.set_ylabel("test accuracy (%)")
    if square:
        axes.set_xscale("log")
    ticks(axes, list(place.values()), [str(s[0]) if square else size_text(s) for s in sizes])
    note_at(axes, place[trained], "trained here")
    last = sizes[-1]
    draw_lines(axes, lines, "{:.1f}", f"% at {last[0] if square else size_text(last)}")
    return figure


def accuracy_against_offset(results: Mapping[str, Any]) -> Figure:
    """Test accuracy in % against the offset ρ in canvas widths, one line an encoding (the paper's Figure 5).

    ρ is the standard deviation of the one random shift that all positions of an image get (Eq. 12). The axis is linear
    up to the smallest offset and logarithmic beyond, if offsets span more than a factor of ten.
    """
    lines = []
    for run in results["runs"]:
        rows = sorted(run["offsets"], key=lambda r: r["offset"])
        lines.append((run["encoding"], [float(r["offset"]) for r in rows], [percent(r) for r in rows]))
    offsets = sorted({x for _, xs, _ in lines for x in xs})
    positive = [x for x in offsets if x > 0]

    figure, axes = line_axes("Accuracy when all positions of an image are shifted together")
    axes.set_xlabel("offset ρ: standard deviation of the shift (canvas widths)")
    axes.set_ylabel("test accuracy (%)")
    if positive and positive[-1] / positive[0] > 10:
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.6)
    ticks(axes, offsets, [f"{x:g}" for x in offsets])
    draw_lines(axes, lines, "{:.1f}", f"% at ρ = {offsets[-1]:g}" if offsets else "")
    return figure


def training(results: Mapping[str, Any]) -> Figure:
    """Training loss against the epoch, one line an encoding; logarithmic if losses span more than a factor of five."""
    lines = [
        (run["encoding"], [float(h["epoch"]) for h in run["history"]], [float(h["loss"]) for h in run["history"]])
        for run in results["runs"]
    ]
    losses = [y for _, _, ys in lines for y in ys if math.isfinite(y) and y > 0]
    figure, axes = line_axes("Training loss after each epoch")
    axes.set_xlabel("epoch (passes over the training images)")
    axes.set_ylabel("training loss (cross-entropy, nats)")
    if losses and max(losses) / min(losses) > 5:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(_loss_tick))
        axes.tick_params(axis="y", which="minor", labelsize=TEXT - 2, length=2)
    epochs = sorted({x for _, xs, _ in lines for x in xs})
    step = max(1, math.ceil(len(epochs) / 12))
    ticks(axes, epochs[step - 1 :: step], [f"{x:g}" for x in epochs[step - 1 :: step]])
    draw_lines(axes, lines, "{:.3f}", "at the end")
    return figure


def spectra(results: Mapping[str, Any]) -> Figure:
    """Frequencies (ω_row, ω_column) in radians per canvas, one dot a plane; a panel an encoding, a colour a layer.

    All panels share square limits, wide enough for 97 % of each panel's planes, unless that would be more than twice
    what the middle panel needs: one encoding with wild values must not shrink all others to a dot. A panel says how
    many of its planes lie outside.
    """
    planes = {run["encoding"]: frequency_planes(run) for run in results["runs"]}
    drawn = {name: layers for name, layers in planes.items() if layers is not None}
    absent = [name for name, layers in planes.items() if layers is None]

    columns, rows = min(3, max(1, len(drawn))), max(1, math.ceil(len(drawn) / 3))
    side, gap_x, gap_y, left, top, bottom = 1.9, 0.32, 0.42, 0.68, 0.78, 0.62
    notes = [f"{style(n).label}: {_NO_SPECTRUM.get(n, 'it gave no frequencies')}." for n in absent]
    bottom += 0.19 * len(notes) + (0.32 if notes else 0)
    height = top + rows * side + (rows - 1) * gap_y + bottom
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    _title(figure, "Frequencies of each plane of every head and layer", left)
    if notes:
        for i, note in enumerate(["No spectrum to draw", *notes]):
            y = (0.1 + 0.19 * (len(notes) - i)) / height
            weight = "normal" if i else "bold"
            _text(figure, left / WIDTH, y, note, size=TEXT - 0.5, color=FAINT, weight=weight)
    if not drawn:
        return figure

    limit = _robust_limit([np.concatenate(layers) for layers in drawn.values()])
    depth = max(len(layers) for layers in drawn.values())
    colours = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.88, depth)))
    norm = BoundaryNorm(np.arange(depth + 1) + 0.5, depth) if depth > 1 else BoundaryNorm([0.5, 1.5], 1)
    for i, (name, layers) in enumerate(drawn.items()):
        row, column = divmod(i, columns)
        x, y = left + column * (side + gap_x), bottom + (rows - 1 - row) * (side + gap_y)
        axes = figure.add_axes((x / WIDTH, y / height, side / WIDTH, side / height))
        points = np.concatenate(layers)  # (planes of all layers, 2)
        layer = np.repeat(np.arange(1, len(layers) + 1), [len(p) for p in layers])
        # Deep layers drawn last would hide the others: a fixed shuffle mixes them.
        order = np.random.default_rng(0).permutation(len(points))
        _panel(axes, name, limit, num_outside=int((np.abs(points) > limit).any(1).sum()))
        axes.scatter(*points[order].T, c=layer[order], cmap=colours, norm=norm, s=13, alpha=0.8, linewidths=0, zorder=3)
        axes.set_xlabel("ω row (rad per canvas)" if i + columns >= len(drawn) else "")
        axes.set_ylabel("ω column (rad per canvas)" if column == 0 else "")
        axes.tick_params(labelleft=column == 0, labelbottom=i + columns >= len(drawn))
    if depth > 1:
        x = left + columns * (side + gap_x) - 0.1
        bar = figure.add_axes((x / WIDTH, (height - top - side) / height, 0.13 / WIDTH, side / height))
        figure.colorbar(ScalarMappable(norm, colours), cax=bar, ticks=_layer_ticks(depth))
        bar.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        bar.tick_params(labelsize=TEXT - 1, length=0, colors=INK)
        bar.yaxis.set_minor_locator(NullLocator())
        bar.set_ylabel("layer (1 reads the image)", fontsize=TEXT - 0.5, color=INK)
        bar.set_frame_on(False)
    return figure


def percent(row: Mapping[str, Any]) -> float:
    """Accuracy in % of a row with `correct` and `total`; NaN of no images."""
    return 100 * row["correct"] / row["total"] if row["total"] else math.nan


def size_text(size: Sequence[int]) -> str:
    """Rows × columns, as in "24 × 32"."""
    return " × ".join(str(n) for n in size)


def frequency_planes(run: Mapping[str, Any]) -> list[np.ndarray] | None:
    """(planes, 2) a layer: ω_row and ω_column of every head, block and plane. None if nothing turns or commutes."""
    if not run["frequencies"]:
        return None
    layers = [np.asarray(layer, dtype=float).reshape(2, -1).T for layer in run["frequencies"]]
    return layers if any(points.any() for points in layers) else None


def _size(row: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(row["size"])


def _area_then_rows(size: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(size), size[0]


def line_axes(title: str) -> tuple[Figure, Axes]:
    """Axes with room on the right for the names of the lines."""
    height, left = 4.07, 0.68
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    axes = figure.add_axes((left / WIDTH, 0.5 / height, 5.35 / WIDTH, _PLOT_HEIGHT / height), facecolor="none")
    _title(figure, title, left)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=TEXT, colors=INK)
    axes.xaxis.label.set(fontsize=TEXT + 0.5, color=INK)
    axes.yaxis.label.set(fontsize=TEXT + 0.5, color=INK)
    return figure, axes


def _title(figure: Figure, title: str, left: float) -> None:
    height = figure.get_figheight()
    _text(figure, left / WIDTH, 1 - 0.28 / height, title, size=TEXT + 2.5, color=INK, weight="bold")


def _text(where: Figure | Axes, x: float, y: float, text: str, *, size: float, **keywords) -> None:
    """Text as it stands: names come from a file, and a dollar in them is no formula."""
    where.text(x, y, text, fontsize=size, parse_math=False, **keywords)


def ticks(axes: Axes, places: list[float], labels: list[str]) -> None:
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(places, labels)


def note_at(axes: Axes, x: float, note: str) -> None:
    axes.vlines(
        x, 0, 1, transform=axes.get_xaxis_transform(), color=FAINT, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1
    )
    _text(
        axes,
        x,
        1.015,
        note,
        size=TEXT - 1,
        color=FAINT,
        ha="center",
        va="bottom",
        transform=axes.get_xaxis_transform(),
    )


def draw_lines(axes: Axes, lines: list[tuple[str, list[float], list[float]]], value: str, values: str) -> None:
    """One line an encoding, thick ones on top, each named at its right end with its last finite value."""
    ends = []
    for order, (name, xs, ys) in enumerate(lines):
        look = style(name)
        axes.plot(
            xs,
            ys,
            label=name,
            color=look.colour,
            marker=look.marker,
            linestyle=look.dashes,
            linewidth=look.width,
            markersize=6.5 if look.width > 2 else 5.5,
            markeredgecolor=look.colour if look.marker in "x." else "white",
            markeredgewidth=1.4 if look.marker == "x" else 0.6,
            zorder=3 + look.width + order / 100,
        )
        finite = [y for y in ys if math.isfinite(y)]
        if finite:
            ends.append((finite[-1], look, value.format(finite[-1])))
    axes.margins(x=0.04, y=0.06)
    axes.autoscale_view()
    if not ends:
        return
    # Where the ends lie, in points above the axes' bottom; names keep a line's distance from one another.
    points = 72 * _PLOT_HEIGHT
    to_axes = axes.transData + axes.transAxes.inverted()
    x_last = axes.get_xlim()[1]
    wanted = [float(to_axes.transform((x_last, y))[1]) * points for y, _, _ in ends]
    placed = [y / points for y in _spread(wanted, gap=1.45 * TEXT, low=0.5 * TEXT, high=points - 0.5 * TEXT)]
    leaders = [[(1.0, true / points), (1.035, place)] for true, place in zip(wanted, placed, strict=True)]
    colours = [look.colour for _, look, _ in ends]
    axes.add_collection(
        LineCollection(leaders, colors=colours, linewidths=0.9, transform=axes.transAxes, clip_on=False), autolim=False
    )
    _text(axes, 1.36, 1.015, values, size=TEXT - 1, color=FAINT, transform=axes.transAxes, va="bottom", ha="right")
    for (_, look, shown), place in zip(ends, placed, strict=True):
        axes.scatter(
            [1.05],
            [place],
            s=38,
            marker=look.marker,
            color=look.colour,
            linewidths=1.4 if look.marker == "x" else 0,
            transform=axes.transAxes,
            clip_on=False,
        )
        weight = "bold" if look.width > 2 else "normal"
        keywords = {"color": INK, "weight": weight, "transform": axes.transAxes, "va": "center_baseline"}
        _text(axes, 1.07, place, look.label, size=TEXT, **keywords)
        _text(axes, 1.36, place, shown, size=TEXT, ha="right", **keywords)


def _spread(wanted: list[float], *, gap: float, low: float, high: float) -> list[float]:
    """The places nearest to the wanted ones (least squares) that are a gap apart, in their order, inside [low, high].

    With the i-th place lowered by i gaps, the condition is only that places do not decrease: pool adjacent violators.
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    pools: list[list[float]] = []
    for i, index in enumerate(order):
        pools.append([wanted[index] - i * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [float(np.mean(pool)) for pool in pools for _ in pool]
    places = [0.0] * len(wanted)
    for i, index in enumerate(order):
        places[index] = min(max(level[i], low), high - (len(wanted) - 1) * gap) + i * gap
    return places


def _loss_tick(value: float, _: int | None) -> str:
    """Names 2 and 5 of each decade alone: the nine minor ticks would run into one another."""
    leading = round(value / 10 ** math.floor(math.log10(value)), 6)
    return f"{value:g}" if leading in (2, 5) else ""


def _panel(axes: Axes, name: str, limit: float, num_outside: int) -> None:
    look = style(name)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", facecolor="none")
    axes.spines[:].set_color(GRID)
    axes.axhline(0, color=GRID, linewidth=0.8, zorder=1)
    axes.axvline(0, color=GRID, linewidth=0.8, zorder=1)
    axes.tick_params(labelsize=TEXT - 1, colors=INK, length=2.5, color=FAINT)
    axes.xaxis.label.set(fontsize=TEXT - 0.5, color=INK)
    axes.yaxis.label.set(fontsize=TEXT - 0.5, color=INK)
    axes.locator_params(nbins=5)
    axes.scatter([0.03], [1.065], s=34, marker=look.marker, color=look.colour, transform=axes.transAxes, clip_on=False)
    label = f"{look.label}, not learned" if name == "rope" else look.label
    weight = "bold" if look.width > 2 else "normal"
    keywords = {"color": INK, "transform": axes.transAxes}
    _text(axes, 0.08, 1.065, label, size=TEXT, weight=weight, va="center_baseline", **keywords)
    if num_outside:
        keywords["color"] = FAINT
        _text(axes, 0.98, 0.03, f"{num_outside} outside", size=TEXT - 1.5, ha="right", va="bottom", **keywords)


def _robust_limit(panels: list[np.ndarray]) -> float:
    """Half the side of all panels, by the rule that `spectra` states; everything is inside if that costs little."""
    sizes = [np.abs(points[np.isfinite(points).all(1)]).max(1) for points in panels]
    needs = [float(np.quantile(size, 0.97)) for size in sizes if len(size)] or [1.0]
    need = min(max(needs), 2 * float(np.median(needs))) or max(needs) or 1.0
    largest = max((float(size.max()) for size in sizes if len(size)), default=need)
    return 1.08 * (largest if largest < 1.3 * need else need)


def _layer_ticks(depth: int) -> list[int]:
    step = max(1, math.ceil(depth / 8))
    return list(range(1, depth + 1, step))
