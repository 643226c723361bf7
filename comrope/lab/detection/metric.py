"""COCO's metric: average precision, the mean over classes, recalls and overlap thresholds of 0.5 to 0.95."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Average precision over all thresholds, at 0.5 and at 0.75; over all for small, medium and large objects (edges at
32² and 96² pixels)."""


def average_precision(
    truth: dict[str, Any], found: Sequence[dict[str, Any]], kind: Literal["bbox", "segm"] = "bbox"
) -> dict[str, float | None]:
    """Returns COCO's metric in per cent, by name; None where there are no such objects.

    Args:
        truth: images, annotations and categories, as COCO's JSON has them.
        found: detections, as COCO's results have them: image_id, category_id, score, and bbox or segmentation.
        kind: "bbox" or "segm".
    """
    if not truth["annotations"]:
        return dict.fromkeys(NAMES)
    expected = COCO(truth, use_deepcopy=True)
    evaluation = COCOeval_faster(expected, expected.loadRes([dict(one) for one in found]), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values = np.asarray(evaluation.stats[: len(NAMES)], dtype=float)
    return {name: None if value < 0 else 100 * float(value) for name, value in zip(NAMES, values, strict=True)}
