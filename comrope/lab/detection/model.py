"""Builds the detector of a configuration: a VisionTransformer of timm with initial weights, an encoding, and heads."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from comrope.errors import ConfigurationError, DataError
from comrope.lab.detection.coco import CocoSet
from comrope.lab.detection.config import DetectionConfig
from comrope.lab.detection.detector import Backbone, Detector
from comrope.lab.detection.vit import DetectionViT
from comrope.lab.experiment import WEIGHTS

HEADS = ("boxes", "masks")
_FULL: dict[str, Any] = {"channels": 256, "heads": {}}
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vit": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 16, "mlp_ratio": 2, "img_size": 64},
        "channels": 16,
        "heads": {"hidden": 32, "proposals": 50, "sampled": 32},
    },
    "small": {
        "vit": {"embed_dim": 64, "depth": 3, "num_heads": 4, "patch_size": 16, "mlp_ratio": 2, "img_size": 128},
        "channels": 32,
        "heads": {"hidden": 128, "proposals": 100, "sampled": 64},
    },
    "vit-s/16": {"name": "vit_small_patch16_224", **_FULL},
}
"""The backbone, as settings of timm's VisionTransformer or the name of a model there; channels of its pyramid; sizes of
the heads. "timm:<name>" has the heads of "vit-s/16"."""


def check(config: DetectionConfig) -> None:
    """Raises ConfigurationError for an unknown model or head."""
    if config.head not in HEADS:
        raise ConfigurationError(f"head={config.head!r}: expected one of {', '.join(HEADS)}.")
    name = config.model
    if not name.startswith("timm:") and name not in MODELS:
        raise ConfigurationError(f"model={name!r}: expected one of {', '.join(MODELS)}, or 'timm:' and a name there.")


def build(config: DetectionConfig, images: CocoSet, runs: Path | None = None) -> Detector:
    """Returns the untrained detector; with the same seed, weights outside of the encoding are the same for all encodings.

    Args:
        config: the configuration.
        images: images of the data set, whose classes the model gets.
        runs: the folder that the folder of the run `config.start` is in.
    """
    check(config)
    torch.manual_seed(config.recipe.seed)
    name = config.model
    model = {"name": name.removeprefix("timm:"), **_FULL} if name.startswith("timm:") else MODELS[name]
    vit = _vit(config, model, runs)
    with torch.random.fork_rng(devices=[]):  # keeps the weights of the heads independent of the encoding
        detection_vit = DetectionViT(vit, config.encoding, config.settings)
    return Detector(
        Backbone(detection_vit, model["channels"]),
        len(images.classes),
        masks=config.head == "masks",
        edges=(config.short_edges, config.long_edge),
        normal=(vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"]),
        **model["heads"],
    )


def _vit(config: DetectionConfig, model: dict[str, Any], runs: Path | None) -> Any:
    name, shape = model.get("name", "vit_tiny_patch16_224"), model.get("vit", {})
    settings = {"num_classes": 0, "dynamic_img_size": True, "drop_path_rate": config.drop_path, **shape}
    try:
        vit = timm.create_model(name, pretrained=config.start == "pretrained", **settings)
    except Exception as error:  # timm raises errors of many kinds: unknown names, no network, models of other classes
        raise ConfigurationError(
            f"model={config.model!r} is no VisionTransformer of timm ({type(error).__name__}: {error}): name one that is."
        ) from error
    if not isinstance(vit, VisionTransformer):
        raise ConfigurationError(f"model={config.model!r} is a {type(vit).__name__}, expected a VisionTransformer.")
    if config.start not in (None, "pretrained"):
        _load_weights(vit, config.start, runs)
    return vit


def _load_weights(vit: VisionTransformer, start: str, runs: Path | None) -> None:
    """Loads all weights but those of heads and encodings, from a file of weights or from that of a run."""
    file = Path(start) if Path(start).is_file() else (runs or Path()) / start / WEIGHTS
    if not file.is_file():
        raise DataError(f"start={start!r}: {file} does not exist; train that run first, or name a file of weights.")
    prefix = "backbone.trunk.vit."
    found = {name.removeprefix(prefix): value for name, value in load_state_dict(str(file)).items()}
    first = found.get("patch_embed.proj.weight")
    if first is not None and first.ndim == 4 and first.shape[1] == 1:
        # Weights for grey images are applied to the mean of the three channels.
        found["patch_embed.proj.weight"] = first.repeat(1, 3, 1, 1) / 3
    own = vit.state_dict()
    found = {name: value for name, value in checkpoint_filter_fn(found, vit).items() if name in own}
    missing = [name for name in own if name not in found or found[name].shape != own[name].shape]
    if missing:
        raise DataError(
            f"start={start!r}: {file} has no weights of this backbone for {', '.join(missing[:3])}, …: expected those of a "
            "VisionTransformer of the same sizes."
        )
    vit.load_state_dict(found)
