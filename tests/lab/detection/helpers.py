"""What the tests of detection share: tiny experiments, scenes made once, and a folder laid out as COCO is, by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from comrope.lab.detection import problem
from comrope.lab.detection.config import DetectionConfig
from comrope.lab.detection.detector import Detector
from comrope.lab.experiment import Recipe

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]  # as COCO's: with gaps, and here in no order


def experiment(data: Path | str, encoding: str = "comrope-ld", **changes) -> DetectionConfig:
    """Two epochs of three steps on twelve scenes, or of COCO's folder by hand."""
    settings: dict[str, Any] = {"num_train": 12, "num_test": 5} if str(data).startswith("scenes") else {}
    recipe = changes.pop("recipe", Recipe(epochs=2, batch_size=4, learning_rate=2e-3))
    settings |= {"model": "tiny", "encoding": encoding, "recipe": recipe} | changes
    return DetectionConfig(data=str(data), **settings)


def detector(encoding: str, data: str, **changes) -> Detector:
    """A detector in float64 whose angles are far from zero, and whose weights are large enough for them to matter."""
    about = experiment(data, encoding, init="normal", **changes)
    model = problem.build(about, problem.datasets(about)[0]).double().eval()
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoding" not in name:
                scale = 0.3 if "trunk" in name else 0.1
                parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64), alpha=scale)
    return model


def coco_folder(root: Path, *, bare: bool = False) -> Path:
    """Six images a split: with polygons, run lengths, a crowd, nothing, a box without area, and one over the border.

    bare: images in train2017/, as COCO's archives unpack, not in images/train2017/.
    """
    for split in ("train", "val"):
        name = f"{split}2017"
        folder = root / name if bare else root / "images" / name
        folder.mkdir(parents=True)
        images, annotations = [], []
        for number in range(6):
            height, width = (48, 64) if number % 2 else (64, 40)
            pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
            images.append({"id": 100 - number, "file_name": f"{number}.jpg", "height": height, "width": width})
            annotations += [about | {"image_id": 100 - number} for about in _objects(number, height, width)]
        for number, annotation in enumerate(annotations):
            annotation["id"] = number  # from 0 on, which COCO's metric does not take as it is
        (root / "annotations").mkdir(exist_ok=True)
        found = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(found))
    return root


def _objects(number: int, height: int, width: int) -> list[dict[str, Any]]:
    def box(x: float, y: float, w: float, h: float, category: int = 18, **more) -> dict[str, Any]:
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        about = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [corners]}
        return about | {"category_id": category} | more

    whole = {"size": [height, width], "counts": [0, height * width]}  # run lengths, not compressed
    return [
        [box(4, 6, 20, 30), box(10, 20, 8, 8, 3)],
        [box(2, 2, 24, 24, segmentation=whole), box(0, 0, width, height, iscrowd=1, segmentation=whole)],
        [],
        [box(8, 8, 0, 12), box(8, 8, 12, 12, 3)],
        [box(-4, 10, 20, 60)],
        [box(0, 0, width, height)],
    ][number]
