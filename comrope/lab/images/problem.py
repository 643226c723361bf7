"""Image classification as a `comrope.lab.problem.Problem`."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

import comrope
from comrope.lab.classification import Condition
from comrope.lab.classification import evaluate as evaluate
from comrope.lab.data.batches import Batch
from comrope.lab.images.config import ImageConfig
from comrope.lab.images.data import datasets as datasets
from comrope.lab.images.in_memory import ImageSet
from comrope.lab.images.loading import StreamedTrainImages, TrainImages
from comrope.lab.images.model import build as build
from comrope.lab.images.model import check as check
from comrope.lab.images.rows import ImageStream
from comrope.lab.options import ClassifierOptions, among_larger
from comrope.lab.train import BatchMetrics, Task
from comrope.lab.vit import ViT


def conditions(config: ImageConfig, options: ClassifierOptions | None = None) -> list[Condition]:
    """Returns every combination of the sizes, offsets, perturbations and scalings asked for; by default the size trained at.

    Scalings are combined with sizes beyond the trained one only.
    """
    options = options or ClassifierOptions()
    sizes = options.sizes() or [config.image_size]
    asked = itertools.product(sizes, options.displacements(), options.scalings or ("none",))
    found = [Condition(size, *moved, scaling=scaling) for size, moved, scaling in asked]
    return among_larger(found, lambda c: any(a > b for a, b in zip(c.size, config.image_size, strict=True)))


def task(
    model: nn.Module, train: ImageSet | ImageStream, evaluation: ImageSet, config: ImageConfig
) -> "Classification":
    """Returns the training task: the training images and the cross-entropy loss."""
    return Classification(model, train, config)


class Classification(Task):
    """Trains on images with one label each, by cross-entropy."""

    def __init__(self, model: nn.Module, images: ImageSet | ImageStream, config: ImageConfig):
        settings = {"augment": config.augment, "resize_ratio": config.resize_ratio, "flip": images.mirrors}
        augmented: Any = StreamedTrainImages if isinstance(images, ImageStream) else TrainImages
        self.dataset = augmented(images, config.image_size, seed=config.recipe.seed, **settings)
        self._sigma = config.perturbation
        self._mixup = None
        if config.augment == "deit":
            smoothing = {"label_smoothing": 0.1, "num_classes": len(images.classes)}
            self._mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, **smoothing)
        self._positions = None
        if isinstance(model, ViT):
            # Perturbed on the CPU: the same random numbers on every device.
            self._positions = model.positions(config.image_size)
            self._patch = [1 / n for n in model.grid(config.image_size)]
            self._prefix = model.num_prefix_tokens

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> tuple[Tensor, BatchMetrics]:
        device = next(model.parameters()).device
        pixels, labels = batch.pixels.to(device), batch.labels.to(device)
        if self._mixup is not None:  # it mixes pairs: the last of an odd number is left out
            pixels, labels = pixels[: len(labels) // 2 * 2], labels[: len(labels) // 2 * 2]
        count = len(labels)
        if not count:
            pixels, labels = pixels.new_zeros(2, *pixels.shape[1:]), labels.new_zeros(2)
        targets = labels
        if self._mixup is not None:
            pixels, targets = self._mixup(pixels, labels)
        if self._positions is None:
            logits = model(pixels)
        else:
            moved = comrope.positions.perturb(
                self._positions, self._patch, self._sigma, num_prefix_tokens=self._prefix, generator=rng
            )
            logits = model(pixels, moved.to(device))
        loss = F.cross_entropy(logits, targets) if self._mixup is None else SoftTargetCrossEntropy()(logits, targets)
        hits = (logits.argmax(-1) == labels).float().mean()
        return loss if count else 0 * loss, BatchMetrics(count, {"accuracy": hits}, len(batch.skipped))
