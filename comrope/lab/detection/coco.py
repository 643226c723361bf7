"""Data sets in COCO's layout: image files, and one JSON file of annotations for each split."""

import copy
import json
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faster_coco_eval.core.mask as rle
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import box_convert, clip_boxes_to_image
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxFormat

from comrope.errors import DataError
from comrope.lab.data.image_files import DAMAGE, rgb
from comrope.lab.data.labelled import leave_out
from comrope.lab.rng import Stream, generator

LAYOUT = (
    "annotations/instances_{train,val}2017.json with images in images/{train,val}2017 or {train,val}2017, as "
    "https://cocodataset.org/#download has them"
)
Target = dict[str, Tensor]


class CocoSet:
    """One split of a data set; images are indexed in the order of their ids.

    Args:
        root: the folder of both splits.
        split: "train" or "val".
        num: the number of images, the first ones; all if None.
        unreadable: whether an image that cannot be read raises an error ("fail"), or is skipped and named ("skip").
        mirrors: whether a mirrored image shows the same classes, so that training may flip it.
    Raises:
        DataError: a file is missing or damaged.
    """

    def __init__(
        self, root: Path, split: str, num: int | None = None, *, unreadable: str = "fail", mirrors: bool = True
    ):
        self.root, self.unreadable, self.mirrors = root, unreadable, mirrors
        file = root / "annotations" / f"instances_{split}2017.json"
        found = _read(file)
        _check(found, file)
        images = sorted(found["images"], key=lambda image: image["id"])
        if num is not None and not 1 <= num <= len(images):
            raise DataError(f"{file} has {len(images)} images: expected to take 1 to as many of them, got {num}.")
        self.images: list[dict[str, Any]] = images[:num]
        self.categories: list[dict[str, Any]] = sorted(found["categories"], key=lambda category: category["id"])
        self.classes = tuple(category["name"] for category in self.categories)
        self.annotations = _by_image(found["annotations"], images, self.categories, file)[: len(self.images)]
        self._labels = {category["id"]: label for label, category in enumerate(self.categories, 1)}
        folders = (root / "images" / f"{split}2017", root / f"{split}2017")
        self._folder = next((folder for folder in folders if folder.is_dir()), None)
        if self._folder is None:
            raise DataError(f"{folders[0]} and {folders[1]} do not exist: expected {LAYOUT}.")
        try:
            existing = set(os.listdir(self._folder))
        except OSError as error:
            raise DataError(f"{self._folder} cannot be read ({error}): make it readable, or move the data.") from error
        names = [image["file_name"] for image in self.images]
        missing = [
            name for name in names if name not in existing and not ("/" in name and os.path.isfile(self._folder / name))
        ]
        if missing and unreadable == "fail":
            raise DataError(
                f"{self._folder} lacks {len(missing)} of {len(self.images)} images ({', '.join(missing[:3])}, …): get them, "
                'or leave out what cannot be read with unreadable="skip".'
            )

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return str((self._folder or self.root) / self.images[index]["file_name"])

    def pixels(self, index: int) -> Tensor | None:
        """Returns the pixels of an image (3, height, width), uint8; None if it cannot be read and unreadable="skip".

        Raises:
            DataError: the image cannot be read and unreadable="fail".
        """
        about = self.images[index]
        try:
            if not os.path.isfile(self.name(index)):
                raise FileNotFoundError("there is no such file")
            with Image.open(self.name(index)) as image:
                # Not rotated by EXIF: boxes are of the stored pixels.
                found = functional.pil_to_tensor(rgb(image, image.format))
            if tuple(found.shape[1:]) != (about["height"], about["width"]):
                raise ValueError(f"{found.shape[2]} × {found.shape[1]} pixels, annotated as another size")
        except DAMAGE as error:
            return leave_out(self.name(index), error, self.unreadable)
        return found

    def target(self, index: int, masks: bool) -> Target:
        """Returns the training target: boxes (n, 4), labels (n,) from 1 on, and with `masks` masks (n, h, w).

        Boxes are (left, top, right, bottom) in pixels, clipped to the image. Crowds and boxes without area are left
        out.
        """
        height, width = (self.images[index][side] for side in ("height", "width"))
        own = [a for a in self.annotations[index] if not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in own], dtype=torch.float64).reshape(-1, 4)
        boxes = clip_boxes_to_image(box_convert(boxes, "xywh", "xyxy"), (height, width))
        has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        kept = [a for a, holds in zip(own, has_area.tolist(), strict=True) if holds]
        target = {
            "boxes": boxes[has_area].float(),
            "labels": torch.tensor([self._labels[a["category_id"]] for a in kept], dtype=torch.int64),
        }
        if masks:
            drawn = [torch.from_numpy(_mask(a, height, width, self.name(index))) for a in kept]
            target["masks"] = torch.stack(drawn) if drawn else torch.zeros(0, height, width, dtype=torch.uint8)
        return target

    def truth(self, skipped: set[int]) -> dict[str, Any]:
        """Returns the annotations as COCO's metric reads them, without the images at the indices `skipped`."""
        kept = [index for index in range(len(self)) if index not in skipped]
        annotations = [dict(a) for index in kept for a in self.annotations[index]]
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number  # from 1 on: to the metric, id 0 means "no match"
        images = [dict(self.images[index]) for index in kept]
        return {"images": images, "annotations": annotations, "categories": copy.deepcopy(self.categories)}


