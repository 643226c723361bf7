"""The recipe on text, end to end at its smallest scale, on texts made on the spot."""

import csv
import json

import pytest

from comrope.errors import ConfigurationError
from comrope.lab import reproduce
from comrope.lab.reproduce.scales import SCALES
from comrope.lab.reproduce.text import TEXT_SCALES, text
from tests.lab.text.helpers import write_texts

pytestmark = pytest.mark.slow

COMPARED = ("none", "rope", "comrope-ld")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder that the recipe fills."""
    data = write_texts(tmp_path_factory.mktemp("texts"), size=900)
    scale = SCALES["demo"].changed(data=str(data), num_train=80, num_test=4, seeds=(0, 1), encodings=COMPARED)
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("out")
    reproduce.run("text", scale, out, runs=runs, parallel=0)
    # 3 encodings and 2 that continue, of 2 seeds; what they continue from is among the first
    assert len(list(runs.iterdir())) == 10
    return out


def rows(folder, name):
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_bits_per_byte_by_length_and_scaling(written):
    found = rows(written, "text")
    assert [row["method"] for row in found] == ["No encoding", "RoPE", "ComRoPE-LD"]
    assert all(0 < float(row[f"{length} mean"]) < 9 for row in found for length in (32, 64, 128, 256))
    scaled = rows(written, "text-scaling")
    assert [row["scaling"] for row in scaled] == ["none", *2 * ["none", "linear", "ntk", "yarn"]]
    # without scaling both tables have the same runs
    unscaled = [row for row in scaled if row["scaling"] == "none"]
    assert [row["256 mean"] for row in unscaled] == [row["256 mean"] for row in found]
    differences = rows(written, "text-differences")
    assert float(differences[1]["256 mean"]) == pytest.approx(
        float(found[2]["256 mean"]) - float(found[1]["256 mean"]), abs=1e-6
    )


def test_places_in_the_window_make_up_the_whole(written):
    whole, places = rows(written, "text"), rows(written, "text-positions")
    for row, expected in zip(places, whole, strict=True):
        total = sum(float(row[f"{a} – {2 * a - 1} mean"]) * a for a in (2, 4, 8, 16, 32, 64, 128))
        total += float(row["0 mean"]) + float(row["1 mean"])
        assert total / 256 == pytest.approx(float(expected["256 mean"]), rel=1e-6)


def test_training_on_and_long_sequences(written):
    continued = rows(written, "text-continued")
    assert [row["method"] for row in continued] == ["before", "RoPE", "ComRoPE-LD"]
    assert float(continued[1]["32 mean"]) < float(continued[0]["32 mean"])
    exact = rows(written, "text-long-exactness")
    assert [(row["method"], row["tokens"]) for row in exact] == [
        ("RoPE", "128"),
        ("ComRoPE-LD", "128"),
        ("RoPE", "256"),
        ("ComRoPE-LD", "256"),
    ]
    assert all(float(row["logits by chunks and tokens with a cache"]) < 1e-5 for row in exact)
    assert {row["method"] for row in rows(written, "text-long")} == {"RoPE", "ComRoPE-LD", "ComRoPE-LD, folded"}


def test_files(written):
    names = {path.name for path in written.iterdir()}
    assert {"results.json", "tables.md", "report.html", "text.svg", "text-positions.png"} <= names
    assert json.loads((written / "results.json").read_text(encoding="utf-8"))["recipe"] == "text"


def test_scales():
    assert all(len(text(SCALES[name]).jobs) == (6 + 5 + 1) * len(SCALES[name].few_seeds) for name in TEXT_SCALES)
    assert text(SCALES["demo"]).jobs[0].experiment.data == "stdlib"
    with pytest.raises(ConfigurationError, match="use demo or small"):
        text(SCALES["paper"])
