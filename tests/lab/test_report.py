"""The demo's report, on made-up results."""

import copy
import html
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from comrope.errors import DataError
from comrope.lab import figures, report
from tests.lab.helpers import LABELS

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
    text = report.render(results | {"samples": [{"caption": "a seven", "image": [[0.0, 1.0], [0.5, 0.25]]}]})
    page = _Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, key, value)
    assert "@import" not in text and "@font-face" not in text
    assert text.count("url(") == text.count("url(#")
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == ["a seven"]


def test_ids_are_unique_and_references_resolve(results):
    page = _Page(report.render(results))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for key in ("href", "xlink:href"):
            assert key not in attributes or attributes[key][1:] in ids
        if attributes.get("clip-path", "none") != "none":
            assert attributes["clip-path"][len("url(#") : -1] in ids


def test_main_table_shows_the_results(results):
    rows = _Page(report.render(results)).tables["main-table"]
    groups, heads, *body = rows
    assert groups[1:3] == ["image edge (pixels)", "offset ρ at 32 × 32 (canvas widths)"]
    assert heads == ["encoding", "32trained", "24", "28", "40", "48", "0", "0.5", "4", "labelschanged", "parameters"]
    assert [row[0] for row in body] == LABELS
    for row, run in zip(body, results["runs"], strict=True):
        by_size = {r["size"][0]: r for r in run["resolutions"]}
        measured = [by_size[s] for s in (32, 24, 28, 40, 48)] + run["offsets"]
        assert row[1:9] == [f"{100 * r['correct'] / r['total']:.1f}" for r in measured]
        assert row[9] == str(run["offsets"][-1]["changed"])
        assert row[10] == f"{run['num_encoding_parameters']:,}"


def test_best_of_each_column_is_marked_with_all_ties(results):
    runs = results["runs"]
    for row in runs[7]["resolutions"] + runs[8]["resolutions"]:
        row["correct"] = 449
    page = _Page(report.render(results))
    best = np.array(page.best["main-table"][2:])
    assert best[:, 1:6].nonzero()[0].tolist() == [7] * 5 + [8] * 5
    assert best[:, 6].nonzero()[0].tolist() == [8]  # offset 0: as it was
    unchanged = [i for i, run in enumerate(runs) if run["offsets"][-1]["changed"] == 0]
    assert best[:, 9].nonzero()[0].tolist() == unchanged
    assert best[:, 10].nonzero()[0].tolist() == [0]


def test_ties_are_exact_and_missing_measurements_are_dashes(results):
    runs = results["runs"][-2:]
    runs[0]["resolutions"] = [{"size": [32, 32], "correct": 9999, "total": 10000}]
    runs[1]["resolutions"] = [
        {"size": [32, 32], "correct": 99989, "total": 100000},
        {"size": [24, 48], "correct": 0, "total": 0},
    ]
    page = _Page(report.render(results | {"runs": runs}))
    assert page.tables["main-table"][1][1:3] == ["32 × 32trained", "24 × 48"]
    assert [row[1:3] for row in page.tables["main-table"][2:]] == [["99.99", "–"], ["99.99", "–"]]
    assert [row[1:3] for row in page.best["main-table"][2:]] == [[True, False], [False, False]]


def test_check_table_shows_the_worst_layer(results):
    results["runs"][-1]["check"][1]["holds"] = False
    rows = {row[0]: row[1:] for row in _Page(report.render(results)).tables["check-table"][1:]}
    assert list(rows) == LABELS
    assert rows["ComRoPE-LD"] == ["2.5 × 10⁻¹⁶", "4.0 × 10⁻¹⁵", "1.0 × 10⁻¹⁵", "2", "yes"]
    assert rows["LieRE"] == ["0.05", "0.8", "0.2", "2", "no"]
    assert rows["No encoding"] == ["0", "0", "0", "2", "yes"]
    assert rows["APE"] == ["no rotation, so nothing to check"]
    assert rows["ComRoPE-MT"][-1] == "no"


def test_text_states_what_was_done_and_found(results):
    page = _Page(report.render(results))
    for part in (
        "1,347 images",
        "450 other images",
        "for 5 epochs with seed 0",
        "208,000 to 212,096 parameters",
        "highest with ComRoPE-MT (97.3 %)",
        "lowest with No encoding (86.7 %)",
        "the 7 encodings that passed the check of the RoPE equation changed none of their 450 labels",
        "LieRE: −64.4 points, 290 labels changed",
        "an accuracy of 92.0 % is known to ± 2.5 points, one of 50 % to ± 4.6 points",
        "a difference of a point or less means nothing",
        "212 seconds on 2 threads",
    ):
        assert part in page.text.replace("\N{NO-BREAK SPACE}", " "), part
    assert dict(page.tables["versions"]) == results["versions"]
    assert dict(page.tables["timing"]) == dict.fromkeys(LABELS, "20.1")
    assert dict(page.tables["settings"])["training size"] == "32 × 32"


