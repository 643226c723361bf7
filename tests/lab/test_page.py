"""The page of a result: the demo's, made again from made-up runs, and what holds of every page."""

import copy
import html
import json
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from comrope.errors import DataError
from comrope.lab import page as pages
from comrope.lab import reproduce
from comrope.lab.reproduce import page_of
from comrope.lab.styles import style
from comrope.lab.table import Table
from tests import browser
from tests.lab.helpers import ENCODINGS, LABELS

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert('$x_$')</script>\"&'"


class _Page(HTMLParser):
    """Tags with their attributes, the text outside of style, and of each table the cells' texts and which are strong."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self.best: dict[str, list[list[bool]]] = {}
        self._table = ""
        self._cell: str | None = None
        self._styled = False
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._styled = tag == "style"
        if tag == "table":
            self._table = dict(attrs)["id"] or ""
            self.tables[self._table], self.best[self._table] = [], []
        elif tag == "tr":
            self.tables[self._table].append([])
            self.best[self._table].append([])
        elif tag in ("td", "th"):
            self._cell = ""
            self.best[self._table][-1].append(False)
        elif tag == "strong":
            self.best[self._table][-1][-1] = True

    def handle_endtag(self, tag):
        self._styled = False
        if tag in ("td", "th"):
            self.tables[self._table][-1].append(" ".join((self._cell or "").split()))
            self._cell = None

    def handle_data(self, data):
        if not self._styled:
            self.text += data
        if self._cell is not None:
            self._cell += data


def test_page_needs_nothing_else(results):
    text = page_of(results)
    for tag, attributes in _Page(text).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, key, value)
    assert "@import" not in text and "@font-face" not in text
    assert text.count("url(") == text.count("url(#")


def test_ids_are_unique_and_references_resolve(results):
    page = _Page(page_of(results))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for key in ("href", "xlink:href"):
            assert key not in attributes or attributes[key][1:] in ids
        if attributes.get("clip-path", "none") != "none":
            assert attributes["clip-path"][len("url(#") : -1] in ids


def test_accuracies_are_those_of_the_runs(results):
    heads, *body = _Page(page_of(results)).tables["demo"]
    assert heads == [
        "encoding", "24×24", "32×32", "48×40", "48×48 (trained)", "64×64", "96×96", "ρ = 0", "ρ = 0.5", "ρ = 1", "ρ = 2",
        "labels changed",
    ]  # fmt: skip
    assert [row[0] for row in body] == LABELS
    for row, run in zip(body, results["runs"], strict=True):
        rows = run["evaluation"]
        trained = next(r for r in rows if r["size"] == [48, 48])
        measured = [*rows[:6], trained, *rows[6:]]
        assert row[1:-1] == [f"{100 * r['correct'] / r['total']:.1f}" for r in measured]
        assert row[-1] == str(rows[-1]["changed"])


def test_best_of_each_column_is_marked_with_all_ties(results):
    runs = results["runs"]
    for row in runs[7]["evaluation"][:6] + runs[8]["evaluation"][:6]:
        row["correct"] = 449
    best = np.array(_Page(page_of(results)).best["demo"][1:])
    assert best[:, 1:8].nonzero()[0].tolist() == [7] * 7 + [8] * 7  # ρ = 0 is the size trained at
    assert best[:, 8:11].nonzero()[0].tolist() == [8] * 3
    assert best[:, 11].nonzero()[0].tolist() == [
        i for i, run in enumerate(runs) if not run["evaluation"][-1]["changed"]
    ]
    assert not best[:, 0].any()


def test_check_table_shows_the_worst_layer(results):
    results["runs"][-1]["check"][1]["holds"] = False
    rows = {row[0]: row[1:] for row in _Page(page_of(results)).tables["demo-check"][1:]}
    assert list(rows) == LABELS
    assert rows["ComRoPE-LD"] == ["2", "2.5e-16", "4.0e-15", "1.0e-15", "yes"]
    assert rows["LieRE"] == ["2", "5.0e-02", "8.0e-01", "2.0e-01", "no"]
    assert rows["No encoding"] == ["2", "0.0e+00", "0.0e+00", "0.0e+00", "yes"]
    assert rows["APE"] == ["–"] * 5  # it rotates nothing
    assert rows["ComRoPE-MT"][-1] == "no"


def test_text_states_what_was_done_and_found(results):
    page = _Page(page_of(results))
    for part in (
        "9 position encodings in one small vision transformer",
        "on 1,347 images of 48 × 48 pixels (scikit-learn's digits",
        "450 other images",
        "for 12 epochs, batch size 64, learning rate 0.002, seed 0",
        "208,000 to 212,096 parameters",
        "At 48 × 48, the size trained at, accuracy is highest with ComRoPE-MT (97.3 %) and lowest with No encoding (86.7 %).",
        "the 7 encodings that passed the check of the RoPE equation changed none of 450 labels",
        "LieRE: −64.4 points, 290 labels changed",
        "an accuracy of 92.0 % is known to ± 2.5 points, one of 50 % to ± 4.6 points",
        "One seed: nothing here says how far another would differ",
        "Test samples of each run: 450.",
        "torch 2.14.1, timm 1.0.31",
    ):
        assert part in page.text or part in results["notes"], part
    assert [row[0] for row in page.tables["demo-training"][1:]] == LABELS
    assert {row[-1] for row in page.tables["demo-training"][1:]} == {"20.12"}
    assert all(style(name).about in page.text for name in ENCODINGS)


def test_hostile_text_stays_text(results):
    results["command"] = results["title"] = results["notes"][0] = results["versions"]["torch"] = HOSTILE
    page = _Page(page_of(results))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.text.count(HOSTILE) >= 5
    table = Table("t", HOSTILE, ("method", HOSTILE), [(HOSTILE, HOSTILE)])
    figure = reproduce.demo(reproduce.DEMO).outcome(results["runs"]).figures["training"]
    figure.axes[0].set_xlabel(HOSTILE, parse_math=False)
    page = _Page(pages.render(results, [table], {"training": figure}, lead=HOSTILE, about=HOSTILE))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.tables["t"] == [["method", HOSTILE], [HOSTILE, HOSTILE]]
    assert page.text.count(HOSTILE) >= 11


def test_what_is_no_result_of_a_recipe_is_refused(results):
    without = [{key: value for key, value in results.items() if key != part} for part in results if part != "tables"]
    foreign = [
        results | {"runs": []},
        results | {"runs": results["runs"][1:]},
        results | {"recipe": "table99"},
        results | {"scale": {"name": "demo", "asked": 3}},
        {"settings": {}, "runs": [{"encoding": "rope"}]},  # as version 0.1.0's demo wrote them at first
    ]
    for broken in without + foreign:
        with pytest.raises(DataError, match=r"results: .*give its command again"):
            page_of(broken)
    for run in results["runs"]:
        del run["history"]
    with pytest.raises(DataError, match="'history' is missing"):
        page_of(results)


def test_recipes_that_take_times_are_not_made_again(results):
    timed = results | {
        "recipe": "table9",
        "scale": {"name": "demo", "asked": {}},
        "command": "comrope reproduce table9",
    }
    with pytest.raises(DataError, match=r"table9 takes times .*comrope reproduce table9"):
        page_of(timed)


def test_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "report.html"
    pages.write("first", path)

    def full_disk(self, text, **_):
        with open(self, "w") as file:
            file.write(text[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(DataError, match=r"cannot be written .*no space"):
        pages.write("second", path)
    assert path.read_text("utf-8") == "first"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_same_results_give_the_same_page(results):
    before = copy.deepcopy(results)
    assert page_of(results) == page_of(json.loads(json.dumps(results)))
    assert results == before


def _chromium(page: Path, *arguments: str) -> str:
    command = [
        browser.executable(),
        *browser.FLAGS,
        f"--user-data-dir={page.parent / 'profile'}",
        *arguments,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_browser_shows_the_page_within_its_window(results, tmp_path):
    """On a desktop and a phone: a page of ours frames the result's at each width, and writes down what it measures."""
    text = html.escape(page_of(results), quote=True)
    frames = "".join(
        f'<iframe width="{w}" height="900" style="border:0" srcdoc="{text}"></iframe>' for w in (1200, 390)
    )
    measure = """
    <p id="seen"></p><script>addEventListener("load", () => {
      document.getElementById("seen").textContent = JSON.stringify(
      [...document.querySelectorAll("iframe")].map(frame => {
        const page = frame.contentDocument, table = page.getElementById("demo");
        return {
          window: frame.contentWindow.innerWidth,
          page: page.documentElement.scrollWidth,
          table: table.getBoundingClientRect().width,
          scroller: table.parentElement.clientWidth,
          figures: [...page.querySelectorAll("figure.card svg")].map(svg => svg.getBoundingClientRect().height),
          text: page.body.innerText,
        };
      }));
    });</script>"""
    harness = tmp_path / "harness.html"
    harness.write_text(f"<!doctype html><meta charset='utf-8'><body>{measure}{frames}</body>", encoding="utf-8")
    dom = _chromium(harness, "--window-size=1300,900", "--dump-dom")
    seen = json.loads(html.unescape(dom.split('<p id="seen">', 1)[1].split("</p>", 1)[0]))
    assert [frame["window"] for frame in seen] == [1200, 390]
    for frame in seen:
        assert frame["page"] <= frame["window"]
        assert len(frame["figures"]) == 4 and min(frame["figures"]) > 200
        assert all(frame["text"].count(label) >= 3 for label in LABELS)
        assert "Run it again" in frame["text"]
    desktop, phone = seen
    assert desktop["table"] <= desktop["scroller"]  # all columns at once
    assert phone["table"] > phone["scroller"]  # scrolls, and the page does not


def test_browser_paints_the_page(results, tmp_path):
    from matplotlib.image import imread

    path, picture = tmp_path / "report.html", tmp_path / "picture.png"
    pages.write(page_of(results), path)
    _chromium(path, "--window-size=1200,6000", f"--screenshot={picture}")
    pixels = imread(picture)[..., :3]
    assert pixels.shape == (6000, 1200, 3)
    for look in (style("comrope-ld"), style("comrope-mt")):
        colour = np.array([int(look.colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(pixels - colour).max(-1) < 0.02).sum() > 500  # their thick lines
