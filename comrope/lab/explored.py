"""What `comrope show` needs of a run: its model, the patches of its samples, and one of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import comrope
from comrope.encodings import Encoding
from comrope.errors import ConfigurationError
from comrope.explorer import pictures
from comrope.lab import runs
from comrope.lab.images.config import ImageConfig
from comrope.lab.text.config import TextConfig
from comrope.lab.video.config import VideoConfig


def of_run(
    folder: Path, *, where: str | None = None, image: Path | None = None, sample: int | None = None
) -> tuple[nn.Module, Any, Tensor | None]:
    """Returns the trained model of a run, the grid that it was trained on (None if the model tells), and an image for it.

    A language model with its own RoPE gets RoPE-Mixed in place of it, which starts as the same rotation.

    Args:
        folder: the run's folder.
        where: where the data are now, if they were moved.
        image: an image file, which is fitted to the size of the run's images.
        sample: the number of a test image, in place of a file.
    Raises:
        ConfigurationError: an image for a run on something else, or there are not as many.
    """
    config = runs.experiment_of(folder)
    config = config if where is None else replace(config, data=where)
    if not isinstance(config, ImageConfig) and (image is not None or sample is not None):
        raise ConfigurationError(f"{folder} is a run on {config.kind}: --image and --sample are for runs on images.")
    model: Any = runs.load_run(folder, where=where)
    grid = None
    if isinstance(config, TextConfig):
        grid = config.length
        if not any(isinstance(module, Encoding) for module in model.modules()):
            comrope.attach(model, "rope-mixed")
    elif isinstance(config, VideoConfig):
        grid = model.grid((config.num_frames, *config.image_size))
    elif isinstance(config, ImageConfig) and not config.model.startswith("timm:"):
        grid = model.grid(config.image_size)
    shown = None
    if isinstance(config, ImageConfig) and (image is not None or sample is not None):
        shown = _image(config, image, sample)
    return model, grid, shown


def _image(config: ImageConfig, image: Path | None, sample: int | None) -> Tensor:
    """Returns an image file or a test image of a run, (C, height, width) in [−1, 1], as its model takes it."""
    from comrope.lab.images.loading import EvalImages

    images = config.problem.datasets(config)[1]
    if image is not None:
        like = torch.zeros(1, images.channels, *config.image_size)
        return pictures.read(image, like, (0.5, 0.5))[0][0]
    if sample is None or not 0 <= sample < len(images):
        raise ConfigurationError(f"--sample {sample}: expected 0 to {len(images) - 1}, the number of a test image.")
    return EvalImages(images, config.image_size).__getitems__([sample]).pixels[0]
