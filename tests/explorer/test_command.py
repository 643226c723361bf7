"""The command `comrope show`: it finds out what it is given, and mistakes cost one line and no file."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import comrope
from comrope.lab import runs
from comrope.lab.experiment import Recipe
from comrope.lab.images.config import ImageConfig
from comrope.lab.text.config import TextConfig
from comrope.lab.video.config import VideoConfig
from tests.explorer.helpers import data_of, vit

MANUAL = Path(__file__).parents[2] / "docs/show.md"
ENCODING = ("--num-heads", "2", "--head-dim", "16", "--axes", "2")


@pytest.fixture
def show(comrope, monkeypatch, tmp_path):
    """Calls `comrope show` in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: comrope("show", *arguments)


def test_encodings_by_name_side_by_side(show):
    given = ("comrope-ld", *ENCODING, "--grid", "4", "6", "--against", "liere", "--block-size", "4", "--seed", "3")
    assert show(*given) == (0, "wrote show.html\n", "")
    first, second = data_of(Path("show.html"))["models"]
    assert [first["name"], second["name"]] == ["comrope-ld", "liere"] and first["grid"] == [4, 6]
    assert (
        first["layers"][0]["blockSize"] == 4 and first["layers"][0]["commutes"] and not second["layers"][0]["commutes"]
    )
    before = Path("show.html").read_bytes()
    assert show(*given)[0] == 0 and Path("show.html").read_bytes() == before
    assert show(*given[:-1], "4", "--out", "new/other.html")[1] == "wrote new/other.html\n"
    assert Path("new/other.html").read_bytes() != before


def test_a_folder_named_as_an_encoding_is_that_folder(show):
    comrope.save(vit(), "rope")
    assert show("rope")[0] == 0
    assert data_of(Path("show.html"))["models"][0]["layers"][0]["encoding"] == "comrope-ld"


