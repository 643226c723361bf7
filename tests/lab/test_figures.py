"""The demo's figures, on made-up results."""

import numpy as np
import pytest

from comrope.lab import figures, report
from tests.lab.helpers import ENCODINGS, LABELS

DRAWN = [name for name in ENCODINGS if name not in ("none", "ape", "liere")]


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (
            figures.accuracy_against_resolution,
            lambda run: sorted((r["size"][0], 100 * r["correct"] / r["total"]) for r in run["resolutions"]),
        ),
        (
            figures.accuracy_against_offset,
            lambda run: [(r["offset"], 100 * r["correct"] / r["total"]) for r in run["offsets"]],
        ),
        (figures.training, lambda run: [(h["epoch"], h["loss"]) for h in run["history"]]),
    ],
)
def test_lines_carry_the_results(results, draw, expected):
    (axes,) = draw(results).axes
    assert [line.get_label() for line in axes.lines] == ENCODINGS
    for line, run in zip(axes.lines, results["runs"], strict=True):
        np.testing.assert_allclose(line.get_xydata(), expected(run))
        assert line.get_color() == figures.style(run["encoding"]).colour
    names = [text.get_text() for text in axes.texts]
    assert set(LABELS) <= set(names)
    assert axes.get_xlabel() and axes.get_ylabel()


def test_names_at_the_lines_ends_do_not_overlap(results):
    figure = figures.accuracy_against_offset(results)
    (axes,) = figure.axes
    heights = sorted(text.get_position()[1] for text in axes.texts if text.get_text() in LABELS)
    points = axes.get_position().height * figure.get_figheight() * 72
    assert np.diff(heights).min() * points > 12
    assert heights[0] >= 0 and heights[-1] <= 1


def test_sizes_that_are_not_square_are_evenly_spaced(results):
    for run in results["runs"]:
        run["resolutions"].append({"size": [16, 64], "correct": 300, "total": 450})
    (axes,) = figures.accuracy_against_resolution(results).axes
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "24 × 24",
        "28 × 28",
        "16 × 64",
        "32 × 32",
        "40 × 40",
        "48 × 48",
    ]
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.asarray(axes.lines[0].get_ydata())[2] == pytest.approx(100 * 300 / 450)


def test_a_diverged_run_leaves_the_others_drawn(results):
    for entry in results["runs"][3]["history"]:
        entry["loss"] = float("nan")
    (axes,) = figures.training(results).axes
    assert len(axes.lines) == len(ENCODINGS)
    assert "RoPE-Mixed" not in [text.get_text() for text in axes.texts]
    assert "RoPE-Mixed" in report.render(results)


def test_spectra_show_every_plane_of_every_layer(results):
    results["runs"][4]["frequencies"][0][0][0][0][0] = 1e4  # a wild one must not shrink the others' panels
    figure = figures.spectra(results)
    panels = figure.axes[: len(DRAWN)]
    runs = {run["encoding"]: run for run in results["runs"]}
    limits = {panel.get_xlim() + panel.get_ylim() for panel in panels}
    assert len(limits) == 1 and max(limits.pop()) < 40
    for name, panel in zip(DRAWN, panels, strict=True):
        scatter = panel.collections[-1]
        found = sorted(
            zip(np.asarray(scatter.get_array()).tolist(), *np.asarray(scatter.get_offsets()).T.tolist(), strict=True)
        )
        layers = np.array(runs[name]["frequencies"]).reshape(2, 2, -1)
        assert found == sorted((i + 1, r, c) for i in range(2) for r, c in layers[i].T.tolist())
        assert figures.style(name).label in panel.texts[0].get_text()
    assert "outside" in panels[DRAWN.index("string")].texts[-1].get_text()
    notes = " ".join(text.get_text() for text in figure.texts)
    assert all(label in notes for label in ("No encoding", "APE", "LieRE")) and "MT" not in notes


def test_figures_without_any_spectrum_and_of_one_layer(results):
    assert figures.spectra(results | {"runs": results["runs"][:2]}).axes == []
    for run in results["runs"]:
        run["frequencies"] = run["frequencies"] and run["frequencies"][:1]
    assert len(figures.spectra(results).axes) == len(DRAWN)  # and no scale of depth
    assert len(report.render(results | {"runs": results["runs"][-1:]})) > 10_000


def test_colours_and_markers_tell_encodings_apart():
    looks = [figures.style(name) for name in ENCODINGS]
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == len(ENCODINGS)
    assert [look.label for look in looks] == LABELS
