"""Recipes of sizes larger than trained: which conditions each encoding has, and what their tables say."""

import pytest

from comrope.lab import reproduce
from comrope.lab.reproduce import RECIPES, SCALES
from comrope.lab.reproduce.larger import CLIP_METHODS, METHODS


def _conditions(recipe: str, scale: str = "small") -> dict:
    return {job.experiment.encoding: job.conditions for job in RECIPES[recipe](SCALES[scale]).jobs}


def test_every_encoding_is_measured_under_the_scalings_that_it_has():
    asked = _conditions("larger")
    sizes = [(48, 48), (72, 72), (96, 96), (24, 96), (48, 96)]
    for encoding, each in asked.items():
        methods = {"liere": (), "none": ("entropy",), "ape": ("entropy",)}.get(encoding, METHODS)
        wanted = [((24, 24), "none"), *((size, method) for size in sizes for method in ("none", *methods))]
        assert [(c.size, c.scaling) for c in each] == wanted, encoding
    assert len({job.experiment.recipe.seed for job in RECIPES["larger"](SCALES["small"]).jobs}) == 3


def test_riflex_is_for_more_frames():
    for encoding, each in _conditions("larger-video").items():
        assert (each[0].num_frames, each[0].size, each[0].scaling) == (4, (32, 32), "none")
        of_time = [c for c in each if c.scaling == "riflex"]
        assert all(c.num_frames > 4 and c.method == ("riflex", "none", "none") for c in of_time)
        assert len(of_time) == (0 if encoding in ("none", "ape", "liere") else 4)
        assert {c.num_frames for c in each} == {4, 8, 12, 16} and {c.size[0] for c in each} == {32, 64, 96}


@pytest.mark.slow
def test_clips_from_the_recipe_to_its_tables(tmp_path):
    data = {"data": f"motion:{tmp_path / 'motion'}", "num_train": 32, "num_test": 16}
    scale = SCALES["demo"].changed(**data, encodings=("none", "comrope-ld"), epochs=1)
    found = reproduce.run("larger-video", scale, tmp_path / "out", runs=tmp_path / "runs", parallel=0)
    tables = {table["name"]: table["rows"] for table in found["tables"]}
    heading, *rows = tables["larger-video"]
    assert [row[:3] for row in rows if row[0] == "No encoding"] == [
        ["No encoding", "1", m] for m in ("none", "entropy")
    ]
    assert {row[2] for row in rows if row[0] == "ComRoPE-LD"} == {"none", *CLIP_METHODS}
    longer, larger = (heading.index(f"{name} mean") for name in ("8×32×32", "4×64×64"))
    by_method = {row[2]: row for row in rows if row[:2] == ["ComRoPE-LD", "1"]}
    assert by_method["riflex"][longer] is not None and by_method["riflex"][larger] is None
    minus, *differences = tables["larger-video-differences"]
    for row in differences:
        if row[:2] == ["ComRoPE-LD", "1"]:
            expected = by_method[row[2]][longer] - by_method["none"][longer]
            assert row[minus.index("8×32×32 mean")] == pytest.approx(expected)
    run = next(r for r in found["runs"] if r["experiment"]["encoding"] == "comrope-ld")
    (row,) = (
        r for r in run["evaluation"] if (r["num_frames"], r["size"], r["scaling"]) == (8, [32, 32], "extrapolate")
    )
    assert by_method["extrapolate"][longer] == pytest.approx(100 * row["correct"] / 16)
    assert (tmp_path / "out" / "larger-video.svg").stat().st_size > 0
