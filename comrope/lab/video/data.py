"""Loads the data set that a video configuration names."""

import os
from functools import lru_cache
from pathlib import Path

from comrope.errors import ConfigurationError
from comrope.lab.data.labelled import subset
from comrope.lab.video.clips import Clips, video_folder
from comrope.lab.video.config import VideoConfig
from comrope.lab.video.motion import motion


def datasets(config: VideoConfig, unreadable: str = "fail") -> tuple[Clips, Clips]:
    """Returns the clips to train on and those to evaluate on; the sets read last are cached."""
    return _cached(config.data, config.split, config.num_train, config.num_test, unreadable)


@lru_cache(maxsize=2)
def _cached(
    source: str, split: int, num_train: int | None, num_test: int | None, unreadable: str
) -> tuple[Clips, Clips]:
    name, _, folder = source.partition(":")
    if name == "motion":
        return motion(Path(folder) if folder else None, num_train, num_test, unreadable)
    if not os.path.isdir(source):  # Path.is_dir raises for strings that cannot be file names
        raise ConfigurationError(
            f"data={source!r}: expected motion, motion:<folder>, or a folder of videos: UCF-101 as it is unpacked, or "
            "train/<class>/* and val/<class>/*; --data says where it is."
        )
    train, test = video_folder(Path(source), split, unreadable)
    return subset(train, num_train, f"num_train, {source}"), subset(test, num_test, f"num_test, {source}")