class Batch(NamedTuple):
    """Images and their targets."""

    images: list[Tensor]
    """Each (3, height, width), uint8."""
    targets: list[Target]
    skipped: tuple[str, ...] = ()
    """Names of the images that were left out because they cannot be read."""
    indices: tuple[int, ...] = ()
    """For each image, the index of its key in the list that was read."""


class TrainImages(Dataset):
    """Images with targets: `dataset[[(epoch, index, copy), …]]`, through a DataLoader, is a `Batch`.

    If images may be mirrored, half of them are.
    """

    def __init__(self, images: CocoSet, *, masks: bool, seed: int):
        self.images, self.masks, self.seed = images, masks, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[tuple[int, int, int]]) -> Batch:
        """Returns the batch of `keys`; the key of an image determines whether it is mirrored."""
        found = _gather(self.images, [index for _, index, _ in keys])
        pairs = []
        for at, pixels in zip(found.indices, found.images, strict=True):
            pair = pixels, self.images.target(keys[at][1], self.masks)
            rng = generator(self.seed, Stream.MIRRORING, *keys[at])
            pairs.append(_mirrored(*pair) if self.images.mirrors and torch.rand((), generator=rng) < 0.5 else pair)
        return found._replace(images=[pixels for pixels, _ in pairs], targets=[target for _, target in pairs])


class EvalImages(Dataset):
    """Plain images: `dataset[[index, …]]`, through a DataLoader, is a `Batch` without targets."""

    def __init__(self, images: CocoSet):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Returns the batch of the images at `indices`."""
        return _gather(self.images, indices)


def _gather(images: CocoSet, indices: Sequence[int]) -> Batch:
    """Returns the batch, without targets, of the images that can be read."""
    read = [images.pixels(index) for index in indices]
    skipped = tuple(images.name(index) for index, pixels in zip(indices, read, strict=True) if pixels is None)
    readable = tuple(at for at, pixels in enumerate(read) if pixels is not None)
    return Batch([pixels for pixels in read if pixels is not None], [], skipped, readable)


def _mirrored(pixels: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Returns pixels and target, mirrored left to right."""
    size: tuple[int, int] = (pixels.shape[-2], pixels.shape[-1])
    boxes = functional.horizontal_flip_bounding_boxes(target["boxes"], BoundingBoxFormat.XYXY, size)
    masks = {"masks": functional.horizontal_flip_mask(target["masks"])} if "masks" in target else {}
    return functional.horizontal_flip(pixels), {**target, "boxes": boxes, **masks}


def _read(file: Path) -> dict[str, Any]:
    """Returns the content of an annotation file; raises DataError if it is missing, damaged or empty."""
    if not os.path.exists(file):
        raise DataError(f"{file} does not exist: expected {LAYOUT}.")
    try:
        if not os.path.isfile(file):
            raise OSError("it is no file")
        found = json.loads(file.read_bytes())  # in UTF-8, -16 or -32
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file} cannot be read ({error}): expected the instances of COCO, as JSON; get it again."
        ) from error
    parts = ("images", "annotations", "categories")
    lacking = [part for part in parts if not isinstance(found, dict) or not isinstance(found.get(part), list)]
    empty = [part for part in ("images", "categories") if not lacking and not found[part]]
    if lacking or empty:
        what = f"has no list of {', '.join(lacking)}" if lacking else f"has no {' and no '.join(empty)}"
        raise DataError(
            f"{file} {what}: expected the instances of COCO, as https://cocodataset.org/#download has them."
        )
    return found


def _is_id(value: Any) -> bool:
    # The metric stores ids as float64.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MAX_PIXELS


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_MAX_PIXELS < value < _MAX_PIXELS


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_coordinate, value)) and min(value[2:]) >= 0


