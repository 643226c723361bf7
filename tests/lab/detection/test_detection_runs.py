"""Detection from data to result: it learns, and its precision is measured anew from the weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from comrope.errors import DataError
from comrope.lab import reproduce, runs
from comrope.lab.detection import problem
from comrope.lab.detection.coco import Batch
from comrope.lab.detection.config import DetectionConfig, DetectionOptions
from comrope.lab.detection.metric import NAMES
from comrope.lab.experiment import Recipe
from comrope.lab.reproduce import detection
from comrope.lab.reproduce.scales import SCALES
from comrope.lab.study import run_all
from tests.lab.detection.helpers import coco_folder, experiment

pytestmark = pytest.mark.slow

PARTS = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, scenes) -> Path:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    about = experiment(scenes)
    runs.run(about, problem.conditions(about), folder)
    return folder


def test_every_epoch_has_its_losses_and_its_precision(whole, scenes):
    result = runs.read(whole)
    assert json.loads(json.dumps(result)) == result
    assert [row["epoch"] for row in result["history"]] == [1, 2]
    for row in result["history"]:
        assert row.keys() >= {"loss", "skipped", *PARTS, *NAMES}
        assert row["loss"] == pytest.approx(sum(row[part] for part in PARTS), rel=1e-5)
    # The last epoch's precision is the run's own, measured again from the weights on disk.
    (row,) = result["evaluation"]
    assert {name: row[name] for name in NAMES} == {name: result["history"][-1][name] for name in NAMES}
    assert (row["short"], row["long"], row["images"], row["skipped"]) == (96, 128, 5, 0)
    assert len(row["examples"]) == 5 and row["detections"] > 0
    assert runs.experiment_of(whole) == experiment(scenes)
    assert result["name"].startswith("detection-comrope-ld-seed0-")


def test_training_lowers_the_loss_and_reaches_every_weight(scenes):
    about = experiment(scenes, num_train=4, num_test=1, recipe=Recipe(batch_size=4))
    images = problem.datasets(about)[0]
    model = problem.build(about, images).train()
    task = problem.task(model, images, images, about)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    losses = []
    for step in range(30):
        torch.manual_seed(step)
        batch = task.dataset.__getitems__([(0, index, 0) for index in range(4)])
        loss, _ = task.loss(model, batch, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("head", ["boxes", "masks"])
def test_a_batch_of_damaged_images_teaches_nothing(tmp_path, head):
    about = experiment(coco_folder(tmp_path / "coco"), head=head)
    images = problem.datasets(about)[0]
    model = problem.build(about, images).train()
    loss, means = problem.task(model, images, images, about).loss(model, Batch([], [], ("0.jpg",)), torch.Generator())
    loss.backward()
    assert (loss.item(), means.count, means.skipped) == (0, 0, 1)
    gradients = [weights.grad for weights in model.parameters() if weights.grad is not None]
    assert gradients and not any(gradient.any() for gradient in gradients)


def test_a_folder_laid_out_as_coco_end_to_end_with_masks(tmp_path):
    root = coco_folder(tmp_path / "coco")
    (root / "images" / "train2017" / "0.jpg").write_bytes(b"no picture")
    (root / "images" / "val2017" / "1.jpg").unlink()
    changes = {"head": "masks", "short_edges": (48, 64), "long_edge": 96, "num_test": 6}
    about = experiment(root, "rope-mixed", recipe=Recipe(epochs=2, batch_size=3), **changes)
    with pytest.raises(DataError, match=r"lacks 1 of 6 images \(1\.jpg"):
        runs.run(about, [], tmp_path / "run")
    asked = problem.conditions(about, DetectionOptions(resolutions=("48x96", "32x64")))
    result = runs.run(about, asked, tmp_path / "run", unreadable="skip")
    assert result["history"][0]["skipped"] == 1
    assert result["history"][0]["loss_mask"] > 0
    assert [(row["short"], row["long"], row["images"], row["skipped"]) for row in result["evaluation"]] == [
        (48, 96, 5, 1),
        (32, 64, 5, 1),
    ]
    assert all(row.keys() >= {f"mask {name}" for name in NAMES} for row in result["evaluation"])


def test_table_2_and_figure_4_at_the_scale_of_a_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scale = replace(SCALES["demo"].changed(encodings=("ape", "comrope-ld")), few_seeds=(0, 1))
    made = {}
    for recipe in (detection.table2, detection.fig4):
        study = recipe(scale)
        results = run_all(study.jobs, tmp_path / "runs-demo", parallel=0)
        made[recipe.__name__] = study.outcome(results)
        assert all(json.loads(json.dumps(result)) == result for result in results)
    assert len(list((tmp_path / "runs-demo").iterdir())) == 2 + 2 * 2  # both recipes share them
    table, against = made["table2"].tables
    assert [row[:3] for row in table.rows] == [
        ("APE", "ours", 2),
        ("APE", "paper", 1),
        ("ComRoPE-LD", "ours", 2),
        ("ComRoPE-LD", "paper", 1),
    ]
    assert table.rows[3][3:] == (44.7, 67.6, 48.5, 29.2, 47.1, 60.0) and table.rows[0][-1] is None
    assert [row[0] for row in against.rows] == ["ComRoPE-LD"]
    (iterations,) = made["fig4"].tables
    goals = [
        r["history"][-1]["AP"] for r in results if r["kind"] == "detection" and r["experiment"]["encoding"] == "ape"
    ]
    assert iterations.rows[0][1] == f"{sum(goal > 0 for goal in goals)} of 2" and iterations.rows[1][-1] == "71"
    for outcome, name in ((made["table2"], "table2-examples"), (made["fig4"], "fig4")):
        outcome.figures[name].savefig(tmp_path / f"{name}.png")
        assert outcome.notes[0].count("ViTDet") == 1
        assert all(len(row) == len(t.columns) for t in outcome.tables for row in t.rows)
    assert reproduce.SCALES.keys() == detection.DETECTION.keys()


def test_iterations_are_where_the_line_between_epochs_meets_the_goal():
    share = detection._share
    assert share([10.0, 20.0, 30.0, 40.0], 40.0) == 1.0
    assert share([10.0, 30.0, 40.0, 50.0], 20.0) == pytest.approx(1.5 / 4)
    assert share([10.0, 20.0], 30.0) is None
    assert share([0.0, 1.0], 0.0) is None  # nothing to be reached


def test_a_changed_scale_changes_every_training():
    jobs = detection.table2(SCALES["demo"].changed(data="scenes:here", epochs=7, encodings=("ape",))).jobs
    assert [job.experiment.recipe.epochs for job in jobs] == [7] * len(jobs)
    assert {job.experiment.data for job in jobs if job.experiment.kind == "detection"} == {"scenes:here"}


def test_the_papers_setting_is_read_from_coco(tmp_path):
    scale = SCALES["paper"].changed(data=str(tmp_path), encodings=("comrope-ld",))
    (about,) = (job.experiment for job in detection.table2(scale).jobs)
    assert isinstance(about, DetectionConfig) and (about.start, about.init) == ("pretrained", "identity")
    with pytest.raises(DataError, match=r"instances_train2017\.json does not exist"):
        problem.datasets(about)
    model = problem.build(replace(about, start=None), problem.CocoSet(coco_folder(tmp_path / "coco"), "train"))
    assert sum(p.numel() for p in model.parameters()) > 22e6
    assert model.roi_heads.has_mask() and model.backbone.pyramid.strides == (4, 8, 16, 32, 64)
