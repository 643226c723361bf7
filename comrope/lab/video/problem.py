"""Video classification, as `comrope.lab.problem.Problem` describes a problem."""

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
from comrope.lab.train import BatchMetrics, Task
from comrope.lab.video.clips import Clips
from comrope.lab.video.config import MOST_FRAMES, VideoConfig, VideoOptions
from comrope.lab.video.data import datasets as datasets
from comrope.lab.video.loading import EvalClips, TrainClips
from comrope.lab.video.model import VideoViT
from comrope.lab.video.model import build as build
from comrope.lab.video.model import check as check

MOVES = (False, True, True)
"""The axes (frame, row, column) that perturbation moves: frames are held still (paper, section 4)."""


@dataclass(frozen=True)
class Condition(classification.Condition):
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

    def dataset(self, images: Clips) -> EvalClips:
        return EvalClips(images, self.num_frames, self.size)


def conditions(config: VideoConfig, options: VideoOptions | None = None) -> list[Condition]:
    """Every combination of the sizes, numbers of frames, offsets and perturbations that are asked for; else as trained."""
    options = options or VideoOptions()
    sizes, counts = options.sizes() or [config.image_size], options.frames or [config.num_frames]
    return [
        Condition(size, *moved, num_frames=n) for size in sizes for n in counts for moved in options.displacements()
    ]


def evaluate(
    model: VideoViT, clips: Clips, conditions: Sequence[Condition], *, num_workers: int = 0
) -> Iterator[dict[str, Any]]:
    """A row for each condition, see `comrope.lab.classification.evaluate`."""
    return classification.evaluate(model, clips, conditions, batch_size=25, num_workers=num_workers)


def task(model: VideoViT, train: Clips, evaluation: Clips, config: VideoConfig) -> "Classification":
    """The training clips, and cross-entropy."""
    return Classification(model, train, config)


class Classification(Task):
    """Clips with one label each, for the training loop."""

    def __init__(self, model: VideoViT, clips: Clips, config: VideoConfig):
        flip = clips.mirrors if config.flip is None else config.flip
        shape = (config.num_frames, config.image_size)
        settings = {"resize_ratio": config.resize_ratio, "flip": flip, "seed": config.recipe.seed}
        self.dataset = TrainClips(clips, *shape, **settings)
        self._sigma = config.perturbation
        canvas = (config.num_frames, *config.image_size)
        self._positions = model.positions(canvas)  # perturbed on the CPU: the same draws on every device
        self._patch = [1 / n for n in model.grid(canvas)]
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
