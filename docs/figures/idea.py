"""Draws the figures of docs/idea.md into this folder: `python docs/figures/idea.py`."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

BLUE, RED, GREY, GREEN = "#3b5bdb", "#e8590c", "#868e96", "#2f9e44"


def turned(angle: float | np.ndarray) -> np.ndarray:
    """Returns a unit vector of the plane at an angle in radians."""
    return np.array([np.cos(angle), np.sin(angle)])


def arrow(axes: Axes, start, end, colour: str, label: str = "", style: str = "-|>", shift=(0.0, 0.0)) -> None:
    axes.annotate(
        "", xy=end, xytext=start, arrowprops={"arrowstyle": style, "color": colour, "lw": 2, "shrinkA": 0, "shrinkB": 0}
    )
    x, y = 1.16 * np.asarray(end) + shift
    axes.text(x, y, label, color=colour, ha="center", va="center")


def planes() -> plt.Figure:
    """A query and a key in one plane at two pairs of positions with the same difference: the angle between them stays."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.6))
    speed, query, key = 0.7, 0.2, 0.5  # radians per unit, and where q and k point at position 0
    for axes, (x, y) in zip(panels, ((0.0, 1.0), (2.0, 3.0)), strict=True):
        axes.add_patch(plt.Circle((0, 0), 1, fill=False, color=GREY, lw=1))
        ends = {"q": (query + speed * x, BLUE, f"R({x:g}) q"), "k": (key + speed * y, RED, f"R({y:g}) k")}
        for angle, colour, label in ends.values():
            arrow(axes, (0, 0), turned(angle), colour, label, shift=0.14 * turned(angle))
        between = np.linspace(ends["q"][0], ends["k"][0], 50)
        axes.plot(*(0.45 * turned(between)), color=GREEN, lw=2)
        middle = 0.62 * turned(between.mean())
        axes.text(*middle, f"{between[-1] - between[0]:.1f} rad", color=GREEN, ha="center", va="center")
        axes.set_title(f"query at {x:g}, key at {y:g}", fontsize=11)
        axes.set(xlim=(-1.5, 1.5), ylim=(-1.1, 1.4), aspect="equal")
        axes.axis("off")
    return figure


def rotation_about(axis, angle: float) -> np.ndarray:
    """Returns the rotation of space about an axis, exp of a skew-symmetric 3 × 3 matrix (Rodrigues)."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


def commuting() -> plt.Figure:
    """A vector rotated along the first axis and then the second, and in the other order: with matrices that commute or not."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 4.2))
    look = rotation_about((1, 0, 0), -1.1) @ rotation_about((0, 0, 1), 0.5)  # where the sphere is seen from
    start = np.array([-0.55, -0.9, 0.1])
    start /= np.linalg.norm(start)
    cases = {"A₁ and A₂ commute": ((0, 0, 1), (0, 0, 1)), "A₁ and A₂ do not commute": ((0, 0, 1), (1.0, -0.3, 0))}
    for axes, (title, (first, second)) in zip(panels, cases.items(), strict=True):
        axes.add_patch(plt.Circle((0, 0), 1, fill=False, color=GREY, lw=1))
        for height in (-0.5, 0.0, 0.5):
            circle = np.linspace(0, 2 * np.pi, 100)
            radius = np.sqrt(1 - height**2)
            points = np.stack((radius * np.cos(circle), radius * np.sin(circle), np.full(100, height)))
            axes.plot(*(look @ points)[:2], color=GREY, lw=0.5, alpha=0.6)
        orders = {"x₁ first": ((first, 1.0), (second, 0.7), BLUE), "x₂ first": ((second, 0.7), (first, 1.0), RED)}
        for number, (label, (one, two, colour)) in enumerate(orders.items()):
            path = [rotation_about(one[0], t * one[1]) @ start for t in np.linspace(0, 1, 40)]
            path += [rotation_about(two[0], t * two[1]) @ path[39] for t in np.linspace(0, 1, 40)]
            seen = np.array([look @ point for point in path])[:, :2]
            seen *= 1 + 0.03 * number  # beside one another where they are the same
            axes.plot(*seen.T, color=colour, lw=2, label=label)
            axes.plot(*seen[39], "o", color=colour, ms=4)
            axes.plot(*seen[-1], "s", color=colour, ms=8)
        axes.plot(*(look @ start)[:2], "o", color="black", ms=7)
        axes.set_title(title, fontsize=11)
        axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
        axes.axis("off")
        axes.legend(loc="lower left", frameon=False, fontsize=9)
    return figure


def folding() -> plt.Figure:
    """The path of a token to its rotated query, as it is defined, as it is computed, and folded."""
    figure, axes = plt.subplots(figsize=(8, 3.2))
    rows = {
        "defined": (("W", BLUE), ("Qᵀ", RED), ("Rot(ωᵀx)", GREEN), ("Q", RED)),
        "computed": (("W", BLUE), ("Qᵀ", RED), ("Rot(ωᵀx)", GREEN)),
        "folded": (("QᵀW", BLUE), ("Rot(ωᵀx)", GREEN)),
    }
    for row, (name, boxes) in enumerate(rows.items()):
        height = -1.3 * row
        axes.text(-1.6, height, name, ha="right", va="center", fontsize=11)
        axes.text(-0.9, height, "token", ha="center", va="center")
        left = -0.45
        for text, colour in boxes:
            width = 0.55 + 0.14 * len(text)
            axes.annotate("", (left + 0.35, height), (left, height), arrowprops={"arrowstyle": "-|>", "color": GREY})
            axes.add_patch(plt.Rectangle((left + 0.35, height - 0.38), width, 0.76, color=colour, alpha=0.2))
            axes.text(left + 0.35 + width / 2, height, text, ha="center", va="center", fontsize=12, color=colour)
            left += 0.35 + width
        axes.annotate("", (left + 0.35, height), (left, height), arrowprops={"arrowstyle": "-|>", "color": GREY})
        axes.text(left + 0.45, height, "to the score", va="center")
    axes.set(xlim=(-3, 6.4), ylim=(-3.2, 0.6))
    axes.axis("off")
    return figure


def gaps() -> plt.Figure:
    """What the derivative multiplies by when two frequencies approach: 1/gap for eigenvectors, a bounded average for exp."""
    figure, axes = plt.subplots(figsize=(7, 3.2))
    gap = np.linspace(-8, 8, 801)
    gap = gap[np.abs(gap) > 1e-9]
    axes.plot(
        gap, np.where(np.abs(gap) > 0.02, np.abs(1 / gap), np.nan), color=RED, lw=2, label="derivative of eigenvectors"
    )
    axes.plot(gap, np.abs(np.sinc(gap / 2 / np.pi)), color=BLUE, lw=2, label="derivative of the rotation")
    axes.set(ylim=(0, 4), xlabel="gap λ_a − λ_b, at τ = 1", xlim=(-8, 8))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


FIGURES = {"planes": planes, "commuting": commuting, "folding": folding, "gaps": gaps}


def draw(folder: Path) -> None:
    """Writes each figure as SVG, the same bytes each time."""
    with plt.rc_context({"svg.hashsalt": "comrope", "font.size": 10, "figure.constrained_layout.use": True}):
        for name, make in FIGURES.items():
            figure = make()
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