def test_hostile_text_stays_text(results):
    results["command"] = results["settings"]["data"] = results["versions"]["torch"] = HOSTILE
    results["runs"][0]["encoding"] = HOSTILE
    results["timing"]["train_seconds"][HOSTILE] = 1.0
    page = _Page(report.render(results | {"samples": [{"caption": HOSTILE, "image": [[0.0]]}]}))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.tables["main-table"][2][0] == HOSTILE
    assert page.text.count(HOSTILE) >= 9  # three figures name it too, as plain text rather than as formulas


def test_incomplete_results_are_refused(results):
    without_epochs = {key: value for key, value in results["settings"].items() if key != "epochs"}
    without_timing = {key: value for key, value in results.items() if key != "timing"}
    for broken in (results | {"runs": []}, results | {"settings": without_epochs}, without_timing):
        with pytest.raises(DataError, match="comrope demo"):
            report.render(broken)
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        report.render(results | {"samples": [{"caption": "flat", "image": [0.0, 1.0, 0.5]}]})


def test_half_width_is_wilsons():
    # Textbook values: 10 of 20 gives [0.299, 0.701]; with no error at all the interval is still not empty.
    assert report.half_width(10, 20) == pytest.approx(20.1, abs=0.05)
    assert report.half_width(20, 20) == pytest.approx(8.06, abs=0.01)


def test_report_is_written_whole_or_not_at_all(results, tmp_path, monkeypatch):
    path = tmp_path / "new" / "report.html"
    report.write_report(results, path)
    first = path.read_text("utf-8")
    assert first.startswith("<!doctype html>") and first.rstrip().endswith("</html>")
    with pytest.raises(DataError):
        report.write_report(results | {"runs": []}, path)

    def full_disk(self, text, **_):
        with open(self, "w") as file:
            file.write(text[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(DataError, match=r"cannot be written .*no space"):
        report.write_report(results, path)
    assert path.read_text("utf-8") == first
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_same_results_give_the_same_page(results):
    before = copy.deepcopy(results)
    assert report.render(results) == report.render(json.loads(json.dumps(results)))
    assert results == before


def _browser() -> str:
    for name in ("chromium", "google-chrome", "chromium-browser"):
        if found := shutil.which(name):
            return found
    if os.environ.get("COMROPE_REQUIRE_BROWSER"):
        pytest.fail("COMROPE_REQUIRE_BROWSER is set, but there is no chromium, google-chrome or chromium-browser.")
    pytest.skip("no chromium, google-chrome or chromium-browser on this machine")


def _chromium(page: Path, *arguments: str) -> str:
    quiet = ["background-networking", "sync", "component-update", "quic", "gpu"]
    flags = [
        "--headless",
        "--no-sandbox",
        "--no-first-run",
        "--hide-scrollbars",
        *(f"--disable-{name}" for name in quiet),
    ]
    command = [_browser(), *flags, f"--user-data-dir={page.parent / 'profile'}", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_browser_shows_the_page_within_its_window(results, tmp_path):
    """On a desktop and a phone: a page of ours frames the report at each width, and writes down what it measures."""
    text = html.escape(report.render(results), quote=True)
    frames = "".join(
        f'<iframe width="{w}" height="900" style="border:0" srcdoc="{text}"></iframe>' for w in (1200, 390)
    )
    measure = """
    <p id="seen"></p><script>addEventListener("load", () => {
      document.getElementById("seen").textContent = JSON.stringify(
      [...document.querySelectorAll("iframe")].map(frame => {
        const page = frame.contentDocument, table = page.getElementById("main-table");
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
        assert all(frame["text"].count(label) >= 4 for label in LABELS)
        assert "Run it again" in frame["text"]
    desktop, phone = seen
    assert desktop["table"] <= desktop["scroller"]  # all columns at once
    assert phone["table"] > phone["scroller"]  # scrolls, and the page does not


def test_browser_paints_the_page(results, tmp_path):
    from matplotlib.image import imread

    path, picture = tmp_path / "report.html", tmp_path / "picture.png"
    report.write_report(results, path)
    _chromium(path, "--window-size=1200,5200", f"--screenshot={picture}")
    pixels = imread(picture)[..., :3]
    assert pixels.shape == (5200, 1200, 3)
    for look in (figures.style("comrope-ld"), figures.style("comrope-mt")):
        colour = np.array([int(look.colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(pixels - colour).max(-1) < 0.02).sum() > 500  # their thick lines
