"""Loads the data set that a detection configuration names."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from comrope.errors import ConfigurationError, DataError
from comrope.lab.data.labelled import UNREADABLE
from comrope.lab.detection.coco import CocoSet
from comrope.lab.detection.config import DetectionConfig
from comrope.lab.detection.scenes import scenes

SCENES = Path("runs/data/scenes")


def datasets(config: DetectionConfig, unreadable: str = "fail") -> tuple[CocoSet, CocoSet]:
    """Returns the images to train on and those to evaluate on; the sets read last are cached."""
    return _cached(config.data, config.num_train, config.num_test, unreadable)


@lru_cache(maxsize=2)
def _cached(data: str, num_train: int | None, num_test: int | None, unreadable: str) -> tuple[CocoSet, CocoSet]:
    if unreadable not in UNREADABLE:
        raise ConfigurationError(f"unreadable={unreadable!r}: expected one of {', '.join(UNREADABLE)}.")
    generated = data == "scenes" or data.startswith("scenes:")
    if generated:
        sizes = {key: value for key, value in (("num_train", num_train), ("num_val", num_test)) if value is not None}
        root = scenes(Path(data.removeprefix("scenes:")) if ":" in data else SCENES, **sizes)
    else:
        root = Path(data)
    settings: dict[str, Any] = {"unreadable": unreadable, "mirrors": not generated}
    train, test = CocoSet(root, "train", num_train, **settings), CocoSet(root, "val", num_test, **settings)
    if train.categories != test.categories:
        raise DataError(f"{root}: the categories of train and val differ: expected the same in both.")
    return train, test