SMALL = {
    "images": ImageConfig(Recipe(1, 10), num_train=20, num_test=10, model="tiny", image_size=(8, 12)),
    "video": VideoConfig(
        Recipe(1, 4), data="motion:motion", num_train=4, num_test=4, model="tiny", num_frames=2, image_size=(16, 16)
    ),
    "text": TextConfig(Recipe(1, 4), num_train=8, length=32, test_length=64, model="tiny"),
    "text with its own RoPE": TextConfig(
        Recipe(1, 4), num_train=8, length=32, test_length=64, model="tiny", encoding="rope"
    ),
}
GRIDS = {"images": [2, 3], "video": [2, 2, 2], "text": [32]}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_runs(show, name, tmp_path):
    config = SMALL[name]
    if config.kind == "text":
        Path("texts").mkdir()
        for seed in range(4):
            Path(f"texts/{seed}.txt").write_text("".join(chr(97 + (seed + i * i) % 26) for i in range(2000)))
        config = replace(config, data=str(tmp_path / "texts"))
    runs.run(config, config.problem.conditions(config), Path("run"))
    code, _, err = show("run")
    assert (code, err) == (0, "")
    model = data_of(Path("show.html"))["models"][0]
    assert model["grid"] == GRIDS[config.kind] and [layer["heads"] for layer in model["layers"]] == [2, 2]
    if config.kind == "images":
        assert show("run", "--sample", "9")[0] == 0
        assert data_of(Path("show.html"))["models"][0]["image"]["size"] == [8, 12]
        assert "expected 0 to 9" in show("run", "--sample", "10")[2]
        assert show("run", "--grid", "4", "4")[0] == 0
        assert data_of(Path("show.html"))["models"][0]["grid"] == [4, 4]
    else:
        code, _, err = show("run", "--sample", "0")
        assert code == 2 and f"a run on {config.kind}" in err
    record = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(record)[:40])
    code, _, err = show("run")
    assert code == 2 and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("comrope-dl",), "comrope-dl is no folder, and there is no encoding 'comrope-dl': did you mean 'comrope-ld'"),
        (("no/where",), "no/where is not there"),
        (("text.png",), "text.png is a file: expected a folder"),
        (("empty",), "comrope.json does not exist"),
        (("rope",), "rope is the name of an encoding, which needs --num-heads, --head-dim, --axes as well"),
        (("rope", *ENCODING), "--grid 14 14"),
        (("rope", *ENCODING, "--grid", "4"), "grid=(4,): expected 2 whole numbers"),
        (("rope", *ENCODING, "--grid", "4", "4", "--std", "1"), "rope has no use for std=1.0"),
        (("rope", *ENCODING, "--grid", "4", "4", "--image", "text.png"), "has no queries and keys"),
        (("rope", *ENCODING, "--grid", "4", "4", "--image", "nowhere.png"), "there is no file of that name"),
        (("rope", *ENCODING, "--grid", "4", "4", "--sample", "3"), "--sample is for a run"),
        (("rope", *ENCODING, "--grid", "4", "4", "--data", "x"), "--data is for a run"),
        (("rope", *ENCODING, "--grid", "4", "4", "--image", "text.png", "--sample", "1"), "--sample is for a run"),
        (("rope", *ENCODING, "--grid", "4", "4", "--out", "empty"), "empty is a folder: name a file"),
        (("rope", *ENCODING, "--grid", "4", "4", "--out", "text.png/x.html"), "text.png is a file"),
        (("rope", *ENCODING, "--grid", "4", "4", "--against", "comrope-dl"), "did you mean 'comrope-ld'"),
        (("ape", *ENCODING, "--grid", "4", "4"), "rotates nothing"),
        (("saved", "--head-dim", "16"), "--head-dim is for an encoding"),
        (("saved", "--image", "text.png"), "text.png cannot be read as an image"),
        (("saved", "--against", "rope", "--num-heads", "2", "--head-dim", "16", "--axes", "1"), "of 2 and 1 axes"),
    ],
)
def test_mistakes(show, arguments, message):
    Path("text.png").write_text("no picture")
    Path("empty").mkdir()
    if "saved" in arguments:
        comrope.save(vit(), "saved")
    files = sorted(path.name for path in Path().iterdir())
    code, out, err = show(*arguments)
    assert (code, out) == (2, "") and message in err
    assert err.startswith("comrope: ") and err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == files


def test_a_model_before_and_after_training(show):
    model = vit()
    comrope.save(model, "before")
    with torch.no_grad():
        model.blocks[0].attn.encoding.axis_scale.mul_(2)  # pyright: ignore
    comrope.save(model, "after")
    assert show("before", "--against", "after")[0] == 0
    before, after = (each["layers"][0]["frequencies"] for each in data_of(Path("show.html"))["models"])
    assert abs(after - 2 * before).max() < 1e-5 < abs(before).max()


def test_an_encoding_against_a_model_has_the_grid_of_the_model(show):
    comrope.save(vit(), "saved")
    assert show("saved", "--against", "liere", *ENCODING)[0] == 0
    model, encoding = data_of(Path("show.html"))["models"]
    assert encoding["grid"] == model["grid"]
    assert show("saved", "--against", "liere", *ENCODING, "--grid", "3", "5")[0] == 0
    assert [each["grid"] for each in data_of(Path("show.html"))["models"]] == [[3, 5], [3, 5]]


def test_what_the_manual_says_runs(show):
    text = MANUAL.read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(example, MANUAL.name, "exec"), {})
    assert data_of(Path("show.html"))["models"][0]["name"] == "vit_tiny_patch16_224"
    assert data_of(Path("liere.html"))["models"][0]["grid"] == [14, 14]
    (line,) = re.findall(r"^comrope show (comrope-ld .*)$", text, flags=re.MULTILINE)
    assert show(*line.split()) == (0, "wrote show.html\n", "")
    assert len(data_of(Path("show.html"))["models"]) == 2
