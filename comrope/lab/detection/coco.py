"""Data laid out as COCO: images in files, and everything known of them in one JSON file a split."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faster_coco_eval.core.mask as rle
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from comrope.errors import DataError
from comrope.lab.data.folder import DAMAGE, rgb
from comrope.lab.data.labelled import leave_out
from comrope.lab.draws import generator

LAYOUT = (
    "annotations/instances_{train,val}2017.json with images in images/{train,val}2017 or {train,val}2017, as "
    "https://cocodataset.org/#download has them"
)
Target = dict[str, Tensor]
_STREAM = 5  # of the seed's streams that no other draws of a run are taken from


class CocoSet:
    """One split of a data set: images by index, in the order of their ids.

    Args:
        root: the folder of both splits.
        split: "train" or "val".
        num: so many images, the first ones; all if None.
        unreadable: whether an image that cannot be read is to "fail", or be left out ("skip") and named.
        mirrors: whether a mirrored image shows the same classes, so that training may flip it.
    Raises:
        DataError: a file is missing, or damaged; it is named.
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
        places = (root / "images" / f"{split}2017", root / f"{split}2017")
        self._folder = next((place for place in places if place.is_dir()), None)
        if self._folder is None:
            raise DataError(f"{places[0]} and {places[1]} do not exist: expected {LAYOUT}.")
        there = {path.name for path in self._folder.iterdir()}
        names = [image["file_name"] for image in self.images]
        missing = [
            name for name in names if name not in there and not ("/" in name and (self._folder / name).is_file())
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
        """(3, height, width), uint8; None where it cannot be read and unreadable="skip".

        Raises:
            DataError: it cannot be read and unreadable="fail".
        """
        about = self.images[index]
        try:
            with Image.open(self.name(index)) as image:
                found = pil_to_tensor(rgb(image, image.format))  # as it lies: boxes are of that
            if tuple(found.shape[1:]) != (about["height"], about["width"]):
                raise ValueError(f"{found.shape[2]} × {found.shape[1]} pixels, annotated as another size")
        except DAMAGE as error:
            return leave_out(self.name(index), error, self.unreadable)
        return found

    def target(self, index: int, masks: bool) -> Target:
        """What training is told: boxes (n, 4) as (left, top, right, bottom) in pixels, labels (n,) from 1 on, masks (n, h, w).

        Crowds are left out, and boxes without area; what lies outside the image is cut off.
        """
        height, width = (self.images[index][side] for side in ("height", "width"))
        kept, boxes = [], []
        for annotation in self.annotations[index]:
            x, y, w, h = annotation["bbox"]
            box = (max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height))
            if not annotation["iscrowd"] and box[2] > box[0] and box[3] > box[1]:
                kept.append(annotation)
                boxes.append(box)
        target = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([self._labels[a["category_id"]] for a in kept], dtype=torch.int64),
        }
        if masks:
            drawn = [torch.from_numpy(_mask(a, height, width, self.name(index))) for a in kept]
            target["masks"] = torch.stack(drawn) if drawn else torch.zeros(0, height, width, dtype=torch.uint8)
        return target

    def truth(self, skipped: set[int]) -> dict[str, Any]:
        """The annotations as COCO's metric reads them, without the images of the indices `skipped`."""
        kept = [index for index in range(len(self)) if index not in skipped]
        annotations = [dict(a) for index in kept for a in self.annotations[index]]
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number  # the metric takes 0 for no match
        images = [dict(self.images[index]) for index in kept]
        return {"images": images, "annotations": annotations, "categories": copy.deepcopy(self.categories)}


class Batch(NamedTuple):
    """Some images and what is on them."""

    images: list[Tensor]
    """Each (3, height, width), uint8."""
    targets: list[Target]
    skipped: tuple[str, ...] = ()
    """Names of the images that were asked for and are left out, since they cannot be read."""
    places: tuple[int, ...] = ()
    """Where in what was asked for each image stood."""


class Training(Dataset):
    """`feed[[(epoch, index, copy), …]]`, through a DataLoader, is a `Batch`; where images may be mirrored, half of them are."""

    def __init__(self, images: CocoSet, *, masks: bool, seed: int):
        self.images, self.masks, self.seed = images, masks, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[tuple[int, int, int]]) -> Batch:
        """The images of `keys`, each mirrored or not by a draw that its key names."""
        found = _gather(self.images, [index for _, index, _ in keys])
        pairs = []
        for at, pixels in zip(found.places, found.images, strict=True):
            pair = pixels, self.images.target(keys[at][1], self.masks)
            draws = generator(self.seed, _STREAM, *keys[at])
            pairs.append(_mirrored(*pair) if self.images.mirrors and torch.rand((), generator=draws) < 0.5 else pair)
        return found._replace(images=[pixels for pixels, _ in pairs], targets=[target for _, target in pairs])


