"""What the loop promises of every problem, in one place: resumed to the same bits, and in two processes as in one."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from comrope.lab import runs
from comrope.lab.classification import plain
from comrope.lab.experiment import ExperimentConfig, Recipe
from comrope.lab.kinds import KINDS
from comrope.lab.text.problem import Condition as Windows
from comrope.lab.video.config import VideoConfig
from comrope.lab.video.problem import Condition as Clips
from tests.lab.data.helpers import write_image_splits, write_images, write_rows
from tests.lab.detection.helpers import experiment as detection
from tests.lab.helpers import QUICK
from tests.lab.text.helpers import quick as text
from tests.lab.text.helpers import write_texts
from tests.lab.video.helpers import ucf101
from tests.processes import in_two_processes

pytestmark = pytest.mark.slow

Case = tuple[ExperimentConfig, list[Any], dict[str, Any]]
"""A configuration, the conditions to evaluate under, and settings of the run."""


def _images(folder: Path) -> Case:
    config = replace(QUICK, encoding="comrope-ld", recipe=replace(QUICK.recipe, epochs=10))
    return config, plain([(8, 8)]), {"micro_batch": 5}


def _video(folder: Path) -> Case:
    """A damaged clip is left out, so that one of two processes has nothing to learn from in a part of a step."""
    root = ucf101(folder / "ucf")
    (root / "UCF-101" / "Archery" / "v_Archery_g01_c01.avi").write_bytes(b"damaged")
    recipe = Recipe(epochs=6, batch_size=4)
    config = VideoConfig(data=str(root), model="tiny", num_frames=4, image_size=(24, 32), recipe=recipe)
    return config, [Clips((24, 32), num_frames=4)], {"micro_batch": 1, "unreadable": "skip"}


def _detection(folder: Path) -> Case:
    config = detection(f"scenes:{folder / 'scenes'}")
    return config, list(config.problem.conditions(config)), {}


def _text(folder: Path) -> Case:
    return text(write_texts(folder / "texts")), [Windows(32), Windows(128, "yarn")], {}


def _image_rows(folder: Path, streaming: str = "") -> Case:
    """Of Hugging Face's `datasets`, in four files; one row is damaged and left out."""
    rows = write_image_splits(folder / "rows")
    write_images(rows / "train-bad.parquet", 10, first=100, bad=True)
    config = replace(QUICK, data=f"hf:{rows}{streaming}", num_train=40, num_test=None, encoding="comrope-ld")
    config = replace(config, recipe=replace(QUICK.recipe, batch_size=10))
    return config, plain([(8, 8)]), {"micro_batch": 5, "unreadable": "skip"}


def _image_stream(folder: Path) -> Case:
    return _image_rows(folder, ",streaming,buffer_size=8")


def _text_rows(folder: Path, streaming: str = "") -> Case:
    rows = {"text": [path.read_text(encoding="utf-8") for path in sorted(write_texts(folder / "texts").rglob("*.txt"))]}
    for part in ("train-0", "train-1", "test"):
        write_rows(folder / "rows" / f"{part}.parquet", rows)
    return text(Path(f"hf:{folder / 'rows'}{streaming}")), [Windows(32), Windows(128, "yarn")], {}


def _text_stream(folder: Path) -> Case:
    return _text_rows(folder, ",streaming,buffer_size=2")


CASES = {
    "images": _images,
    "video": _video,
    "detection": _detection,
    "text": _text,
    "images in rows": _image_rows,
    "images in a stream": _image_stream,
    "text in rows": _text_rows,
    "text in a stream": _text_stream,
}


def test_every_problem_is_tested():
    assert {name.split()[0] for name in CASES} == KINDS.keys()


@pytest.mark.parametrize("kind", CASES)
def test_stopped_it_resumes_to_the_same_bits(tmp_path, kind):
    config, conditions, settings = CASES[kind](tmp_path)
    whole = runs.run(config, conditions, tmp_path / "whole", **settings)
    for last in (2, 4):

        def stop(stage: str, done: int, total: int, speed: float, last: int = last) -> None:
            if stage == "training" and done == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            runs.run(config, [], tmp_path / "run", save_every=1, on_progress=stop, **settings)
        assert not (tmp_path / "run" / "weights.safetensors").exists()
    steps: list[int] = []
    told = {"on_progress": lambda stage, done, *_: steps.append(done) if stage == "training" else None}
    resumed = runs.run(config, conditions, tmp_path / "run", save_every=1, **settings, **told)
    assert min(steps) > 4 - 1, "it began again from the start"
    assert resumed["history"] == whole["history"] and resumed["evaluation"] == whole["evaluation"]
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


def _run_as_launched(rank: int, config: ExperimentConfig, conditions: list, settings: dict, folder: Path) -> dict:
    """In a process of which there are two, with what torchrun tells it; test_paper_scale.py calls torchrun itself."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    runs.run(config, conditions, folder, **settings)
    return {}


@pytest.mark.parametrize("kind", CASES)
def test_two_processes_do_what_one_does(tmp_path, kind):
    config, conditions, settings = CASES[kind](tmp_path)
    alone = runs.run(config, [], tmp_path / "one", **settings)
    in_two_processes(_run_as_launched, tmp_path, config, conditions, settings, tmp_path / "two")
    both = runs.read(tmp_path / "two")
    assert both["timing"]["processes"] == 2
    assert [row["skipped"] for row in both["history"]] == [row["skipped"] for row in alone["history"]]
    if kind == "detection":  # boxes to learn from are drawn in each process
        assert all(weights.isfinite().all() for weights in load_file(tmp_path / "two" / "weights.safetensors").values())
    else:
        for row, other in zip(both["history"], alone["history"], strict=True):
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
        weights, expected = (load_file(tmp_path / name / "weights.safetensors") for name in ("two", "one"))
        assert weights.keys() == expected.keys()
        for name, value in weights.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=5e-5, msg=name)
    # Every sample counted once: what one process finds with these weights.
    test = config.problem.datasets(config, settings.get("unreadable", "fail"))[1]
    rows = list(config.problem.evaluate(runs.load_run(tmp_path / "two", test), test, conditions))
    for row, expected_row in zip(both["evaluation"], rows, strict=True):
        assert row.keys() == expected_row.keys()
        for name, value in row.items():
            other = expected_row[name]
            assert value == (pytest.approx(other, rel=1e-6) if isinstance(other, float) else other), name