def _is_area(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _MAX_PIXELS**2


def _is_flag(value: Any) -> bool:
    return value in (0, 1)


_MAX_PIXELS = 1_000_000
"""Coordinates, widths and heights in pixels are smaller than this."""
_ID = (_is_id, "a whole number of at most 53 bits")
_NAME = (_is_name, "a text")
_LENGTH = (_is_length, f"a whole number of pixels, from 1 to {_MAX_PIXELS - 1}")
_BOX = (_is_box, f"[left, top, width, height], numbers of pixels below {_MAX_PIXELS}, the latter two not negative")
_FIELDS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "images": {"id": _ID, "file_name": _NAME, "width": _LENGTH, "height": _LENGTH},
    "categories": {"id": _ID, "name": _NAME},
    "annotations": {
        "image_id": _ID,
        "category_id": _ID,
        "bbox": _BOX,
        "area": (_is_area, "a number of pixels, not negative"),
        "iscrowd": (_is_flag, "0 or 1"),
    },
}
_OPTIONAL = ("area", "iscrowd")


def _check(found: dict[str, Any], file: Path) -> None:
    """Raises DataError for entries that make training or COCO's metric fail, or that these would misread."""
    for part, fields in _FIELDS.items():
        for at, entry in enumerate(found[part]):
            if not isinstance(entry, dict):
                raise DataError(
                    f"{file}: {part}[{at}] is {reprlib.repr(entry)}, expected an object: mend or remove it."
                )
            for name, (holds, expected) in fields.items():
                value = entry.get(name)
                if not (holds(value) or (value is None and name in _OPTIONAL)):
                    came = reprlib.repr(value)
                    raise DataError(
                        f"{file}: {part}[{at}] has {came} for {name}, expected {expected}: mend or remove it."
                    )
    for part, name in (("images", "id"), ("images", "file_name"), ("categories", "id")):
        values = [entry[name] for entry in found[part]]
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise DataError(f"{file}: {part} have {twice[0]!r} twice for {name}, expected another one each: mend them.")


def _by_image(annotations: list[dict], images: list[dict], categories: list[dict], file: Path) -> list[list[dict]]:
    """Returns the annotations of each image, with the fields that COCO's metric and training need."""
    found: dict[Any, list[dict]] = {image["id"]: [] for image in images}
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    known = {category["id"] for category in categories}
    for at, annotation in enumerate(annotations):
        which, kind = annotation["image_id"], annotation["category_id"]
        if which not in found or kind not in known:
            raise DataError(
                f"{file}: annotations[{at}] is of an image or a category that is not there (image_id {which!r}, category_id "
                f"{kind!r}), expected ids of those that are: mend or remove it."
            )
        x, y, w, h = annotation["bbox"]
        width, height = sizes[which]
        if w and h and not (x < width and y < height and x + w > 0 and y + h > 0):
            raise DataError(
                f"{file}: annotations[{at}] has the box {[x, y, w, h]}, [left, top, width, height], which lies outside of its "
                f"image of {width} × {height} pixels: mend or remove it."
            )
        known_of_it = {name: value for name, value in annotation.items() if value is not None}
        found[which].append({"area": w * h, "iscrowd": 0} | known_of_it)
    return list(found.values())


def _mask(annotation: dict[str, Any], height: int, width: int, name: str) -> np.ndarray:
    """Returns the mask (height, width), uint8, of an annotation by polygons or by run lengths, compressed or not."""
    shape = annotation.get("segmentation")
    if not shape:
        raise DataError(f'{name}: an annotation without a segmentation, which head="masks" needs; use head="boxes".')
    if not (_are_polygons(shape) or _are_run_lengths(shape, height, width)):
        raise DataError(
            f"{name}: an annotation has the segmentation {reprlib.repr(shape)}, expected polygons, [[x, y, x, y, x, y, …], …], "
            f"or run lengths of size [{height}, {width}] that add up to it: mend or remove it."
        )
    lengths = shape | {"size": [height, width]} if isinstance(shape, dict) else shape
    return np.ascontiguousarray(rle.decode(rle.segmToRle(lengths, width, height)), dtype=np.uint8)


def _are_polygons(shape: Any) -> bool:
    return isinstance(shape, list) and all(
        isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 and all(map(_is_coordinate, part))
        for part in shape
    )


def _are_run_lengths(shape: Any, height: int, width: int) -> bool:
    """Whether run lengths cover exactly the pixels of the image: with more of them the library would write out of bounds."""
    if not isinstance(shape, dict) or shape.get("size") != [height, width]:
        return False
    counts = shape.get("counts")
    if isinstance(counts, str) and counts.isascii():
        counts = _unpacked(counts)
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        return False
    return sum(counts) == height * width


def _unpacked(counts: str) -> list[int]:
    """Returns the run lengths in COCO's compressed text, or [−1] if it breaks off within a number.

    The digits of a number have five bits, the lowest first. From the fourth number on, each is the difference to the
    last run length but one.
    """
    lengths, value, shift = [], 0, 0
    for digit in (ord(letter) - 48 for letter in counts):
        value |= (digit & 0x1F) << shift
        shift += 5
        if not digit & 0x20:  # the number ends
            value -= (digit & 0x10) << (shift - 4)  # two's complement: this bit is the sign
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value, shift = 0, 0
    return [-1] if shift else lengths
