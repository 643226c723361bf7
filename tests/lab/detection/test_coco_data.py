"""Data laid out as COCO, made by hand and composed: what is read is what was written, and what is missing is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from comrope.errors import DataError
from comrope.lab.detection.coco import CocoSet, TrainImages
from comrope.lab.detection.scenes import scenes as compose
from tests.lab.detection.helpers import coco_folder


@pytest.fixture
def root(tmp_path) -> Path:
    return coco_folder(tmp_path / "coco")


def _change(root: Path, **parts) -> None:
    file = root / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))


@pytest.mark.parametrize("bare", [False, True])
def test_boxes_labels_and_masks_are_the_folders(tmp_path, bare):
    images = CocoSet(coco_folder(tmp_path / "coco", bare=bare), "train")
    assert len(images) == 6 and images.classes == ("car", "dog")
    by_number = [images.target(5 - number, masks=True) for number in range(6)]  # ids count down
    assert by_number[0]["boxes"].tolist() == [[4, 6, 24, 36], [10, 20, 18, 28]]
    assert by_number[0]["labels"].tolist() == [2, 1]
    expected = torch.zeros(64, 40, dtype=torch.uint8)
    expected[6:36, 4:24] = 1
    assert torch.equal(by_number[0]["masks"][0], expected)
    assert by_number[1]["boxes"].tolist() == [[2, 2, 26, 26]] and by_number[1]["masks"].all()  # the crowd is left out
    assert [len(by_number[2][key]) for key in ("boxes", "labels", "masks")] == [0, 0, 0]
    assert by_number[3]["boxes"].tolist() == [[8, 8, 20, 20]]  # the box without area is left out
    assert by_number[4]["boxes"].tolist() == [[0, 10, 16, 64]]  # the border cuts
    assert [tuple(images.pixels(5 - number).shape[1:]) for number in (0, 1)] == [(64, 40), (48, 64)]


def test_mirroring_is_named_by_the_key_and_moves_boxes_with_masks(root):
    feed = TrainImages(CocoSet(root, "train"), masks=True, seed=3)
    keys = [(epoch, 5, copy) for epoch in range(8) for copy in range(2)]
    batch = feed.__getitems__(keys)
    mirrored = [bool(target["boxes"][0, 0] == 16) for target in batch.targets]  # 40 − 24
    assert 0 < sum(mirrored) < len(keys)
    plain = feed.images.pixels(5)
    for flipped, pixels, target in zip(mirrored, batch.images, batch.targets, strict=True):
        assert torch.equal(pixels, plain.flip(-1) if flipped else plain)
        for box, mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
            assert mask[box[1] : box[3], box[0] : box[2]].all() and mask.sum() == (box[3] - box[1]) * (box[2] - box[0])
    alone = [feed.__getitems__([key]).images[0] for key in keys]
    assert all(torch.equal(a, b) for a, b in zip(alone, batch.images, strict=True))
    still = TrainImages(CocoSet(root, "train", mirrors=False), masks=False, seed=3).__getitems__(keys)
    assert all(torch.equal(pixels, plain) for pixels in still.images)


def test_what_is_missing_or_damaged_is_named(root, tmp_path):
    with pytest.raises(DataError, match=r"instances_train2017\.json does not exist.*cocodataset"):
        CocoSet(tmp_path, "train")
    (root / "images" / "train2017" / "3.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of 6 images \(3\.jpg"):
        CocoSet(root, "train")
    (root / "images" / "train2017" / "1.jpg").write_bytes(b"no picture")
    images = CocoSet(root, "train", unreadable="skip")
    batch = TrainImages(images, masks=False, seed=0).__getitems__([(0, index, 0) for index in range(6)])
    assert [Path(name).name for name in batch.skipped] == ["3.jpg", "1.jpg"]
    assert len(batch.images) == len(batch.targets) == 4
    assert len(images.truth({2, 4})["images"]) == 4
    val = CocoSet(root, "val")
    val.images[0] = val.images[0] | {"height": 47}
    with pytest.raises(DataError, match="annotated as another size"):
        val.pixels(0)
    with pytest.raises(DataError, match="to take 1 to as many"):
        CocoSet(root, "val", 7)


def test_annotations_that_fit_nothing_are_refused(root):
    file = root / "annotations" / "instances_train2017.json"
    whole = file.read_text()
    for broken, message in (
        ("{", "cannot be read"),
        ("[]", "has no list of images, annotations, categories"),
        (whole.replace('"bbox"', '"bobx"', 1), r"annotations\[0\] has None for bbox"),
        (whole.replace('"category_id": 18', '"category_id": 19', 1), "a category that is not there"),
        (whole.replace('"image_id": 100', '"image_id": 7', 1), "is of an image"),
    ):
        file.write_text(broken)
        with pytest.raises(DataError, match=message):
            CocoSet(root, "train")
    file.write_text(whole)
    _change(root, annotations=[{"id": 1, "image_id": 100, "category_id": 3, "bbox": [1, 1, 4, 4]}])
    images = CocoSet(root, "train")
    assert images.annotations[5][0]["area"] == 16 and images.annotations[5][0]["iscrowd"] == 0
    with pytest.raises(DataError, match='head="boxes"'):
        images.target(5, masks=True)


def test_scenes_are_exact_and_always_the_same(tmp_path):
    first, again = (compose(tmp_path / name, 8, 6) for name in ("first", "again"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 8 + 6 + 2
    assert all((first / file).read_bytes() == (again / file).read_bytes() for file in files)
    more = compose(tmp_path / "first", 9, 6)
    assert (more / files[-1]).read_bytes() == (first / files[-1]).read_bytes()  # a scene depends on its number alone
    count = 0
    for split in ("train", "val"):
        images = CocoSet(first, split)
        for index in range(len(images)):
            target, pixels = images.target(index, masks=True), images.pixels(index)
            assert min(pixels.shape[1:]) == 96 and max(pixels.shape[1:]) <= 128
            masks = target["masks"].numpy()
            assert masks.sum(0).max(initial=0) <= 1  # none hides another
            for box, mask, about in zip(target["boxes"].tolist(), masks, images.annotations[index], strict=True):
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                assert about["area"] == mask.sum()
                painted = pixels[:, torch.from_numpy(mask).bool()]
                assert (painted == painted[:, :1]).all()  # ink is where the mask is
                count += 1
    assert count > 20


def test_scenes_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        compose(tmp_path / "file", 2, 2)
    with pytest.raises(DataError, match="at least one"):
        compose(tmp_path, 0, 2)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(DataError, match="no space left"):
        compose(tmp_path / "scenes", 2, 2)
    assert list((tmp_path / "scenes").iterdir()) == []
