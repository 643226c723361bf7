"""The demo's figures and what all share, on made-up results."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from comrope.lab.reproduce.demo import SCALE, demo
from comrope.lab.reproduce.planes import draw_planes
from comrope.lab.styles import STYLES, style
from tests.lab.helpers import ENCODINGS, LABELS

DRAWN = [name for name in ENCODINGS if STYLES[name].no_planes == style("").no_planes]


def _figures(results: dict) -> dict[str, Figure]:
    return dict(demo(SCALE).outcome(results["runs"]).figures)


def _percent(row: dict) -> float:
    return 100 * row["correct"] / row["total"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy_against_resolution", lambda run: [(i, _percent(r)) for i, r in enumerate(run["evaluation"][:6])]),
        (
            "accuracy_against_offset",
            lambda run: [(r["offset"], _percent(r)) for r in (run["evaluation"][3], *run["evaluation"][6:])],
        ),
        ("training", lambda run: [(h["epoch"], h["loss"]) for h in run["history"]]),
    ],
)
def test_lines_carry_the_results(results, name, expected):
    (axes,) = _figures(results)[name].axes
    lines = axes.lines[: len(ENCODINGS)]
    assert [line.get_label() for line in lines] == ENCODINGS
    for line, run in zip(lines, results["runs"], strict=True):
        np.testing.assert_allclose(line.get_xydata(), expected(run))
        assert line.get_color() == style(run["experiment"]["encoding"]).colour
    assert set(LABELS) <= {text.get_text() for text in axes.texts}
    assert axes.get_xlabel() and axes.get_ylabel()


def test_names_at_the_lines_ends_do_not_overlap(results):
    figure = _figures(results)["accuracy_against_offset"]
    (axes,) = figure.axes
    heights = sorted(text.get_position()[1] for text in axes.texts if text.get_text() in LABELS)
    points = axes.get_position().height * figure.get_figheight() * 72
    assert np.diff(heights).min() * points > 12
    assert heights[0] >= 0 and heights[-1] <= 1


def test_sizes_are_named_and_evenly_spaced(results):
    (axes,) = _figures(results)["accuracy_against_resolution"].axes
    sizes = ["24 × 24", "32 × 32", "48 × 40", "48 × 48", "64 × 64", "96 × 96"]
    assert [t.get_text() for t in axes.get_xticklabels()] == sizes
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [0, 1, 2, 3, 4, 5]
    assert {"at 96 × 96", "trained here"} <= {text.get_text() for text in axes.texts}


def test_spectra_show_every_plane_of_every_layer(results):
    frequencies = {run["experiment"]["encoding"]: run["frequencies"] for run in results["runs"]}
    frequencies["string"][0][0][0][0][0] = 1e4  # a wild one must not shrink the others' panels
    figure = draw_planes(frequencies)
    panels = figure.axes[: len(DRAWN)]
    limits = {panel.get_xlim() + panel.get_ylim() for panel in panels}
    assert len(limits) == 1 and max(limits.pop()) < 40
    for name, panel in zip(DRAWN, panels, strict=True):
        scatter = panel.collections[-1]
        found = sorted(
            zip(np.asarray(scatter.get_array()).tolist(), *np.asarray(scatter.get_offsets()).T.tolist(), strict=True)
        )
        layers = np.array(frequencies[name]).reshape(2, 2, -1)
        assert found == sorted((i + 1, r, c) for i in range(2) for r, c in layers[i].T.tolist())
        assert style(name).label in panel.texts[0].get_text()
    assert "outside" in panels[DRAWN.index("string")].texts[-1].get_text()
    notes = " ".join(text.get_text() for text in figure.texts)
    assert all(f"{style(name).label}: {style(name).no_planes}." in notes for name in ENCODINGS if name not in DRAWN)
    assert "MT" not in notes


def test_figures_without_any_spectrum_and_of_one_layer(results):
    assert draw_planes(dict.fromkeys(ENCODINGS)).axes == []
    one_layer = {
        n: run["frequencies"][:1] for n in DRAWN for run in results["runs"] if run["experiment"]["encoding"] == n
    }
    assert len(draw_planes(one_layer).axes) == len(DRAWN)  # and no scale of depth


def test_every_encoding_has_a_style_that_tells_it_from_all_others():
    assert list(STYLES) == ENCODINGS
    looks = STYLES.values()
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == len(ENCODINGS)
    assert len({look.label for look in looks}) == len({look.about for look in looks}) == len(ENCODINGS)
