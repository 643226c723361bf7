"""Builds the image classifier of a configuration: the laboratory's ViT, or a model of timm with an encoding attached."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_model
from torch import nn

import comrope
from comrope.errors import ConfigurationError, DataError
from comrope.lab.experiment import WEIGHTS
from comrope.lab.images.config import ImageConfig
from comrope.lab.images.in_memory import ImageSet
from comrope.lab.images.rows import ImageStream
from comrope.lab.vit import ViT, check_encoding

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
    "demo": {"embed_dim": 64, "depth": 3, "num_heads": 4, "patch_size": 8, "mlp_ratio": 2},
    "small": {"embed_dim": 64, "depth": 4, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
    "vit-s/16": {"embed_dim": 384, "depth": 12, "num_heads": 6, "patch_size": 16},
    "vit-b/16": {"embed_dim": 768, "depth": 12, "num_heads": 12, "patch_size": 16},
}
"""Settings of timm's VisionTransformer. "timm:small" is timm's own class with these settings and its absolute position
embedding, to which the encoding is attached; "timm:<another name>" is a model of `timm.create_model`."""


def check(config: ImageConfig) -> None:
    """Raises ConfigurationError for an unknown model, or settings that it cannot have."""
    if config.model.startswith("timm:"):
        for name in ("absolute", "shared_angles"):
            if getattr(config, name):
                raise ConfigurationError(
                    f"{name}=True with model={config.model!r}: a model of timm keeps its own positions and has angles in "
                    "each layer; leave it out, or use a model of the laboratory."
                )
        if config.perturbation:
            raise ConfigurationError(
                f"perturbation={config.perturbation} with model={config.model!r}: an attached model reads its "
                "positions off the image; use perturbation=0, or a model of the laboratory."
            )
        return
    if config.start is not None:
        raise ConfigurationError(
            f"start={config.start!r}: only a model of timm, model='timm:…', starts from weights; leave it out."
        )
    if config.model not in MODELS:
        raise ConfigurationError(
            f"model={config.model!r}: expected one of {', '.join(MODELS)}, or 'timm:' and the name of a model there."
        )
    check_encoding(config, MODELS[config.model], num_axes=2)


def build(config: ImageConfig, images: ImageSet | ImageStream, runs: Path | None = None) -> nn.Module:
    """Returns the untrained model; with the same seed, weights outside of the encoding are the same for all encodings.

    Args:
        config: the configuration.
        images: images of the data set, whose classes and channels the model gets.
        runs: the folder that the folder of the run `config.start` is in.
    """
    check(config)
    torch.manual_seed(config.recipe.seed)
    shape: dict[str, Any] = {"num_classes": len(images.classes), "in_chans": images.channels}
    if config.augment == "deit":
        shape["drop_path_rate"] = 0.1
    if config.model.startswith("timm:"):
        return _attached(config, shape, runs)
    shape |= {"absolute": config.absolute, "shared_angles": config.shared_angles}
    return ViT(config.encoding, config.image_size, config.settings, **MODELS[config.model], **shape)


def _attached(config: ImageConfig, shape: dict, runs: Path | None) -> nn.Module:
    """Returns a model of timm with its own absolute positions and the encoding attached."""
    name = config.model.removeprefix("timm:")
    shape |= {"img_size": config.image_size, "dynamic_img_size": True}
    if name in MODELS:
        name, shape = "vit_tiny_patch16_224", shape | MODELS[name]
    try:
        model: Any = timm.create_model(name, pretrained=config.start == "pretrained", **shape)
    except Exception as error:  # timm raises errors of many kinds: unknown names, no network, models without patches
        raise ConfigurationError(
            f"model='timm:{name}' cannot be made ({type(error).__name__}: {error}): expected the name of a model of timm with "
            "attention that takes images of any size, such as vit_small_patch16_224."
        ) from error
    if config.start not in (None, "pretrained"):
        weights = (runs or Path()) / str(config.start) / WEIGHTS
        if not weights.exists():
            raise DataError(f"start={config.start!r}: {weights} does not exist; train that run first.")
        load_model(model, weights)
    if config.encoding == "ape":
        return model
    return comrope.attach(model, config.encoding, **config.settings)
