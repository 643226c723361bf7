"""The page in a real browser: clicks and keys, values read back, no error, no request, on a phone and in the dark."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import comrope
from comrope.cli import main
from comrope.explorer import contents
from tests.browser import Browser
from tests.explorer.helpers import brute_kernel, data_of, encoding, vit
from tests.helpers import draw

pytestmark = pytest.mark.slow

HEAD = '#heads [data-layer="{}"][data-head="{}"]'


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(autouse=True)
def _no_errors_and_no_requests(browser):
    browser.errors.clear()
    browser.requests.clear()
    yield
    assert browser.errors == [] and browser.requests == []


def _value(browser: Browser, panel: int = 0) -> tuple[tuple[int, ...], float]:
    """The displacement of the cursor and the value there, as the page has them."""
    found = json.loads(browser.value(f"JSON.stringify(document.querySelectorAll('.kernel output')[{panel}].dataset)"))
    return tuple(int(x) for x in found["displacement"].split(",")), float(found["value"])


def test_a_head_is_clicked_and_its_kernel_read(browser, tmp_path):
    path = comrope.show(vit(), tmp_path / "page.html")
    model = data_of(path)["models"][0]
    browser.open(path)
    assert browser.text("h1") == "vit_tiny_patch16_224"
    browser.click(HEAD.format(1, 1))
    assert browser.text("#head-title") == "Layer 2, head 2"
    assert browser.value("document.querySelector('[aria-selected=true]').dataset.layer") == "1"
    assert _value(browser) == ((0, 0), pytest.approx(1, abs=1e-6))
    for kind in ("uniform", "weights"):
        browser.click(f"input[value={kind}]")
        for at in ((0.3, 0.2), (0.9, 0.7), (0.6, 0.8)):
            browser.click(".kernel svg", at)
            where, value = _value(browser)
            assert where != (0, 0)
            assert value == pytest.approx(brute_kernel(model, 1, 1, kind, where), abs=1e-9)
    for part in ("dead", "alias"):
        total = sum(sum(layer[part]) for layer in model["layers"])
        assert browser.text(f"[data-fact={part}-0]").split(" of ") == [str(total), "48"]


def test_the_keyboard_reaches_everything(browser, tmp_path):
    path = comrope.show(vit(), tmp_path / "page.html")
    browser.open(path)
    browser.click(HEAD.format(0, 0))
    for key, title in (("ArrowRight", "Layer 1, head 2"), ("ArrowRight", "Layer 1, head 2"), ("ArrowDown", "Layer 2, head 2"),
                       ("Home", "Layer 2, head 1"), ("End", "Layer 2, head 2"), ("ArrowUp", "Layer 1, head 2")):  # fmt: skip
        browser.press(key)
        assert browser.text("#head-title") == title
        assert browser.value("document.activeElement.getAttribute('aria-label')").startswith(title)
    outline = browser.value("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    browser.press("Enter")
    assert browser.value("document.querySelector('dialog').matches(':modal')")
    before = browser.value("document.querySelector('.kernel svg').getBoundingClientRect().width")
    assert before > 300
    browser.press("ArrowRight")
    assert browser.text("#head-title") == "Layer 2, head 1"
    browser.press("Escape")
    browser.wait("!document.querySelector('dialog').matches(':modal') && document.querySelector('dialog').open")
    assert browser.value("document.activeElement.getAttribute('aria-label')").startswith("Layer 2, head 1")
    browser.press("Enter")
    browser.click("#enlarge")
    browser.wait("!document.querySelector('dialog').matches(':modal') && document.querySelector('dialog').open")
    browser.value("document.querySelector('.plot.cursor').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        browser.press(key)
    assert _value(browser)[0] == (-1, 2)


def test_the_tab_key_goes_from_the_controls_to_the_heads_to_the_head(browser, tmp_path):
    browser.open(comrope.show(vit(), tmp_path / "page.html"))
    seen = []
    for _ in range(14):
        browser.press("Tab")
        seen.append(
            browser.value(
                "document.activeElement.id || document.activeElement.className || document.activeElement.name"
            )
        )
    for part in ("kind", "below", "cell", "previous", "next", "enlarge", "plot cursor"):
        assert part in seen
    assert seen.index("below") < seen.index("cell") < seen.index("enlarge") < seen.index("plot cursor")


@pytest.mark.parametrize("name", ["rope", "rope-mixed", "string", "comrope-ap", "comrope-ld", "comrope-mt", "none"])
@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_every_encoding_in_one_two_and_three_axes(browser, tmp_path, name, num_axes):
    pe = encoding(name, num_axes, **({} if name in ("none", "rope", "rope-mixed") else {"block_size": 4}))
    path = comrope.show(pe, tmp_path / "page.html", grid=(12, (5, 6), (3, 4, 5))[num_axes - 1])
    model = data_of(path)["models"][0]
    browser.open(path)
    browser.click(HEAD.format(0, 1))
    if num_axes == 3:
        browser.value("(s => { s.value = -2; s.dispatchEvent(new Event('input')); })(document.getElementById('slice'))")
        assert browser.text("#slice-text") == "Key 2 frames earlier"
    browser.click(".kernel svg", (0.8, 0.3))
    where, value = _value(browser)
    assert any(where) and (num_axes < 3 or where[0] == -2)
    assert value == pytest.approx(brute_kernel(model, 0, 1, "uniform", where), abs=1e-9)
    browser.click("summary")
    table = browser.value(
        "[...document.querySelectorAll('.planes tbody tr')].map(r => [...r.children].map(c => c.textContent))"
    )
    frequencies = model["layers"][0]["frequencies"][1]
    assert len(table) == len(frequencies)
    for row, plane in zip(table, frequencies, strict=True):
        read = [float(text.replace("−", "-")) for text in row[1 : 1 + num_axes]]
        np.testing.assert_allclose(read, plane, rtol=0.06 if np.abs(plane).min() < 1e-3 else 1e-3, atol=1e-12)


def test_liere_has_no_spectrum_and_says_how_much_its_kernel_varies(browser, tmp_path):
    path = comrope.show(encoding("liere", block_size=4), tmp_path / "page.html", grid=(4, 5))
    kernel = data_of(path)["models"][0]["layers"][0]["kernels"]["uniform"]
    browser.open(path)
    assert "do not commute" in browser.text(".spectrum .plot")
    browser.click(".kernel svg", (0.75, 0.3))
    (row, column), value = _value(browser)
    assert value == pytest.approx(kernel["mean"][0, row + 3, column + 4], abs=1e-6)
    spread = float(browser.value("document.querySelector('.kernel output').dataset.spread"))
    assert spread == pytest.approx(kernel["spread"][0, row + 3, column + 4], abs=1e-6) and spread > 1e-4
    assert "±" in browser.text(".kernel output")
    browser.click(".spread")
    assert _value(browser)[1] == pytest.approx(spread)
    assert browser.text("[data-fact=dead-0]") == "no planes: angles do not commute"
    assert float(browser.text("[data-fact=drift-0]")) > 0.01


def test_two_models_side_by_side(browser, tmp_path):
    pair = {"against": encoding("liere", block_size=4), "names": ("before", "after <b>")}
    path = comrope.show(encoding("comrope-ld", block_size=4), tmp_path / "page.html", grid=(4, 5), **pair)
    first, second = data_of(path)["models"]
    browser.open(path)
    assert browser.value("[...document.querySelectorAll('h3')].map(h => h.textContent)") == ["before", "after <b>"]
    assert browser.value("document.querySelectorAll('.cell canvas').length") == 4
    browser.click(HEAD.format(0, 1))
    browser.click(".kernel svg", (0.7, 0.7))
    (where, left), (same, right) = _value(browser, 0), _value(browser, 1)
    assert where == same != (0, 0)
    assert left == pytest.approx(brute_kernel(first, 0, 1, "uniform", where), abs=1e-9)
    assert right == pytest.approx(
        second["layers"][0]["kernels"]["uniform"]["mean"][1, where[0] + 3, where[1] + 4], abs=1e-6
    )
    boxes = browser.value("[...document.querySelectorAll('.kernel svg')].map(s => s.getBoundingClientRect().x)")
    assert boxes[1] > boxes[0] + 300


def test_two_models_of_different_sizes(browser, tmp_path):
    other = comrope.encoding("rope", num_heads=3, head_dim=8, num_axes=2)
    browser.open(comrope.show(vit(), tmp_path / "page.html", against=other, grid=(4, 4)))
    browser.click(HEAD.format(0, 2))
    visible = "[...document.querySelectorAll('article')].map(a => getComputedStyle(a).visibility)"
    assert browser.value(visible) == ["hidden", "visible"]
    browser.click(HEAD.format(1, 1))
    assert browser.value(visible) == ["visible", "hidden"]


def test_attention_of_a_moved_token(browser, tmp_path):
    model, image = vit(), draw(3, 32, 32).float()
    path = comrope.show(model, tmp_path / "page.html", image=image)
    found = data_of(path)["models"][0]
    layer, places = found["layers"][1], torch.from_numpy(found["image"]["places"].astype(float))
    parts = []
    for which in ("queries", "keys"):
        part = layer["tokens"][which]
        numbers = part["mean"][..., None] + part["step"][:, None, None] * part["numbers"]
        parts.append(torch.from_numpy(numbers.astype(float)).permute(2, 0, 1))
    planes = torch.from_numpy(layer["frequencies"].astype(float))
    weights = contents.attention(*parts, planes, places)[0]  # of head 1

    def read() -> dict[str, str]:
        return json.loads(browser.value("JSON.stringify(document.querySelector('.attention output').dataset)"))

    def check(token: int, row: torch.Tensor) -> None:
        seen = read()
        assert int(seen["token"]) == token and int(seen["best"]) == int(row[1:].argmax())
        assert float(seen["most"]) == pytest.approx(row[1:].max().item(), abs=1e-5)
        assert float(seen["rest"]) == pytest.approx(row[0].item(), abs=1e-5)

    browser.open(path)
    browser.click(HEAD.format(1, 0))
    browser.click(".image canvas", (0.1, 0.4))  # row 2, column 1
    check(5, weights[5])
    browser.press("ArrowDown")
    browser.press("ArrowRight")
    check(10, weights[10])
    browser.click(".extra")
    check(0, weights[0])
    browser.click(".image canvas", (0.1, 0.4))
    browser.click(".carry")
    browser.click(".image canvas", (0.9, 0.9))  # its content at the last patch
    assert read()["place"] == "3,3"
    queries = torch.cat((parts[0][:16], parts[0][5:6]))  # the content of token 5 at the place of token 16
    check(5, contents.attention(queries, parts[1], planes, places)[0][16])
    browser.click("input[value=image]")
    browser.click(".kernel svg", (0.3, 0.2))
    where, value = _value(browser)
    assert value == pytest.approx(brute_kernel(found, 1, 0, "image", where), abs=1e-9)


def test_a_folded_model_saved_and_named_on_the_command_line(browser, tmp_path, monkeypatch):
    from matplotlib.image import imsave

    model = comrope.fold(vit("comrope-mt"))
    comrope.save(model, tmp_path / "folded")
    imsave(tmp_path / "photo.png", draw(40, 60, 3).sigmoid().numpy())
    out = tmp_path / "page.html"
    monkeypatch.setattr(
        "sys.argv",
        ["comrope", "show", str(tmp_path / "folded"), "--image", str(tmp_path / "photo.png"), "--out", str(out)],
    )
    main()
    browser.open(out)
    assert "folded to RoPE" in browser.text("#summary")
    assert browser.text("h1") == str(tmp_path / "folded")
    assert "attends most to" in browser.text(".attention output")


def test_a_run_with_one_of_its_test_images(browser, tmp_path, monkeypatch):
    train = "train images --data digits --num-train 60 --num-test 20 --model demo --image-size 48 48 --epochs 1 --batch-size 20"
    monkeypatch.setattr(
        "sys.argv", ["comrope", *train.split(), "--encoding", "comrope-ld", "--out", str(tmp_path / "run")]
    )
    main()
    out = tmp_path / "page.html"
    monkeypatch.setattr("sys.argv", ["comrope", "show", str(tmp_path / "run"), "--sample", "3", "--out", str(out)])
    main()
    found = data_of(out)["models"][0]
    assert found["grid"] == [6, 6] and [layer["heads"] for layer in found["layers"]] == [4, 4, 4]
    browser.open(out)
    browser.click(HEAD.format(2, 3))
    assert browser.text("#head-title") == "Layer 3, head 4"
    assert "6 × 6" in browser.text("#summary") and "attends most to" in browser.text(".attention output")


def test_a_language_model(browser, tmp_path):
    from tests.hosts import tiny_transformers

    model = comrope.attach(tiny_transformers.build("llama"), "comrope-ld", block_size=4)
    path = comrope.show(model, tmp_path / "page.html")
    found = data_of(path)["models"][0]
    browser.open(path)
    browser.click(HEAD.format(1, 3))
    browser.click("input[value=weights]")
    browser.click(".kernel svg", (0.7, 0.5))
    where, value = _value(browser)
    assert where[0] > 0 and value == pytest.approx(brute_kernel(found, 1, 3, "weights", where), abs=1e-9)
    assert f"Key {where[0]} after" in browser.text(".kernel output")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_nothing_is_wider_than_its_window(browser, tmp_path, width, dark):
    pair = {"against": encoding("liere", block_size=4), "image": None}
    for name, path in (
        ("vit", comrope.show(vit(), tmp_path / "vit.html", image=draw(3, 32, 32).float())),
        ("pair", comrope.show(encoding("comrope-ld"), tmp_path / "pair.html", grid=(8, 8), **pair)),
        ("video", comrope.show(encoding("comrope-mt", 3), tmp_path / "video.html", grid=(4, 8, 8))),
        ("text", comrope.show(encoding("rope", 1), tmp_path / "text.html", grid=64)),
    ):
        browser.open(path, width=width, height=800, dark=dark, phone=width < 500)
        assert browser.value("document.documentElement.scrollWidth") == width, name
        page, ink = browser.value(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        brightness = [sum(int(part) for part in colour[4:-1].split(",")) / 765 for colour in (page, ink)]
        assert (brightness[0] < 0.2 and brightness[1] > 0.7) if dark else (brightness[0] > 0.9 and brightness[1] < 0.3)
        browser.click(HEAD.format(0, 0))
        browser.press("Enter")
        assert browser.value("document.querySelector('dialog').scrollWidth <= innerWidth"), name
        browser.press("Escape")
    assert browser.value("matchMedia('(prefers-color-scheme: dark)').matches") is dark


def test_colours_follow_when_the_screen_turns_dark(browser, tmp_path):
    browser.open(comrope.show(encoding("comrope-ld"), tmp_path / "page.html", grid=(6, 6)))
    picture = "document.querySelector('.cell canvas').toDataURL()"
    light = browser.value(picture)
    browser.dark(True)
    browser.wait(f"{picture} !== {json.dumps(light)}")
    browser.dark(False)
    browser.wait(f"{picture} === {json.dumps(light)}")


def test_hostile_names_are_shown_as_text(browser, tmp_path):
    hostile = "</script><img src=x onerror='document.title=1'><b>&amp;"
    browser.open(
        comrope.show(
            encoding("rope"), tmp_path / "page.html", grid=(4, 4), against=encoding("rope"), names=(hostile, hostile)
        )
    )
    assert browser.text("h1") == f"{hostile} against {hostile}" and browser.text("h3") == hostile
    assert browser.value("document.querySelectorAll('img, b b').length") == 0


@pytest.mark.parametrize("name", ["comrope-ld", "liere"])
def test_vit_b_stays_small(browser, tmp_path, name):
    """With an image, 144 heads × 197 tokens, in less than 5 MB; it answers a click at once."""
    import timm

    torch.manual_seed(0)
    model = comrope.attach(timm.create_model("vit_base_patch16_224").eval(), name, init="normal", std=1.0)
    path = comrope.show(model, tmp_path / "page.html", image=draw(3, 224, 224).float())
    assert path.stat().st_size < 5e6
    found = data_of(Path(path))["models"][0]
    assert [layer["heads"] for layer in found["layers"]] == [12] * 12 and found["grid"] == [14, 14]
    browser.open(path)
    assert browser.value("document.querySelectorAll('.cell canvas').length") == 144
    browser.click(HEAD.format(11, 11))
    assert browser.text("#head-title") == "Layer 12, head 12"
    browser.click(".kernel svg", (0.3, 0.3))
    where, value = _value(browser)
    if name == "comrope-ld":
        assert value == pytest.approx(brute_kernel(found, 11, 11, "uniform", where), abs=1e-9)
    else:
        mean = found["layers"][11]["kernels"]["uniform"]["mean"]
        assert value == pytest.approx(mean[11, where[0] + 13, where[1] + 13])
