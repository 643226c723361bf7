"""Annotations in COCO's layout with something wrong in them: each is refused by name, or right as the test says."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from comrope.errors import DataError
from comrope.lab.detection.coco import CocoSet, EvalImages
from comrope.lab.detection.metric import average_precision
from tests.lab.detection.helpers import coco_folder

pytestmark = pytest.mark.area("annotations of COCO")

FILE = Path("annotations") / "instances_train2017.json"
REMEDY = r"mend or remove it|mend them|get it again|get them|cocodataset\.org"
NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return coco_folder(tmp_path_factory.mktemp("coco") / "whole")


@pytest.fixture
def root(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "coco")


def _use(root: Path, masks: bool = True) -> tuple[CocoSet, dict]:
    """All that training and measuring ask of a set, which must be numbers and lie on the images; and how good its boxes are."""
    images = CocoSet(root, "train")
    found = []
    for index in range(len(images)):
        pixels, target = images.pixels(index), images.target(index, masks)
        assert pixels is not None
        height, width = pixels.shape[1:]
        assert target["boxes"].isfinite().all()
        assert (target["boxes"] >= 0).all()
        assert (target["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert len(target["boxes"]) == len(target["labels"])
        assert not masks or target["masks"].shape == (len(target["labels"]), height, width)
        about = {"image_id": images.images[index]["id"], "score": 1.0}
        found += [
            about | {"category_id": a["category_id"], "bbox": a["bbox"]}
            for a in images.annotations[index]
            if not a["iscrowd"] and a["bbox"][2]
        ]
    return images, average_precision(images.truth(set()), found)


def _changed(root: Path, change: Callable[[dict], Any]) -> None:
    about = json.loads((root / FILE).read_text())
    found = change(about)
    (root / FILE).write_text(json.dumps(about if found is None else found))


def _set(part: str, name: str, value: Any) -> Callable[[dict], None]:
    def change(about: dict) -> None:
        about[part][0][name] = value

    return change


def _without(part: str, name: str) -> Callable[[dict], None]:
    def change(about: dict) -> None:
        del about[part][0][name]

    return change


FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in FIELDS.items() for name in names])
def test_a_field_that_lacks(part, name, root):
    _changed(root, _without(part, name))
    with pytest.raises(DataError, match=rf"{part}\[0\] has None for {name}, expected .*: mend or remove it"):
        _use(root)


@pytest.mark.parametrize("part", [*FIELDS, None])
def test_a_part_that_lacks(part, root):
    _changed(root, lambda about: {key: value for key, value in about.items() if part not in (key, None)})
    with pytest.raises(DataError, match=rf"has no list of .*{part or 'images, annotations, categories'}.*cocodataset"):
        _use(root)


VALUES = {
    "images": {
        "id": [True, 1.5, [1], NAN, 2**53 + 1, "100"],
        "file_name": [7, "", ["0.jpg"]],
        "width": ["40", 40.0, 0, -40, NAN, 10**400, True],
        "height": [None, -1, 2**40],
    },
    "categories": {"id": [{}, INFINITY, -(2**63), "18"], "name": [18, "", None]},
    "annotations": {
        "image_id": [[100], 100.0, "100", 7, 2**70],
        "category_id": ["dog", 19, -1, 18.0, None],
        "bbox": [
            "4, 6, 20, 30",
            {"x": 4, "y": 6, "w": 20, "h": 30},
            [4, 6, 20],
            [4, 6, 20, 30, 1],
            [[4, 6], [20, 30]],
            ["4", "6", "20", "30"],
            [4, 6, None, 30],
            [4, 6, True, 30],
            [4, NAN, 20, 30],
            [4, 6, INFINITY, 30],
            [4, 6, -20, 30],
            [4, 6, 20, 1e300],
            [4, 6, 20, 10**400],
            [-1e30, 6, 20, 30],
            [400, 6, 20, 30],  # outside of the image
            [-30, 6, 20, 30],
            [4, 64, 20, 30],
            [4, -30, 20, 30],
        ],
        "area": ["600", NAN, -1, INFINITY, 10**400, [600]],
        "iscrowd": ["no", 2, -1, 0.5, NAN, [], {}],
    },
}


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [(part, name, value) for part, names in VALUES.items() for name, values in names.items() for value in values],
    ids=lambda value: repr(value)[:30],
)
def test_a_field_of_another_kind(part, name, value, root):
    _changed(root, _set(part, name, value))
    with pytest.raises(DataError, match=REMEDY) as caught:
        _use(root)
    assert str(caught.value).startswith(f"{root / FILE}: ")
    assert "expected" in str(caught.value) or "lies outside of its image" in str(caught.value)
    assert len(str(caught.value)) < 700 + len(str(root))


def _twice(part: str, **more: Any) -> Callable[[dict], None]:
    def change(about: dict) -> None:
        about[part].append(about[part][0] | more)

    return change


WHOLE: dict[str, tuple[Callable[[dict], Any], str]] = {
    "two images of one id": (_twice("images", file_name="other.jpg"), "images have 100 twice for id"),
    "one image of two ids": (_twice("images", id=7), "images have '0.jpg' twice for file_name"),
    "two categories of one id": (_twice("categories", name="cat"), "categories have 18 twice for id"),
    "no images": (lambda about: about["images"].clear(), "has no images"),
    "no categories": (lambda about: about["categories"].clear(), "has no categories"),
    "an image that is none": (lambda about: about["images"].append(None), r"images\[6\] is None, expected an object"),
    "an annotation that is a list": (lambda about: about["annotations"].append([1]), "is .1., expected an object"),
    "a category that is a name": (lambda about: about["categories"].append("cat"), "is 'cat', expected an object"),
    "images by their ids": (lambda about: about.update(images={"1": {}}), "has no list of images"),
    "a list": (lambda about: [about], "has no list of images, annotations, categories"),
    "a number": (lambda about: 3, "has no list of images, annotations, categories"),
    "a file that is not there": (_set("images", "file_name", "none.jpg"), r"lacks 1 of 6 images \(none\.jpg"),
    "a file in another folder": (_set("images", "file_name", "no/0.jpg"), r"lacks 1 of 6 images \(no/0\.jpg"),
    "too long a name": (_set("images", "file_name", "a/" + 5000 * "b"), "lacks 1 of 6 images"),
    "a name with NUL": (_set("images", "file_name", "a/\0.jpg"), "lacks 1 of 6 images"),
    "a folder": (_set("images", "file_name", "../train2017"), "lacks 1 of 6 images"),
    "another width": (_set("images", "width", 41), "0.jpg cannot be read .40 × 64 pixels, annotated as another size"),
    "sides exchanged": (lambda about: about["images"][0].update(width=64, height=40), "annotated as another size"),
}


@pytest.mark.parametrize(("change", "match"), WHOLE.values(), ids=WHOLE)
def test_lists_that_do_not_fit_together(change, match, root):
    _changed(root, change)
    with pytest.raises(DataError, match=match) as caught:
        _use(root)
    assert any(word in str(caught.value) for word in ("mend", "get", "cocodataset.org"))


TEXTS: dict[str, bytes] = {
    "nothing": b"",
    "blank": b" \n",
    "no JSON": b"no JSON at all",
    "HTML": b"<html>404</html>",
    "cut": b'{"images": [{"id": 1, "file_na',
    "Python": b"{'images': [], 'annotations': [], 'categories': []}",
    "Latin letters": '{"images": "ä"}'.encode("latin-1"),
    "bytes": bytes(range(256)),
    "deep lists": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"images":' * 200_000 + b"1" + b"}" * 200_000,
    "many digits": b'{"images": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_is_no_json(text, root):
    (root / FILE).write_bytes(text)
    with pytest.raises(
        DataError, match=r"instances_train2017\.json cannot be read \((?s:.*)expected the .* get it again"
    ):
        _use(root)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.name)])
def test_what_is_in_the_place_of_annotations(make, root):
    (root / FILE).unlink()
    make(root / FILE)
    with pytest.raises(DataError, match=r"cannot be read \(it is no file\)|does not exist: expected annotations/"):
        _use(root)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_other_encodings_of_json_are_read(encoding, root, whole):
    """As the standard of JSON has them."""
    (root / FILE).write_bytes((whole / FILE).read_text().encode(encoding))
    images, points = _use(root)
    assert images.images == CocoSet(whole, "train").images
    assert points == _use(whole)[1]


def _numbered(part: str, key: str, value: Callable[[int], Any]) -> Callable[[dict], None]:
    """Gives the images or the categories other ids, and annotations with them."""

    def change(about: dict) -> None:
        for entry in about[part]:
            entry["id"] = value(entry["id"])
        for annotation in about["annotations"]:
            annotation[key] = value(annotation[key])

    return change


_image_ids = partial(_numbered, "images", "image_id")
_categories = partial(_numbered, "categories", "category_id")


def _every_annotation(**more: Any) -> Callable[[dict], None]:
    def change(about: dict) -> None:
        for annotation in about["annotations"]:
            annotation.update(more)

    return change


def _no_defaults(about: dict) -> None:
    about["annotations"] = [annotation for annotation in about["annotations"] if not annotation["iscrowd"]]
    for annotation in about["annotations"]:
        del annotation["area"], annotation["iscrowd"]


def _null_defaults(about: dict) -> None:
    _no_defaults(about)
    for annotation in about["annotations"]:
        annotation.update(area=None, iscrowd=None)


RIGHT: dict[str, Callable[[dict], Any]] = {
    "annotations of one id": _every_annotation(id=1),  # the metric is given numbers of their own
    "annotations without ids": lambda about: [one.pop("id") for one in about["annotations"]] and None,
    "annotations with odd ids": _every_annotation(id=[NAN]),
    "ids of images below zero": _image_ids(lambda value: -value),
    "ids of images that are huge": _image_ids(lambda value: 2**53 - value),
    "categories from 0 on": _categories(lambda value: 0 if value == 3 else value),
    "categories that are huge": _categories(lambda value: 2**40 + value),
    "categories of one name": _set("categories", "name", "car"),  # they are told apart by their ids
    "no area, no crowds": _no_defaults,  # as many tools write it: the area of the box, and no crowd
    "null for area and crowd": _null_defaults,
    "fields that nobody knows": _every_annotation(score=NAN, attributes={"occluded": True}),
    "no annotations": lambda about: about["annotations"].clear(),  # there may be nothing to see
    "a dot before the file": _set("images", "file_name", "./0.jpg"),
    "more of the image": _set("images", "license", None),
}


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_what_is_right_all_the_same(change, root, whole):
    _changed(root, change)
    (found, points), (expected, best) = _use(root), _use(whole)
    assert sorted(Path(found.name(i)).name for i in range(6)) == sorted(Path(expected.name(i)).name for i in range(6))
    if found.annotations != [[]] * 6:
        boxes = [
            sorted(box for i in range(6) for box in images.target(i, False)["boxes"].tolist())
            for images in (found, expected)
        ]
        assert boxes[0] == boxes[1]
        assert points == pytest.approx(best)


OUTLINES: list[Any] = [
    None,
    [],
    {},
    "polygon",
    True,
    7,
    [4, 6, 24, 6, 24, 36],
    [[4, 6, 24, 6]],
    [[4, 6, 24, 6, 24, 36, 4]],
    [[4, 6, 24, 6, 24, "36"]],
    [[4, 6, 24, 6, 24, NAN]],
    [[4, 6, 24, 6, 24, 1e300]],
    [[4, 6, 24, 6, 24, -(10**400)]],
    [[4, 6, 24, 6, 24, 36], []],
    [[[4, 6], [24, 6], [24, 36]]],
    {"size": [64, 40]},
    {"counts": [0, 2560]},
    {"size": [40, 64], "counts": [0, 2560]},
    {"size": 2560, "counts": [0, 2560]},
    {"size": [64, 40], "counts": [0, 2561]},
    {"size": [64, 40], "counts": [2600, -40]},
    {"size": [64, 40], "counts": []},
    {"size": [64, 40], "counts": ["0", "2560"]},
    {"size": [64, 40], "counts": [0, 2560.0]},
    {"size": [64, 40], "counts": [[0, 2560]]},
    {"size": [64, 40], "counts": {"0": 2560}},
    {"size": [64, 40], "counts": NAN},
    {"size": [64, 40], "counts": ""},
    {"size": [64, 40], "counts": "no run lengths"},
    {"size": [64, 40], "counts": "ooooooooooooooooooooooooooooooooo"},
    {"size": [64, 40], "counts": "0P`2\xe4"},
    {"size": [64, 40], "counts": "0P`"},
]


@pytest.mark.parametrize("outline", OUTLINES, ids=lambda value: repr(value)[:30])
def test_outlines_that_cannot_be_drawn(outline, root):
    _changed(root, _set("annotations", "segmentation", outline))
    with pytest.raises(DataError, match=r'0\.jpg: an annotation (has|without).*(mend or remove it|use head="boxes")'):
        _use(root)
    _use(root, masks=False)  # where nobody draws them, they do not matter


@pytest.mark.parametrize(
    ("outline", "pixels"),
    [
        ([[-50, -50, 500, -50, 500, 500, -50, 500]], 2560),  # what lies outside of the image is cut off
        ([[4, 6, 24, 6, 14, 6]], 0),
        ({"size": [64, 40], "counts": [0, 2560]}, 2560),
        ({"size": [64, 40], "counts": "0P`2"}, 2560),
        ({"size": [64.0, 40.0], "counts": [2560]}, 0),
    ],
)
def test_outlines_that_can(outline, pixels, root):
    _changed(root, _set("annotations", "segmentation", outline))
    masks = _use(root)[0].target(5, masks=True)["masks"]
    assert int(masks[0].sum()) == pixels


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no image"),
        lambda path: path.write_bytes(path.read_bytes()[:300]),
        lambda path: Image.new("RGB", (64, 40)).save(path),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.symlink_to(path.name)),
    ],
)
def test_images_that_cannot_be_read_are_named_or_left_out(make, root):
    make(root / "images" / "train2017" / "0.jpg")
    with pytest.raises(DataError, match=r"0\.jpg.*(mend or remove the file|get them).*skip"):
        _use(root)
    images = CocoSet(root, "train", unreadable="skip")
    batch = EvalImages(images).__getitems__(range(6))
    assert [Path(name).name for name in batch.skipped] == ["0.jpg"]
    assert len(batch.images) == 5


def test_the_annotations_are_not_changed(root):
    """Of what was read, measuring changes nothing: it may be asked again."""
    images = CocoSet(root, "train")
    before = copy.deepcopy((images.images, images.annotations, images.categories))
    _use(root)
    average_precision(images.truth(set()), [])
    assert before == (images.images, images.annotations, images.categories)
