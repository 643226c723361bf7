"""Image classification: what decides a run, its model, and its loss."""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_model
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

import comrope
from comrope.errors import ConfigurationError, DataError
from comrope.lab.data import Batch, ImageSet, Training, load
from comrope.lab.evaluate import Condition
from comrope.lab.evaluate import measure as measure
from comrope.lab.experiment import WEIGHTS, Experiment
from comrope.lab.train import Means
from comrope.lab.vit import ViT, check_encoding

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
    "demo": {"embed_dim": 64, "depth": 3, "num_heads": 4, "patch_size": 8, "mlp_ratio": 2},
    "small": {"embed_dim": 64, "depth": 4, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
    "vit-s/16": {"embed_dim": 384, "depth": 12, "num_heads": 6, "patch_size": 16},
    "vit-b/16": {"embed_dim": 768, "depth": 12, "num_heads": 12, "patch_size": 16},
}
"""Settings of timm's VisionTransformer. Written "timm:small" it is timm's own class, with its absolute position embedding, to
which the encoding is attached; "timm:<anything else>" is a model that `timm.create_model` knows."""


@lru_cache(maxsize=2)
def _load(*arguments: Any) -> tuple[ImageSet, ImageSet]:
    *which, unreadable = arguments
    return load(*which, unreadable=unreadable)


def data(experiment: Experiment, unreadable: str = "fail") -> tuple[ImageSet, ImageSet]:
    """Images to train on and to test on; those read last are kept in memory."""
    return _load(experiment.data, experiment.num_train, experiment.num_test, unreadable)


def check(experiment: Experiment) -> None:
    """Refuses a model that there is not, and settings that it cannot have."""
    if experiment.model.startswith("timm:"):
        if experiment.perturbation:
            raise ConfigurationError(
                f"perturbation={experiment.perturbation} with model={experiment.model!r}: an attached model reads its "
                "positions off the image; use perturbation=0, or a model of the laboratory."
            )
        return
    if experiment.start is not None:
        raise ConfigurationError(
            f"start={experiment.start!r}: only a model of timm, model='timm:…', starts from weights; leave it out."
        )
    if experiment.model not in MODELS:
        raise ConfigurationError(
            f"model={experiment.model!r}: expected one of {', '.join(MODELS)}, or 'timm:' and the name of a model there."
        )
    check_encoding(experiment, MODELS[experiment.model], num_axes=2)


def build(experiment: Experiment, images: ImageSet, runs: Path | None = None) -> nn.Module:
    """The model of an experiment; with the same seed all encodings start from the same weights outside of themselves.

    Args:
        experiment: which.
        images: what it classifies; their classes and channels matter.
        runs: the folder that `experiment.start` is a run in.
    """
    check(experiment)
    torch.manual_seed(experiment.recipe.seed)
    shape: dict[str, Any] = {"num_classes": len(images.classes), "in_chans": images.channels}
    if experiment.augment == "deit":
        shape["drop_path_rate"] = 0.1
    if experiment.model.startswith("timm:"):
        return _attached(experiment, shape, runs)
    return ViT(experiment.encoding, experiment.image_size, experiment.settings, **MODELS[experiment.model], **shape)


def _attached(experiment: Experiment, shape: dict, runs: Path | None) -> nn.Module:
    """A model of timm with its own absolute positions, and the encoding in its attention."""
    name = experiment.model.removeprefix("timm:")
    shape |= {"img_size": experiment.image_size, "dynamic_img_size": True}
    if name in MODELS:
        name, shape = "vit_tiny_patch16_224", shape | MODELS[name]
    try:
        model: Any = timm.create_model(name, pretrained=experiment.start == "pretrained", **shape)
    except Exception as error:  # whatever timm makes of a model without patches, of a name, or of no network
        raise ConfigurationError(
            f"model='timm:{name}' cannot be made ({type(error).__name__}: {error}): expected the name of a model of timm with "
            "attention that takes images of any size, such as vit_small_patch16_224."
        ) from error
    if experiment.start not in (None, "pretrained"):
        weights = (runs or Path()) / str(experiment.start) / WEIGHTS
        if not weights.exists():
            raise DataError(f"start={experiment.start!r}: {weights} does not exist; train that run first.")
        load_model(model, weights)
    if experiment.encoding == "ape":
        return model
    return comrope.attach(model, experiment.encoding, **experiment.settings)


def conditions(
    experiment: Experiment,
    resolutions: Sequence[tuple[int, int]] = (),
    offsets: Sequence[float] = (0.0,),
    direction: str = "random",
    perturbations: Sequence[float] = (0.0,),
    seed: int = 0,
) -> list[Condition]:
    """Every combination of sizes, the trained one if there are none, coordinate offsets and perturbations."""
    sizes = resolutions or [experiment.image_size]
    return [
        Condition(size, offset, direction if offset else "random", sigma, seed if offset or sigma else 0)
        for size, offset, sigma in itertools.product(sizes, offsets, perturbations)
    ]


def task(model: nn.Module, images: ImageSet, experiment: Experiment) -> "Classification":
    return Classification(model, images, experiment)


class Classification:
    """Images with one label each, for the training loop."""

    def __init__(self, model: nn.Module, images: ImageSet, experiment: Experiment):
        settings = {"augment": experiment.augment, "enlargement": experiment.enlargement, "flip": images.mirrors}
        self.feed = Training(images, experiment.image_size, seed=experiment.recipe.seed, **settings)
        self._sigma = experiment.perturbation
        self._mixup = None
        if experiment.augment == "deit":
            smoothing = {"label_smoothing": 0.1, "num_classes": len(images.classes)}
            self._mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, **smoothing)
        self._positions = None
        if isinstance(model, ViT):
            self._positions = model.positions(
                experiment.image_size
            )  # perturbed on the CPU: the same draws on every device
            self._patch = [1 / n for n in model.grid(experiment.image_size)]
            self._prefix = model.num_prefix_tokens

    def loss(self, model: nn.Module, batch: Batch, draws: torch.Generator) -> tuple[Tensor, Means]:
        device = next(model.parameters()).device
        pixels, labels = batch.pixels.to(device), batch.labels.to(device)
        if self._mixup is not None:  # of pairs: an odd one out is left out
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
                self._positions, self._patch, self._sigma, num_prefix_tokens=self._prefix, generator=draws
            )
            logits = model(pixels, moved.to(device))
        loss = F.cross_entropy(logits, targets) if self._mixup is None else SoftTargetCrossEntropy()(logits, targets)
        hits = (logits.argmax(-1) == labels).float().mean()
        return loss if count else 0 * loss, Means(count, {"accuracy": hits}, len(batch.skipped))
