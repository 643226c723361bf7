"""The video classifier (paper, Table 3): the laboratory's ViT with frames as a third axis."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comrope.errors import ConfigurationError, InputError
from comrope.lab.video.clips import Clips
from comrope.lab.video.config import VideoConfig
from comrope.lab.vit import ViT, check_encoding

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2},
    "small": {"embed_dim": 96, "depth": 2, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2},
    "paper": {"embed_dim": 384, "depth": 8, "num_heads": 8, "patch_size": 16},
}
"""Settings of timm's VisionTransformer. Heads have 24 or 48 features, so that the three axes get equally many blocks of 8."""


def check(config: VideoConfig) -> None:
    """Raises ConfigurationError for an unknown model, or an encoding that its heads cannot have."""
    if config.model not in MODELS:
        raise ConfigurationError(f"model={config.model!r}: expected one of {', '.join(MODELS)}.")
    check_encoding(config, MODELS[config.model], num_axes=3)
    if config.flip and config.data.startswith("motion"):
        raise ConfigurationError("flip=True with data='motion': the classes are directions; leave it out.")


def build(config: VideoConfig, clips: Clips, runs: Path | None = None) -> "VideoViT":
    """Returns the untrained model; with the same seed, weights outside of the encoding are the same for all encodings."""
    check(config)
    torch.manual_seed(config.recipe.seed)
    shape = (config.num_frames, config.image_size)
    sizes = {"num_classes": len(clips.classes), **MODELS[config.model]}
    return VideoViT(config.encoding, *shape, config.settings, **sizes)


class VideoViT(ViT):
    """A ViT whose tokens are the patches of all frames of a clip. Each patch lies in one frame; attention is over all patches.

    Positions are (frame, row, column), each relative to its own extent; the class token is in the middle of all three. Clips
    may have any number of frames, of any size that is a multiple of the patch.

    Args:
        encoding: the name of an encoding; "ape" adds a code book over frames, rows and columns to the tokens.
        num_frames, image_size: number of frames and (height, width) that give the size of ape's code book.
        encoding_settings, vit: see `ViT`.
    """

    def __init__(
        self,
        encoding: str,
        num_frames: int,
        image_size: tuple[int, int],
        encoding_settings: dict | None = None,
        **vit,
    ):
        super().__init__(encoding, (num_frames, *image_size), encoding_settings, **vit)

    def positions(self, image_size: tuple[int, ...], device: torch.device | str | None = None) -> Tensor:
        """Returns relative patch centres on [0, 1]³, (1 + frames · rows · columns, 3), the class token first, in the middle.

        `image_size` is (frames, height, width), as it is for `grid`.
        """
        return super().positions(image_size, device)

    def token_positions(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        if x.ndim != 5:
            raise InputError(f"clips: got {tuple(x.shape)}, expected (B, channels, frames, height, width).")
        return super().token_positions(x, positions)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Returns logits (B, classes) of clips (B, C, frames, height, width).

        `positions`, (L, 3) or (B, L, 3), replaces `self.positions(...)` where tokens are perturbed or offset.
        """
        return super().forward(x, positions)

    def _patches(self, x: Tensor) -> Tensor:
        """Returns the patches' tokens (B, frames, rows, columns, width) of clips (B, C, frames, height, width)."""
        return self.patch_embed(x.transpose(1, 2).flatten(0, 1)).contiguous().unflatten(0, (len(x), -1))
