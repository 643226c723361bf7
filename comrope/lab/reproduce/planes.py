"""Frequencies of planes: reads them from a run's result, and draws them as dots."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

import comrope
from comrope.encodings import Encoding
from comrope.lab.figures import FAINT, GRID, INK, TEXT, WIDTH, add_text, add_title, style
from comrope.lab.images.config import ImageConfig
from comrope.lab.reproduce.scales import Scale

Frequencies = Sequence[Any] | None
"""[layer][axis][head][block][plane] in radians per canvas; None if an encoding has no frequencies."""
ALIGNED = 10.0
"""Degrees from an axis within which a plane counts as aligned with it."""


def speeds(planes: np.ndarray) -> tuple[float, ...]:
    """Returns median, 95 % quantile and largest |ω| of planes (n, 2), and the share in % near an axis."""
    size = np.hypot(*planes.T)
    angle = np.degrees(np.arctan2(*np.sort(np.abs(planes), axis=1).T))  # from the nearer axis, 0 … 45
    near = 100 * float((angle <= ALIGNED).mean())
    return float(np.median(size)), float(np.quantile(size, 0.95)), float(size.max()), near


def all_planes(scale: Scale, result: dict[str, Any]) -> np.ndarray:
    """Returns (planes, 2) of all layers after training; RoPE's, which a run does not write down, are those of its settings."""
    layers = result["frequencies"]
    if not layers:
        config = ImageConfig.from_json(result["experiment"])
        layers = [built(scale, config.encoding, config.settings).spectrum().frequencies.tolist()]
    return np.concatenate([np.asarray(layer, dtype=float).reshape(2, -1).T for layer in layers])


def built(scale: Scale, encoding: str, settings: dict[str, Any]) -> Encoding:
    """Returns an encoding as the scale's model has it in a layer; raises ConfigurationError for settings it does not hold."""
    sizes = {"num_heads": scale.num_heads, "head_dim": scale.head_dim, "num_axes": 2}
    return comrope.encoding(encoding, **sizes, **settings)  # pyright: ignore[reportReturnType]


def draw_planes(frequencies: Mapping[str, Frequencies]) -> Figure:
    """Draws (ω_row, ω_column) in radians per canvas, one dot a plane; a panel for each encoding, a colour for each layer.

    All panels have the same limits, wide enough for 97 % of each panel's planes, but at most twice what the median
    panel needs: one encoding with extreme values must not shrink all others to a dot. A panel shows the number of
    planes outside.
    """
    planes = {name: planes_of(each) for name, each in frequencies.items()}
    drawn = {name: layers for name, layers in planes.items() if layers is not None}
    absent = [name for name, layers in planes.items() if layers is None]

    columns, rows = min(3, max(1, len(drawn))), max(1, math.ceil(len(drawn) / 3))
    side, gap_x, gap_y, left, top, bottom = 1.9, 0.32, 0.42, 0.68, 0.78, 0.62
    notes = [f"{style(n).label}: {style(n).no_planes}." for n in absent]
    bottom += 0.19 * len(notes) + (0.32 if notes else 0)
    height = top + rows * side + (rows - 1) * gap_y + bottom
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    add_title(figure, "Frequencies of each plane of every head and layer", left)
    for i, note in enumerate(["No spectrum to draw", *notes] if notes else ()):
        y = (0.1 + 0.19 * (len(notes) - i)) / height
        weight = "normal" if i else "bold"
        add_text(figure, left / WIDTH, y, note, size=TEXT - 0.5, color=FAINT, weight=weight)
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


def planes_of(frequencies: Frequencies) -> list[np.ndarray] | None:
    """Returns (planes, 2) for each layer: ω_row and ω_column of every head, block and plane; None where all are zero."""
    layers = [np.asarray(layer, dtype=float).reshape(2, -1).T for layer in frequencies or ()]
    return layers if any(points.any() for points in layers) else None


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
    weight = "bold" if look.ours else "normal"
    keywords = {"color": INK, "transform": axes.transAxes}
    add_text(axes, 0.08, 1.065, look.label, size=TEXT, weight=weight, va="center_baseline", **keywords)
    if num_outside:
        keywords["color"] = FAINT
        add_text(axes, 0.98, 0.03, f"{num_outside} outside", size=TEXT - 1.5, ha="right", va="bottom", **keywords)


def _robust_limit(panels: list[np.ndarray]) -> float:
    """Returns half the side of all panels, by the rule of `draw_planes`; all planes are inside if that adds little."""
    sizes = [np.abs(points[np.isfinite(points).all(1)]).max(1) for points in panels]
    needs = [float(np.quantile(size, 0.97)) for size in sizes if len(size)] or [1.0]
    need = min(max(needs), 2 * float(np.median(needs))) or max(needs) or 1.0
    largest = max((float(size.max()) for size in sizes if len(size)), default=need)
    return 1.08 * (largest if largest < 1.3 * need else need)


def _layer_ticks(depth: int) -> list[int]:
    step = max(1, math.ceil(depth / 8))
    return list(range(1, depth + 1, step))
