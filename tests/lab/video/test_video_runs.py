"""Runs on clips from end to end: from a folder as UCF-101 comes, and measured under other conditions."""

import json
from dataclasses import replace

import pytest
import torch

import comrope
from comrope.errors import ComropeError, DataError
from comrope.lab import runs
from comrope.lab.checkpoints import Checkpoints
from comrope.lab.experiment import ExperimentConfig, Recipe
from comrope.lab.rng import Stream, generator
from comrope.lab.train import train
from comrope.lab.video import problem
from comrope.lab.video.config import VideoConfig, VideoOptions
from comrope.lab.video.problem import MOVES, Condition
from tests.lab.video.helpers import quick, ucf101

pytestmark = pytest.mark.slow

CONDITIONS = [
    *problem.conditions(VideoConfig(), VideoOptions(resolutions=("32", "16x40"), frames=(4, 2))),
    Condition((32, 32), 0.5, num_frames=4),
    Condition((32, 32), 0.5, "first-axis", num_frames=4),
    Condition((32, 32), perturbation=1.0, num_frames=4),
]


def test_a_folder_as_ucf101_comes_from_end_to_end(tmp_path):
    root = ucf101(tmp_path / "ucf")
    (root / "UCF-101" / "Archery" / "v_Archery_g02_c01.avi").write_bytes(b"damaged")
    recipe = Recipe(epochs=2, batch_size=4)
    experiment = VideoConfig(data=str(root), model="tiny", num_frames=4, image_size=(24, 32), recipe=recipe)
    with pytest.raises(DataError, match=r"v_Archery_g02_c01\.avi cannot be read"):
        runs.run(experiment, CONDITIONS[:1], tmp_path / "strict")
    result = runs.run(experiment, CONDITIONS, tmp_path / "run", unreadable="skip")
    assert result == runs.read(tmp_path / "run") == json.loads(json.dumps(result))
    assert len(result["history"]) == 2 and result["kind"] == "video"
    assert [(row["total"], row["skipped"]) for row in result["evaluation"]] == [(3, 1)] * len(CONDITIONS)
    assert runs.experiment_of(tmp_path / "run") == experiment
    assert all(layer["holds"] for layer in result["check"])


def test_from_the_command_line(tmp_path, comrope):
    data = ("--data", str(ucf101(tmp_path / "ucf")), "--model", "tiny", "--num-frames", "4", "--image-size", "24", "32")
    run = str(tmp_path / "run")
    for arguments in (
        ("train", "video", *data, "--encoding", "ape", "--epochs", "1", "--batch-size", "4", "--out", run),
        ("evaluate", "video", run, "--resolutions", "16x24", "--frames", "2", "6"),
        ("evaluate", "video", run, "--frames", "4", "6", "--scalings", "riflex", "entropy"),
    ):
        code, _, err = comrope(*arguments)
        assert code == 0, err
    rows = runs.read(tmp_path / "run")["evaluation"]
    assert [(row["size"], row["num_frames"], row["scaling"], row["total"]) for row in rows] == [
        ([24, 32], 4, "none", 4),
        ([16, 24], 2, "none", 4),
        ([16, 24], 6, "none", 4),
        ([24, 32], 6, "riflex", 4),
        ([24, 32], 6, "entropy", 4),
    ]


def test_conditions_are_told_apart_and_measured_once(tmp_path):
    experiment = quick(tmp_path / "motion")
    first = runs.run(experiment, CONDITIONS[:2], tmp_path / "run")
    again = runs.run(experiment, CONDITIONS, tmp_path / "run")
    assert again["evaluation"][:2] == first["evaluation"] and len(again["evaluation"]) == len(CONDITIONS)
    assert [[c.describes(row) for c in CONDITIONS].index(True) for row in again["evaluation"]] == list(range(7))
    assert [(row["size"], row["num_frames"]) for row in again["evaluation"][:4]] == [
        ([32, 32], 4),
        ([32, 32], 2),
        ([16, 40], 4),
        ([16, 40], 2),
    ]
    assert again["evaluation"][4]["changed"] == again["evaluation"][5]["changed"] == 0  # ComRoPE sees no offset


def test_readers_change_nothing(tmp_path):
    experiment = quick(tmp_path / "motion")
    alone, read = (runs.run(experiment, CONDITIONS[:2], tmp_path / str(n), num_workers=n) for n in (0, 2))
    assert alone["history"] == read["history"] and alone["evaluation"] == read["evaluation"]


def test_frames_are_held_still_and_patches_move(tmp_path):
    """What the model is given in training: every step anew, along rows and columns, within the patch."""
    experiment = quick(tmp_path / "motion")
    clips, _ = problem.datasets(experiment)
    model = problem.build(experiment, clips)
    task, seen = problem.task(model, clips, clips, experiment), []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    batch = task.dataset.__getitems__([(0, i, 0) for i in range(4)])
    for step in (0, 0, 1):
        task.loss(model, batch, generator(0, Stream.PERTURBATION, step))
    moved = seen[0] - model.positions((4, 32, 32))
    assert (moved[:, 0] == 0).all() and (moved[0] == 0).all()
    assert moved[1:, 1:].abs().min() > 0 and moved.abs().max() <= 0.5 / 4
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert MOVES == (False, True, True)


def test_offset_and_perturbation_reach_the_model(tmp_path):
    experiment = quick(tmp_path / "motion")
    _, clips = problem.datasets(experiment)
    model, seen = problem.build(experiment, clips).eval(), []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1:]))
    still = model.positions((4, 32, 32))
    next(problem.evaluate(model, clips, [Condition((32, 32), 2.0, "first-axis", num_frames=4)]))
    assert torch.equal(seen[0][0], still)  # to compare labels with
    assert torch.equal(seen[-1][0].float() - still, torch.tensor([2.0, 0, 0]).expand_as(still))
    next(problem.evaluate(model, clips, [Condition((32, 32), perturbation=1.0, num_frames=4)]))
    step = seen[-1][0] - still
    assert step.shape == (10, 65, 3) and (step[..., 0] == 0).all() and step[:, 1:, 1:].abs().min() > 0


def test_checkpoints_hold_with_any_encoding_of_three_axes(tmp_path):
    for encoding in comrope.encodings.ENCODINGS:
        experiment = quick(tmp_path / "motion", encoding=encoding)
        clips, _ = problem.datasets(experiment)
        model = problem.build(experiment, clips)
        train(
            model,
            problem.task(model, clips, clips, experiment),
            experiment.recipe,
            checkpoints=Checkpoints(tmp_path / encoding),
        )
        assert (tmp_path / encoding / "step-3").is_dir()


def test_names_tell_kinds_and_settings_apart(tmp_path):
    base = VideoConfig()
    names = [replace(base, **c).name for c in ({}, {"num_frames": 4}, {"split": 2}, {"flip": False}, {"block_size": 4})]
    assert len(set(names)) == 5 and all(name.startswith("video-comrope-ld") for name in names)
    assert isinstance(base, ExperimentConfig) and VideoConfig.from_json(json.loads(json.dumps(base.to_json()))) == base


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "huge"}, "model='huge': expected one of tiny, small, paper"),
        ({"flip": True}, "flip=True with data='motion'"),
        ({"data": "nowhere"}, "data='nowhere': expected motion"),
        ({"image_size": (30, 32)}, r"images of \(30, 32\) pixels"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, changes, message):
    experiment = replace(quick(tmp_path / "motion"), **changes)
    with pytest.raises(ComropeError, match=message):
        runs.run(experiment, [], tmp_path / "run")
