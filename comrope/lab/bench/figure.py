"""The figure of the bench: time of each implementation relative to plain RoPE, and time against the number of tokens."""

from matplotlib.figure import Figure

from comrope.lab.bench.opponents import BASELINE, SHAPES
from comrope.lab.figures import FAINT, GRID, INK
from comrope.lab.styles import style


def figure(found: dict) -> Figure:
    """Draws, left, ratios with quartiles at ViT-B/16, and, right, milliseconds against tokens on one axis."""
    drawn = Figure(figsize=(11, 6), layout="constrained")
    left, right = drawn.subplots(1, 2, width_ratios=(3, 2))
    rows = [r for r in found["rotations"] if r["shape"] == SHAPES[0].name and r["mode"] == "forward + backward"]
    rows.sort(key=lambda r: -r["ratio"][1])
    for y, row in enumerate(rows):
        low, middle, high = row["ratio"]
        colour = style("comrope-ld").colour if "ours" in row["opponent"] else FAINT
        left.barh(y, middle, color=colour, height=0.7)
        left.plot([low, high], [y, y], color=INK, linewidth=1)
        left.annotate(f"{middle:.3g}", (high, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
    left.set_yticks(range(len(rows)), [r["opponent"] for r in rows], fontsize=8)
    left.set_xscale("log")
    left.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    left.set_xlabel(
        f"time, forward and backward, in units of “{BASELINE}”\n{SHAPES[0].name}, {found['threads']} threads"
    )
    for name, colour in (
        (BASELINE, FAINT),
        ("RoPE, ours", style("rope").colour),
        ("LD, ours", style("comrope-ld").colour),
        ("MT, ours", style("comrope-mt").colour),
    ):
        points = [
            (shape.num_tokens, 1e3 * r["seconds"][1])
            for shape in SHAPES
            if shape.num_axes == 1
            for r in found["rotations"]
            if (r["shape"], r["mode"], r["opponent"]) == (shape.name, "forward + backward", name)
        ]
        if points:
            right.loglog(*zip(*points, strict=True), "o-", color=colour, label=name)
    right.set_xlabel("tokens (8 heads of 128)")
    right.set_ylabel("ms, forward and backward")
    if right.lines:
        right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return drawn
