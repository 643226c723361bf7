"""COCO's metric against what it has to be by hand."""

import pytest

from comrope.lab.detection.metric import NAMES, average_precision

IMAGES = [{"id": 7, "height": 400, "width": 400}, {"id": 9, "height": 400, "width": 400}]
CATEGORIES = [{"id": 3, "name": "car"}]


def _object(image: int, box: list[float], number: int = 1, **more) -> dict:
    about = {"id": number, "image_id": image, "category_id": 3, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    return about | more


def _truth(*annotations: dict) -> dict:
    return {"images": IMAGES, "annotations": list(annotations), "categories": CATEGORIES}


def _found(image: int, box: list[float], score: float) -> dict:
    return {"image_id": image, "category_id": 3, "bbox": box, "score": score}


def test_one_of_two_found_is_half_the_recalls():
    truth = _truth(_object(7, [10, 10, 100, 100], 1), _object(9, [10, 10, 20, 20], 2))
    found = [_found(7, [10, 10, 100, 100], 0.9), _found(9, [200, 200, 20, 20], 0.8)]
    result = average_precision(truth, found)
    half = 100 * 51 / 101  # of the recalls 0, 0.01, …, 1 those up to one half, at precision 1
    assert [result[name] for name in ("AP", "AP50", "AP75")] == pytest.approx([half] * 3)
    assert (result["APs"], result["APm"], result["APl"]) == (pytest.approx(0), None, pytest.approx(100))


def test_an_overlap_of_62_per_cent_counts_at_three_of_ten_thresholds():
    result = average_precision(_truth(_object(7, [0, 0, 100, 50])), [_found(7, [0, 0, 62, 50], 0.5)])
    assert result == {name: pytest.approx(value) for name, value in zip(NAMES[:3], (30, 100, 0), strict=True)} | {
        "APs": None,
        "APm": pytest.approx(30),
        "APl": None,
    }


def test_a_false_alarm_before_the_hit_halves_precision():
    found = [_found(7, [200, 200, 50, 50], 0.9), _found(7, [0, 0, 50, 50], 0.8)]
    assert average_precision(_truth(_object(7, [0, 0, 50, 50])), found)["AP"] == pytest.approx(50)


def test_what_is_found_in_a_crowd_is_no_false_alarm():
    crowd = _object(7, [100, 100, 200, 200], 2, iscrowd=1, segmentation={"size": [400, 400], "counts": [0, 160000]})
    found = [_found(7, [150, 150, 50, 50], 0.9), _found(7, [0, 0, 50, 50], 0.8)]
    assert average_precision(_truth(_object(7, [0, 0, 50, 50]), crowd), found)["AP"] == pytest.approx(100)


def test_nothing_found_is_nothing_and_nothing_there_is_no_number():
    assert average_precision(_truth(_object(7, [0, 0, 50, 50])), [])["AP"] == 0
    assert set(average_precision(_truth(), [_found(7, [0, 0, 50, 50], 0.8)]).values()) == {None}


def test_masks_are_compared_by_their_own_overlap():
    # Columns of 400 pixels: the truth is the first 10 of them, what was found the first 16. 10/16 is 62.5 %.
    truth = _truth(_object(7, [0, 0, 10, 400], segmentation={"size": [400, 400], "counts": [0, 4000, 156000]}))
    outline = {"size": [400, 400], "counts": [0, 6400, 153600]}
    from faster_coco_eval.core import mask

    compressed = mask.segmToRle(outline, 400, 400)
    found = [{"image_id": 7, "category_id": 3, "score": 0.9, "segmentation": compressed}]
    assert average_precision(truth, found, "segm")["AP"] == pytest.approx(30)
