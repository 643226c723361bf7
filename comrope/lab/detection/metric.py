"""COCO's metric: average precision over classes, recalls and overlaps of 0.5 to 0.95."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Of all overlaps, of 0.5, of 0.75; and of all for objects below 32², below 96², and from 96² pixels on."""


def average_precision(
    truth: dict[str, Any], found: Sequence[dict[str, Any]], kind: Literal["bbox", "segm"] = "bbox"
) -> dict[str, float | None]:
    """COCO's metric in per cent, by name; None where there is no such object.

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
