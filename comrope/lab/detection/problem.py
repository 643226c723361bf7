"""Object detection as a `comrope.lab.problem.Problem`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import faster_coco_eval.core.mask as rle
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

from comrope.lab.data.batches import read_batches
from comrope.lab.detection.coco import Batch, CocoSet, EvalImages, TrainImages
from comrope.lab.detection.config import DetectionConfig, DetectionOptions
from comrope.lab.detection.data import datasets as datasets
from comrope.lab.detection.metric import NAMES, average_precision
from comrope.lab.detection.model import build as build
from comrope.lab.detection.model import check as check
from comrope.lab.train import BatchMetrics, Task


@dataclass(frozen=True)
class Edges:
    """The size that test images are resized to."""

    short: int
    """Pixels of the shorter side."""
    long: int
    """Pixels of the longer side, at most."""

    def describes(self, row: dict[str, Any]) -> bool:
        """Whether a row of `evaluate` was measured under this condition."""
        return (row["short"], row["long"]) == (self.short, self.long)


def conditions(config: DetectionConfig, options: DetectionOptions | None = None) -> list[Edges]:
    """Returns the sizes asked for; by default the one that the configuration evaluates at.

    If a size is a single number, its longest edge is in proportion to the configuration's.
    """
    short, long = config.short_edges[-1], config.long_edge
    sizes = (options or DetectionOptions()).sizes()
    return [Edges(min(s), max(s) if s[0] != s[1] else round(s[0] * long / short)) for s in sizes] or [
        Edges(short, long)
    ]


def task(model: nn.Module, train: CocoSet, evaluation: CocoSet, config: DetectionConfig) -> "Detection":
    """Returns the training task: the training images and the losses of torchvision's heads."""
    return Detection(train, evaluation, config)


class Detection(Task):
    """Trains on images with boxes and, with head="masks", masks."""

    def __init__(self, train: CocoSet, evaluation: CocoSet, config: DetectionConfig):
        self._masks = config.head == "masks"
        self.dataset = TrainImages(train, masks=self._masks, seed=config.recipe.seed)
        self._evaluation = evaluation
        self._conditions = conditions(config)

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, BatchMetrics]:
        """Returns the sum of torchvision's losses; each of them is recorded."""
        device, count = next(model.parameters()).device, len(batch.images)
        images, targets = (batch.images, batch.targets) if count else ([torch.zeros(3, 64, 64)], [self._empty_target()])
        targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
        losses = model([_as_float(image, device) for image in images], targets)
        loss = torch.stack(list(losses.values())).sum()
        return loss if count else 0 * loss, BatchMetrics(count, losses, len(batch.skipped))

    def _empty_target(self) -> dict[str, Tensor]:
        """Returns the target of a blank image of 64 × 64 pixels."""
        none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        return none | ({"masks": torch.zeros(0, 64, 64, dtype=torch.uint8)} if self._masks else {})

    def after_epoch(self, model: nn.Module) -> dict[str, Any]:
        """Returns the average precision on the test images, in per cent, as it is evaluated after training."""
        (row,) = evaluate(model, self._evaluation, self._conditions)
        return {name: row[name] for name in NAMES}


def evaluate(
    model: Any, images: CocoSet, conditions: Sequence[Edges], *, batch_size: int = 4, num_workers: int = 0
) -> Iterator[dict[str, Any]]:
    """Yields a row for each condition, with COCO's metric.

    If several processes call this together, each takes its share of the batches. The rows are computed from the
    detections of all processes, and do not depend on their number.

    Yields:
        The condition's fields; the average precision of boxes in per cent, by the names of `metric.NAMES`, and of
        masks, if there are any, as "mask AP" and so on; the numbers of `images`, of `detections` and of images that
        were `skipped`; and `examples`, the detections on the first images.
    """
    for condition in conditions:
        found, skipped = predict(model, images, condition, batch_size=batch_size, num_workers=num_workers)
        truth = images.truth(skipped)
        row = {**vars(condition), **average_precision(truth, _without(found, "segmentation"))}
        if model.roi_heads.has_mask():
            outlined = average_precision(truth, _without(found, "bbox"), "segm")
            row |= {f"mask {name}": value for name, value in outlined.items()}
        counts = {"images": len(images) - len(skipped), "detections": len(found), "skipped": len(skipped)}
        yield row | counts | {"examples": _examples(found, images)}


def _without(found: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in one.items() if name != key} for one in found]


def _examples(found: list[dict[str, Any]], images: CocoSet, num: int = 6) -> dict[str, list[dict[str, Any]]]:
    """Returns the detections with a score of 0.5 or more on the first `num` images, by the image's id."""
    kept: dict[str, list[dict[str, Any]]] = {str(image["id"]): [] for image in images.images[:num]}
    for one in found:
        if str(one["image_id"]) in kept and one["score"] >= 0.5:
            about = {"box": [round(edge, 1) for edge in one["bbox"]], "score": round(one["score"], 3)}
            kept[str(one["image_id"])].append({"category": one["category_id"], **about})
    return kept


@torch.no_grad()
def predict(
    model: Any, images: CocoSet, condition: Edges, *, batch_size: int = 4, num_workers: int = 0
) -> tuple[list[dict[str, Any]], set[int]]:
    """Returns the detections of all processes in COCO's result format, in the order of images, and the indices skipped."""
    state = PartialState(cpu=not torch.cuda.is_available())
    device = next(model.parameters()).device
    whole = [list(range(i, min(i + batch_size, len(images)))) for i in range(0, len(images), batch_size)]
    batches = whole[
        state.process_index :: state.num_processes
    ]  # whole batches, so that padding is the same as in one process
    found: list[tuple[int, list[dict[str, Any]]]] = []
    for indices, batch in zip(batches, read_batches(EvalImages(images), batches, num_workers), strict=True):
        if not batch.images:
            continue
        pixels = [_as_float(image, device) for image in batch.images]
        for at, detected in zip(batch.indices, model(pixels, edges=(condition.short, condition.long)), strict=True):
            found.append((indices[at], _as_results(detected, images, indices[at])))
    everything = sorted(gather_object(found), key=lambda one: one[0])
    return [one for _, own in everything for one in own], set(range(len(images))) - {index for index, _ in everything}


def _as_results(detected: dict[str, Tensor], images: CocoSet, index: int) -> list[dict[str, Any]]:
    """Returns the detections on an image in COCO's result format."""
    left, top, right, bottom = detected["boxes"].double().cpu().unbind(1)
    boxes = torch.stack((left, top, right - left, bottom - top), dim=1).tolist()
    results = []
    for at, (box, label, score) in enumerate(
        zip(boxes, detected["labels"].tolist(), detected["scores"].tolist(), strict=True)
    ):
        about = {"image_id": images.images[index]["id"], "category_id": images.categories[label - 1]["id"]}
        results.append({**about, "bbox": box, "score": score})
        if "masks" in detected:
            outline = (detected["masks"][at, 0] >= 0.5).cpu().numpy().astype(np.uint8)
            (results[-1]["segmentation"],) = rle.encode(np.asfortranarray(outline[..., None]))
    return results


def _as_float(image: Tensor, device: torch.device) -> Tensor:
    return image.to(device).float() / 255
