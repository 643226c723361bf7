"""A generated detection data set in COCO's layout: handwritten digits on photographs.

Digits of scikit-learn are drawn at random positions and scales on crops of its two photographs; boxes and masks are
exact. Training and test scenes have different digits and different parts of the photographs. A scene depends on its
split and number alone.
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
from comrope.lab.results import atomic_folder
from comrope.lab.rng import Stream, seed_for

EDGE, LONGEST = 96, 128
"""Shorter side of a scene, and the largest longer side, in pixels."""
SMALLEST, LARGEST = 24, 84
"""Edges of the smallest and the largest digit in pixels. Sizes are uniform on a logarithmic scale."""
SPLITS = ("train", "val")
CLASSES = ("0", "1", "4")
"""The digits that look least alike, so that a small detector learns to tell them apart within minutes."""
_INK_THRESHOLD, _NUM_TRIES, _EMPTY_SHARE = 0.45, 20, 0.05
"""Grey value above which a pixel is ink; attempts to place a digit; share of scenes without digits."""


def scenes(folder: Path, num_train: int = 400, num_val: int = 100) -> Path:
    """Returns the folder of these scenes in COCO's layout. It is generated below `folder` if it does not exist.

    The folder is written atomically, also if several processes generate it at the same time.

    Raises:
        DataError: a number is less than 1, or the folder cannot be written.
    """
    if min(num_train, num_val) < 1:
        raise DataError(f"scenes: got {num_train} to train on and {num_val} to test, expected at least one of each.")
    whole = folder / f"{num_train}-{num_val}"
    if whole.is_dir():
        return whole
    lock = folder / f".{whole.name}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            try:
                if not whole.is_dir():  # another process may have been first
                    with atomic_folder(whole) as draft:
                        photographs = [image.astype(np.float32) / 255 for image in load_sample_images().images]
                        for split, num, glyphs in zip(range(2), (num_train, num_val), digits(), strict=True):
                            _write(draft, split, num, photographs, _of_classes(glyphs))
            finally:
                lock.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{whole} cannot be written: {error}.") from error
    return whole


def _of_classes(glyphs: Images) -> Images:
    """Returns the digits of CLASSES, labelled by their index there."""
    wanted = [glyphs.classes.index(name) for name in CLASSES]
    kept = [at for at, label in enumerate(glyphs.labels.tolist()) if label in wanted]
    labels = torch.tensor([wanted.index(int(glyphs.labels[at])) for at in kept])
    return Images(glyphs.pixels[kept], labels, CLASSES)


def scene(
    split: int, number: int, photographs: list[np.ndarray], glyphs: Images
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Returns pixels (height, width, 3), uint8, and the label and mask (height, width) of each digit; digits do not overlap."""
    rng = np.random.Generator(np.random.PCG64(seed_for(0, Stream.SCENES, split, number)))
    shape = [EDGE, int(rng.integers(EDGE, LONGEST + 1))]
    height, width = shape if rng.random() < 0.5 else shape[::-1]
    image = _crop(rng, photographs, split, height, width)
    occupied = np.zeros((height, width), dtype=bool)
    placed = []
    for _ in range(0 if rng.random() < _EMPTY_SHARE else int(rng.integers(1, 7))):
        which = int(rng.integers(len(glyphs)))
        size = round(SMALLEST * (LARGEST / SMALLEST) ** rng.random())
        shape = _glyph_mask(glyphs, which, size)
        colour = rng.uniform(0.0, 0.35, 3)
        for _ in range(_NUM_TRIES):
            top, left = (int(rng.integers(0, edge - size + 1)) for edge in (height, width))
            window = (slice(top, top + size), slice(left, left + size))
            if not occupied[window].any():
                bright = image[window].mean() < 0.5
                image[window][shape] = 1 - colour if bright else colour
                mask = np.zeros((height, width), dtype=bool)
                mask[window] = shape
                occupied[window] = True
                placed.append((int(glyphs.labels[which]), mask))
                break
    return (image * 255).round().astype(np.uint8), placed


def _crop(rng: np.random.Generator, photographs: list[np.ndarray], split: int, height: int, width: int) -> np.ndarray:
    """Returns a crop of a photograph: from its left two thirds for training, from its right third for testing."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    border = photograph.shape[1] * 2 // 3
    part = photograph[:, :border] if split == 0 else photograph[:, border:]
    top, left = (int(rng.integers(0, n - edge + 1)) for n, edge in zip(part.shape, (height, width), strict=False))
    return part[top : top + height, left : left + width].copy()


def _glyph_mask(glyphs: Images, which: int, size: int) -> np.ndarray:
    """Returns the pixels that a digit covers, (size, size), bool."""
    grey = (glyphs.pixels[which] + 1) / 2  # (1, 8, 8)
    large = torch.nn.functional.interpolate(grey[None], (size, size), mode="bicubic", align_corners=False)
    return (large[0, 0] > _INK_THRESHOLD).numpy()


def _write(folder: Path, split: int, num: int, photographs: list[np.ndarray], glyphs: Images) -> None:
    """Writes the images and the annotations of a split."""
    name = f"{SPLITS[split]}2017"
    (folder / "images" / name).mkdir(parents=True)
    images, annotations = [], []
    for number in range(num):
        pixels, placed = scene(split, number, photographs, glyphs)
        file = f"{number + 1:06d}.png"
        Image.fromarray(pixels).save(folder / "images" / name / file)
        images.append({"id": number + 1, "file_name": file, "height": pixels.shape[0], "width": pixels.shape[1]})
        for label, mask in placed:
            about = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": label + 1, "iscrowd": 0}
            annotations.append(about | _shape(mask))
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(glyphs.classes)]
    found = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(found), encoding="utf-8")


def _shape(mask: np.ndarray) -> dict[str, Any]:
    """Returns box, area and segmentation of a mask, as fields of an annotation."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
    (lengths,) = rle.encode(np.asfortranarray(mask[..., None].astype(np.uint8)))
    counts = lengths["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    segmentation = {"size": list(mask.shape), "counts": counts}
    return {"bbox": box, "area": math.floor(mask.sum()), "segmentation": segmentation}
