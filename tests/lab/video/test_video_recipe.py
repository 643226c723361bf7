"""Table 3 from its recipe to its page, at the smallest scale."""

import pytest

from comrope.lab import reproduce
from comrope.lab.reproduce.paper import TABLE3
from comrope.lab.reproduce.video import VIDEO, table3

pytestmark = pytest.mark.slow

SCALE = reproduce.SCALES["demo"]


def test_the_demo_makes_tables_figures_and_strips(tmp_path):
    data = {"data": f"motion:{tmp_path / 'motion'}", "num_train": 64, "num_test": 32}
    scale = SCALE.changed(**data, encodings=("none", "ape", "rope", "comrope-ld"))
    found = reproduce.run("table3", scale, tmp_path / "out", runs=tmp_path / "runs", parallel=0)
    assert len(found["runs"]) == 8 and all(run["kind"] == "video" for run in found["runs"])
    tables = {table["name"]: table["rows"] for table in found["tables"]}
    heading, *rows = tables["table3"]
    assert [row[:3] for row in rows if row[2] == "paper"] == [
        [label, sigma, "paper"] for sigma in "10" for label in ("APE", "RoPE", "ComRoPE-LD")
    ]
    paper = next(row for row in rows if row[:3] == ["ComRoPE-LD", "1", "paper"])
    assert {94.24, 49.89} <= set(paper) and "32 [224] mean" in heading and "16 [112] mean" in heading
    by_frames = tables["table3-frames"]
    assert [cell for cell in by_frames[0] if "mean" in cell] == [f"{n} mean" for n in VIDEO["demo"].frames]
    assert len(by_frames) == 8
    assert [run["experiment"]["max_frequency"] for run in found["runs"]] == [None] * 7 + [4.0]  # 32 / 8 patches
    as_paper, counting = tables["table3-counting"][1:]
    rope = next(row for row in rows if row[:3] == ["RoPE", "1", "ours"])
    assert as_paper[2] == rope[heading.index("16 [112] mean")] and counting[0] == "a radian a patch"
    for name in ("table3-sizes.svg", "table3-frames.png", "table3-clips.png", "report.html", "tables.md"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    # The row of a number of frames is that run's own.
    run = found["runs"][0]
    reached = {r["num_frames"]: r["correct"] for r in run["evaluation"] if r["size"] == [32, 32]}
    at = by_frames[0].index("2 mean")
    assert by_frames[1][at] == pytest.approx(100 * reached[2] / 32)
    again = reproduce.run("table3", scale, tmp_path / "out", runs=tmp_path / "runs", parallel=0)
    assert [run["timing"] for run in again["runs"]] == [run["timing"] for run in found["runs"]]


def test_the_papers_numbers_and_protocol():
    assert len(TABLE3) == 10 and all(len(row) == 9 for row in TABLE3.values())
    assert TABLE3["comrope-ld", 1.0][512] == 60.39 and TABLE3["ape", 0.0][224] == 92.87
    experiment = VIDEO["paper"].experiment
    assert (experiment.num_frames, experiment.image_size, experiment.recipe.epochs) == (8, (224, 224), 80)
    assert (experiment.recipe.batch_size, experiment.recipe.learning_rate) == (768, 1.2e-4)
    for scale in VIDEO.values():
        trained = (scale.experiment.image_size, scale.experiment.num_frames)
        assert any((c.size, c.num_frames) == trained for c in scale.conditions)
        assert scale.experiment.num_frames in scale.frames
    shorter = table3(SCALE.changed(epochs=7, batch_size=4)).jobs[0].experiment.recipe
    assert (shorter.epochs, shorter.batch_size) == (7, 4)
    jobs = table3(reproduce.SCALES["small"]).jobs
    assert len({job.experiment.recipe.seed for job in jobs}) >= 3 and len({job.experiment for job in jobs}) == len(jobs)
