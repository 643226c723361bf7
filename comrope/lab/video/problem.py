"""Video classification as a `comrope.lab.problem.Problem`."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import comrope
from comrope.errors import ConfigurationError
from comrope.lab import classification
from comrope.lab.data.batches import Batch
from comrope.lab.options import among_larger
from comrope.lab.train import BatchMetrics, Task
from comrope.lab.video.clips import Clips
from comrope.lab.video.config import MOST_FRAMES, VideoConfig, VideoOptions
from comrope.lab.video.data import datasets as datasets
from comrope.lab.video.loading import EvalClips, TrainClips
from comrope.lab.video.model import VideoViT
from comrope.lab.video.model import build as build
from comrope.lab.video.model import check as check

MOVES = (False, True, True)
"""Whether the perturbation moves positions along each axis (frame, row, column): not along frames (paper, section 4)."""


@dataclass(frozen=True)
class Condition(classification.Condition):
    """A size and a number of frames of test clips, a displacement of their coordinates, and a scaling of the frequencies.

    An offset moves positions along all three axes; "first-axis" is the frames, "last-axis" the columns. The scaling "riflex" is
    for the frames alone, as it was published.
    """

    num_frames: int = 8

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.num_frames <= MOST_FRAMES:
            raise ConfigurationError(f"frames={self.num_frames}: expected 1 to {MOST_FRAMES} frames of a clip.")

    @property
    def image_size(self) -> tuple[int, ...]:
        return (self.num_frames, *self.size)

    @property
    def method(self) -> str | tuple[str, ...]:
        return ("riflex", "none", "none") if self.scaling == "riflex" else self.scaling

    @property
    def perturbed(self) -> tuple[bool, ...]:
        return MOVES

    def dataset(self, images: Clips) -> EvalClips:
        return EvalClips(images, self.num_frames, self.size)


def conditions(config: VideoConfig, options: VideoOptions | None = None) -> list[Condition]:
    """Returns every combination of the sizes, frames, offsets, perturbations and scalings asked for; by default as trained.

    Scalings are combined with more frames or larger ones than those trained with only, "riflex" with more frames.
    """
    options = options or VideoOptions()
    sizes, counts = options.sizes() or [config.image_size], options.frames or [config.num_frames]
    asked = itertools.product(sizes, counts, options.displacements(), options.scalings or ("none",))
    found = [Condition(size, *moved, scaling=scaling, num_frames=n) for size, n, moved, scaling in asked]

    def is_larger(condition: Condition) -> bool:
        frames = condition.num_frames > config.num_frames
        larger = any(a > b for a, b in zip(condition.size, config.image_size, strict=True))
        return frames or (larger and condition.scaling != "riflex")

    return among_larger(found, is_larger)


def evaluate(
    model: VideoViT, clips: Clips, conditions: Sequence[Condition], *, num_workers: int = 0
) -> Iterator[dict[str, Any]]:
    """Returns rows, one for each condition; see `comrope.lab.classification.evaluate`."""
    return classification.evaluate(model, clips, conditions, batch_size=25, num_workers=num_workers)


def task(model: VideoViT, train: Clips, evaluation: Clips, config: VideoConfig) -> "Classification":
    """Returns the training task: the training clips and the cross-entropy loss."""
    return Classification(model, train, config)


class Classification(Task):
    """Trains on clips with one label each, by cross-entropy."""

    def __init__(self, model: VideoViT, clips: Clips, config: VideoConfig):
        flip = clips.mirrors if config.flip is None else config.flip
        shape = (config.num_frames, config.image_size)
        settings = {"resize_ratio": config.resize_ratio, "flip": flip, "seed": config.recipe.seed}
        self.dataset = TrainClips(clips, *shape, **settings)
        self._sigma = config.perturbation
        size = (config.num_frames, *config.image_size)
        self._positions = model.positions(size)  # perturbed on the CPU: the same random numbers on every device
        self._patch = [1 / n for n in model.grid(size)]
        self._prefix = model.num_prefix_tokens

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, BatchMetrics]:
        device = next(model.parameters()).device
        pixels, labels = batch.pixels.to(device), batch.labels.to(device)
        count = len(labels)
        if not count:
            pixels, labels = pixels.new_zeros(1, *pixels.shape[1:]), labels.new_zeros(1)
        moved = comrope.positions.perturb(
            self._positions, self._patch, self._sigma, axes=MOVES, num_prefix_tokens=self._prefix, generator=rng
        )
        logits = model(pixels, moved.to(device))
        hits = (logits.argmax(-1) == labels).float().mean()
        loss = F.cross_entropy(logits, labels)
        return loss if count else 0 * loss, BatchMetrics(count, {"accuracy": hits}, len(batch.skipped))
