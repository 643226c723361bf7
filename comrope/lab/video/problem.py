"""Video classification: its data, its model, its loss, and under what it is measured."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import comrope
from comrope.errors import ConfigurationError
from comrope.lab import evaluate
from comrope.lab.data import Batch, subset
from comrope.lab.train import Means
from comrope.lab.video.clips import Clips, video_folder
from comrope.lab.video.experiment import MOST_FRAMES, VideoExperiment
from comrope.lab.video.feed import TestingClips, TrainingClips
from comrope.lab.video.model import MODELS, VideoViT
from comrope.lab.video.motion import motion
from comrope.lab.vit import check_encoding

MOVES = (False, True, True)
"""The axes (frame, row, column) that perturbation moves: frames are held still (paper, section 4)."""


@dataclass(frozen=True)
class Condition(evaluate.Condition):
    """What test clips and their coordinates are put through.

    An offset moves frames, rows and columns alike; "first-axis" is the frames, "last-axis" the columns.
    """

    num_frames: int = 8

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.num_frames <= MOST_FRAMES:
            raise ConfigurationError(f"frames={self.num_frames}: expected 1 to {MOST_FRAMES} frames of a clip.")

    @property
    def canvas(self) -> tuple[int, ...]:
        return (self.num_frames, *self.size)

    @property
    def perturbed(self) -> tuple[bool, ...]:
        return MOVES

    def feed(self, images: Clips) -> TestingClips:
        return TestingClips(images, self.num_frames, self.size)


def conditions(
    experiment: VideoExperiment,
    resolutions: Sequence[tuple[int, int]] = (),
    frames: Sequence[int] = (),
    offsets: Sequence[float] = (0.0,),
    direction: str = "random",
    perturbations: Sequence[float] = (0.0,),
    seed: int = 0,
) -> list[Condition]:
    """Every combination of sizes and numbers of frames, those trained at if there are none, offsets and perturbations."""
    sizes, counts = resolutions or [experiment.image_size], frames or [experiment.num_frames]
    return [
        Condition(size, offset, direction if offset else "random", sigma, seed if offset or sigma else 0, num_frames=n)
        for size, n, offset, sigma in itertools.product(sizes, counts, offsets, perturbations)
    ]


def measure(
    model: VideoViT, clips: Clips, conditions: Sequence[Condition], *, readers: int = 0
) -> list[dict[str, Any]]:
    """Correct answers under each condition, see `comrope.lab.evaluate.measure`."""
    return evaluate.measure(model, clips, conditions, batch_size=25, readers=readers)


def data(experiment: VideoExperiment, unreadable: str = "fail") -> tuple[Clips, Clips]:
    """Clips to train on and to test on."""
    return _load(experiment.data, experiment.split, experiment.num_train, experiment.num_test, unreadable)


@lru_cache(maxsize=2)
def _load(source: str, split: int, num_train: int | None, num_test: int | None, unreadable: str) -> tuple[Clips, Clips]:
    name, _, folder = source.partition(":")
    if name == "motion":
        return motion(Path(folder) if folder else None, num_train, num_test, unreadable)
    if not os.path.isdir(source):  # also of what can be no name of a file, where Path's raises
        raise ConfigurationError(
            f"data={source!r}: expected motion, motion:<folder>, or a folder of videos: UCF-101 as it is unpacked, or "
            "train/<class>/* and val/<class>/*; --data says where it is."
        )
    train, test = video_folder(Path(source), split, unreadable)
    return subset(train, num_train, f"num_train, {source}"), subset(test, num_test, f"num_test, {source}")


def check(experiment: VideoExperiment) -> None:
    """Refuses a model that there is not, and an encoding that its heads cannot have."""
    if experiment.model not in MODELS:
        raise ConfigurationError(f"model={experiment.model!r}: expected one of {', '.join(MODELS)}.")
    check_encoding(experiment, MODELS[experiment.model], num_axes=3)
    if experiment.flip and experiment.data.startswith("motion"):
        raise ConfigurationError("flip=True with data='motion': the classes are directions; leave it out.")


def build(experiment: VideoExperiment, clips: Clips, runs: Path | None = None) -> VideoViT:
    """The model of an experiment; with the same seed all encodings start from the same weights outside of themselves."""
    check(experiment)
    torch.manual_seed(experiment.recipe.seed)
    shape = (experiment.num_frames, experiment.image_size)
    sizes = {"num_classes": len(clips.classes), **MODELS[experiment.model]}
    return VideoViT(experiment.encoding, *shape, experiment.settings, **sizes)


def task(model: VideoViT, clips: Clips, experiment: VideoExperiment) -> "Classification":
    return Classification(model, clips, experiment)


class Classification:
    """Clips with one label each, for the training loop."""

    def __init__(self, model: VideoViT, clips: Clips, experiment: VideoExperiment):
        flip = clips.mirrors if experiment.flip is None else experiment.flip
        shape = (experiment.num_frames, experiment.image_size)
        settings = {"enlargement": experiment.enlargement, "flip": flip, "seed": experiment.recipe.seed}
        self.feed = TrainingClips(clips, *shape, **settings)
        self._sigma = experiment.perturbation
        canvas = (experiment.num_frames, *experiment.image_size)
        self._positions = model.positions(canvas)  # perturbed on the CPU: the same draws on every device
        self._patch = [1 / n for n in model.grid(canvas)]
        self._prefix = model.num_prefix_tokens

    def loss(self, model: VideoViT, batch: Batch, draws: torch.Generator) -> tuple[Tensor, Means]:
        device = next(model.parameters()).device
        pixels, labels = batch.pixels.to(device), batch.labels.to(device)
        count = len(labels)
        if not count:
            pixels, labels = pixels.new_zeros(1, *pixels.shape[1:]), labels.new_zeros(1)
        moved = comrope.positions.perturb(
            self._positions, self._patch, self._sigma, axes=MOVES, num_prefix_tokens=self._prefix, generator=draws
        )
        logits = model(pixels, moved.to(device))
        hits = (logits.argmax(-1) == labels).float().mean()
        loss = F.cross_entropy(logits, labels)
        return loss if count else 0 * loss, Means(count, {"accuracy": hits}, len(batch.skipped))
