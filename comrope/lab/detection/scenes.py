"""The embedded data set: handwritten digits on photographs, composed on the spot and written as COCO is.

Digits of scikit-learn lie at random places and scales on crops of its two photographs; boxes and masks are exact. Training
and testing have different digits and different parts of the photographs. A scene depends on its split and number alone.
"""

import json
import math
from pathlib import Path
from typing import Any

import faster_coco_eval.core.mask as rle
import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from sklearn.datasets import load_sample_images

from comrope.errors import DataError
from comrope.lab.images.in_memory import Images, digits
from comrope.lab.results import atomic_folder, refuse_file, writing
from comrope.lab.rng import Stream, seed_for

EDGE, LONGEST = 96, 128
"""Pixels of a scene: its shorter side, and the longer one at most."""
SMALLEST, LARGEST = 24, 84
"""Pixels of a digit's canvas, drawn evenly on a logarithmic scale."""
SPLITS = ("train", "val")
CLASSES = ("0", "1", "4")
"""Digits that look least alike, so that a small detector has learned to tell them apart after minutes."""
_INK, _TRIES, _EMPTY = 0.45, 20, 0.05


def scenes(folder: Path, num_train: int = 400, num_val: int = 100) -> Path:
    """The folder of so many scenes, laid out as COCO, which is composed below `folder` where it is not there yet.

    It appears whole or not at all, whoever else is at it.

    Raises:
        DataError: it cannot be written.
    """
    if min(num_train, num_val) < 1:
        raise DataError(f"scenes: got {num_train} to train on and {num_val} to test, expected at least one of each.")
    whole = folder / f"{num_train}-{num_val}"
    if whole.is_dir():
        return whole
    refuse_file(whole)
    with writing(whole, "nothing was left there"):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{whole.name}.lock"):
            if not whole.is_dir():  # another process may have been first
                with atomic_folder(whole) as draft:
                    photographs = [image.astype(np.float32) / 255 for image in load_sample_images().images]
                    for split, num, ink in zip(range(2), (num_train, num_val), digits(), strict=True):
                        _write(draft, split, num, photographs, _known(ink))
    return whole


def _known(ink: Images) -> Images:
    """The digits of CLASSES, labelled by their place there."""
    wanted = [ink.classes.index(name) for name in CLASSES]
    kept = [at for at, label in enumerate(ink.labels.tolist()) if label in wanted]
    labels = torch.tensor([wanted.index(int(ink.labels[at])) for at in kept])
    return Images(ink.pixels[kept], labels, CLASSES)


def scene(
    split: int, number: int, photographs: list[np.ndarray], ink: Images
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Pixels (height, width, 3), uint8, and the label and mask (height, width) of each digit on them, none hidden."""
    random = np.random.Generator(np.random.PCG64(seed_for(0, Stream.SCENES, split, number)))
    shape = [EDGE, int(random.integers(EDGE, LONGEST + 1))]
    height, width = shape if random.random() < 0.5 else shape[::-1]
    canvas = _crop(random, photographs, split, height, width)
    taken = np.zeros((height, width), dtype=bool)
    placed = []
    for _ in range(0 if random.random() < _EMPTY else int(random.integers(1, 7))):
        which = int(random.integers(len(ink)))
        size = round(SMALLEST * (LARGEST / SMALLEST) ** random.random())
        shape = _ink(ink, which, size)
        colour = random.uniform(0.0, 0.35, 3)
        for _ in range(_TRIES):
            top, left = (int(random.integers(0, edge - size + 1)) for edge in (height, width))
            place = (slice(top, top + size), slice(left, left + size))
            if not taken[place].any():
                bright = canvas[place].mean() < 0.5
                canvas[place][shape] = 1 - colour if bright else colour
                mask = np.zeros((height, width), dtype=bool)
                mask[place] = shape
                taken[place] = True
                placed.append((int(ink.labels[which]), mask))
                break
    return (canvas * 255).round().astype(np.uint8), placed


def _crop(
    random: np.random.Generator, photographs: list[np.ndarray], split: int, height: int, width: int
) -> np.ndarray:
    """Of the left two thirds of a photograph in training, of the right third in testing."""
    photograph = photographs[int(random.integers(len(photographs)))]
    border = photograph.shape[1] * 2 // 3
    part = photograph[:, :border] if split == 0 else photograph[:, border:]
    top, left = (int(random.integers(0, n - edge + 1)) for n, edge in zip(part.shape, (height, width), strict=False))
    return part[top : top + height, left : left + width].copy()


def _ink(ink: Images, which: int, size: int) -> np.ndarray:
    """Where a digit's ink is on a canvas of size × size pixels."""
    grey = (ink.pixels[which] + 1) / 2  # (1, 8, 8)
    large = torch.nn.functional.interpolate(grey[None], (size, size), mode="bicubic", align_corners=False)
    return (large[0, 0] > _INK).numpy()


def _write(folder: Path, split: int, num: int, photographs: list[np.ndarray], ink: Images) -> None:
    name = f"{SPLITS[split]}2017"
    (folder / "images" / name).mkdir(parents=True)
    images, annotations = [], []
    for number in range(num):
        pixels, placed = scene(split, number, photographs, ink)
        file = f"{number + 1:06d}.png"
        Image.fromarray(pixels).save(folder / "images" / name / file)
        images.append({"id": number + 1, "file_name": file, "height": pixels.shape[0], "width": pixels.shape[1]})
        for label, mask in placed:
            about = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": label + 1, "iscrowd": 0}
            annotations.append(about | _shape(mask))
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(ink.classes)]
    found = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(found), encoding="utf-8")


def _shape(mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
    (lengths,) = rle.encode(np.asfortranarray(mask[..., None].astype(np.uint8)))
    counts = lengths["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    segmentation = {"size": list(mask.shape), "counts": counts}
    return {"bbox": box, "area": math.floor(mask.sum()), "segmentation": segmentation}