class Testing(Dataset):
    """Plain images: `feed[[index, …]]`, through a DataLoader, is a `Batch` without targets."""

    __test__ = False  # or pytest takes it for a test case, by its name

    def __init__(self, images: CocoSet):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images at `indices`."""
        return _gather(self.images, indices)


def _gather(images: CocoSet, indices: Sequence[int]) -> Batch:
    read = [images.pixels(index) for index in indices]
    skipped = tuple(images.name(index) for index, pixels in zip(indices, read, strict=True) if pixels is None)
    places = tuple(at for at, pixels in enumerate(read) if pixels is not None)
    return Batch([pixels for pixels in read if pixels is not None], [], skipped, places)


def _mirrored(pixels: Tensor, target: Target) -> tuple[Tensor, Target]:
    left, top, right, bottom = target["boxes"].unbind(1)
    width = pixels.shape[-1]
    mirrored = target | {"boxes": torch.stack((width - right, top, width - left, bottom), dim=1)}
    if "masks" in target:
        mirrored["masks"] = target["masks"].flip(-1)
    return pixels.flip(-1), mirrored


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{file} does not exist: expected {LAYOUT}.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}): get it again.") from error
    parts = ("images", "annotations", "categories")
    lacking = [part for part in parts if not isinstance(found, dict) or not isinstance(found.get(part), list)]
    if lacking:
        raise DataError(f"{file} has no list of {', '.join(lacking)}: expected the instances of COCO.")
    return found


def _check(found: dict[str, Any], file: Path) -> None:
    """Refuses what training or COCO's metric would fail of, or take for something else."""
    wanted: dict[str, dict[str, Callable[[Any], bool]]] = {
        "images": {"id": _is_id, "file_name": _is_name, "width": _is_length, "height": _is_length},
        "categories": {"id": _is_id, "name": _is_name},
        "annotations": {"image_id": _is_id, "category_id": _is_id, "bbox": _is_box},
    }
    for part, fields in wanted.items():
        for at, entry in enumerate(found[part]):
            wrong = [name for name, holds in fields.items() if not (isinstance(entry, dict) and holds(entry.get(name)))]
            if wrong:
                came = entry.get(wrong[0]) if isinstance(entry, dict) else entry
                raise DataError(f"{file}: {part}[{at}] has {came!r} for {wrong[0]}: mend or remove it.")
    for part in ("images", "categories"):
        ids = [entry["id"] for entry in found[part]]
        if len({type(each) for each in ids}) > 1 or len(set(ids)) < len(ids):
            twice = next((each for each in ids if ids.count(each) > 1), None)
            what = "of numbers and of text" if twice is None else f"twice {twice!r}"
            raise DataError(f"{file}: {part} have ids {what}, expected another one each, all of one kind: mend them.")


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_box(value: Any) -> bool:
    def is_number(x: Any) -> bool:
        return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)

    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def _by_image(annotations: list[dict], images: list[dict], categories: list[dict], file: Path) -> list[list[dict]]:
    """The annotations of each image, with what COCO's metric and training need."""
    found: dict[int, list[dict]] = {image["id"]: [] for image in images}
    known = {category["id"] for category in categories}
    for annotation in annotations:
        if annotation["image_id"] not in found or annotation["category_id"] not in known:
            raise DataError(
                f"{file}: annotation {annotation.get('id')} is of an image or a category that is not there: mend or remove it."
            )
        box = annotation["bbox"]
        defaults = {"area": box[2] * box[3], "iscrowd": 0}
        found[annotation["image_id"]].append(defaults | annotation)
    return list(found.values())


def _mask(annotation: dict[str, Any], height: int, width: int, name: str) -> np.ndarray:
    """(height, width), uint8: of polygons, or of run lengths, compressed or not."""
    shape = annotation.get("segmentation")
    if not shape:
        raise DataError(f'{name}: an annotation without a segmentation, which head="masks" needs; use head="boxes".')
    counts = shape.get("counts") if isinstance(shape, dict) else None
    if isinstance(counts, list) and (sum(counts) != height * width or min(counts) < 0):
        raise DataError(
            f"{name}: a mask of {sum(counts)} pixels, of an image of {height} × {width}: mend or remove it."
        )
    if isinstance(shape, dict) and list(shape.get("size", ())) != [height, width]:
        raise DataError(
            f"{name}: a mask of size {shape.get('size')}, of an image of {height} × {width}: mend or remove it."
        )
    try:
        mask = np.ascontiguousarray(rle.decode(rle.segmToRle(shape, width, height)), dtype=np.uint8)
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError, OverflowError) as error:
        raise DataError(f"{name}: a mask that cannot be drawn ({error}): mend or remove it.") from error
    if mask.shape != (height, width):
        raise DataError(f"{name}: a mask of {mask.shape}, of an image of {height} × {width}: mend or remove it.")
    return mask
