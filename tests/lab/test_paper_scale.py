"""`--scale paper` as on a cluster, but for the data: ViT-B/16 at 224, the real loop, two real processes, a tiny ImageFolder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """Crops of two photographs, which are the classes, of different sizes and proportions; one file is damaged."""
    root = tmp_path_factory.mktemp("imagenet")
    for name, photograph in zip(("flower", "temple"), load_sample_images().images[::-1], strict=True):
        for split, count in (("train", 2), ("val", 1)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                crop = Image.fromarray(photograph).crop((20 * i, 10 * i, 20 * i + 250 + 30 * i, 10 * i + 300))
                crop.save(root / split / name / f"{i}.jpg")
    (root / "train" / "temple" / "1.jpg").write_bytes(b"no image")
    return root


def test_table1_at_the_papers_scale_in_two_processes(imagenet, tmp_path):
    out = tmp_path / "table1"
    arguments = f"reproduce table1 --scale paper --data {imagenet} --encodings comrope-mt --out {out} --unreadable skip"
    small = "--epochs 1 --batch-size 4 --micro-batch 2"
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2 -m comrope"
    command = [sys.executable, *f"{launcher} {arguments} {small}".split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((out / "results.json").read_text("utf-8"))
    (run,) = found["runs"]
    settings = run["experiment"]
    assert settings["model"] == "vit-b/16" and settings["image_size"] == [224, 224]
    assert settings["recipe"]["precision"] == "bf16" and run["timing"]["processes"] == 2
    assert 85e6 < run["num_parameters"] < 87e6
    (epoch,) = run["history"]
    assert epoch["skipped"] == 1  # of four images, and left out of the means
    sizes = [row["size"][0] for row in run["evaluation"]]
    assert sizes == [112, 128, 192, 224, 256, 320, 384, 448, 512]
    assert all(row["total"] == 2 for row in run["evaluation"])
    assert {"tables.md", "report.html", "table1.csv"} <= {p.name for p in out.iterdir()}
