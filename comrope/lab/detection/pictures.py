"""Draws test images with annotated and detected boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from comrope.lab import figures
from comrope.lab.detection.coco import CocoSet


def examples(images: CocoSet, found: dict[str, dict[str, list[dict[str, Any]]]]) -> Figure:
    """Draws test images, a row for each encoding, with annotated boxes (dashed) and detections with scores of 0.5 or more.

    Args:
        images: the test images.
        found: the detections by encoding and by the image's id: the `examples` of a row of `evaluate`.
    """
    names = {category["id"]: category["name"] for category in images.categories}
    shown = [i for i in range(len(images)) if str(images.images[i]["id"]) in next(iter(found.values()), {})]
    figure = Figure(figsize=(figures.WIDTH, 1.5 * len(found) + 0.4), facecolor="white", layout="constrained")
    figure.suptitle("Found (solid, with score), and what is there (dashed)", fontsize=figures.TEXT, x=0.02, ha="left")
    grid = figure.subplots(len(found), max(1, len(shown)), squeeze=False)
    for line, (encoding, detections) in zip(grid, found.items(), strict=True):
        colour = figures.style(encoding).colour
        line[0].set_ylabel(figures.style(encoding).label, fontsize=figures.TEXT - 1)
        for axes, index in zip(line, shown, strict=False):
            pixels = images.pixels(index)
            if pixels is not None:
                axes.imshow(np.moveaxis(pixels.numpy(), 0, -1))
            for annotation in images.annotations[index]:
                _box(axes, annotation["bbox"], figures.INK, "--", "")
            for one in detections[str(images.images[index]["id"])]:
                _box(axes, one["box"], colour, "-", f"{names[one['category']]} {one['score']:.2f}")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    return figure


def _box(axes: Any, box: Sequence[float], colour: str, dashes: str, text: str) -> None:
    around = {"edgecolor": "white", "linewidth": 2.2, "fill": False}
    axes.add_patch(Rectangle((box[0], box[1]), box[2], box[3], **around))
    axes.add_patch(
        Rectangle(
            (box[0], box[1]), box[2], box[3], **around | {"edgecolor": colour, "linewidth": 1.1}, linestyle=dashes
        )
    )
    if text:
        axes.text(
            box[0],
            box[1],
            text,
            fontsize=5,
            color="white",
            va="bottom",
            bbox={"facecolor": colour, "pad": 0.5, "lw": 0},
        )
