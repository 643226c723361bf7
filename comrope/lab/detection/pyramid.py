"""ViTDet's simple feature pyramid (arXiv:2203.16527, section 3). Padding has no effect on the features of an image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from comrope.lab.detection.vit import Size


def inside(map_size: Size, stride: int, image_size: Size, device: torch.device | None = None) -> Tensor:
    """Returns whether each cell of a feature map begins inside of the image: (rows, columns), bool."""
    rows, columns = (
        torch.arange(n, device=device) * stride < n_image for n, n_image in zip(map_size, image_size, strict=True)
    )
    return rows[:, None] & columns


class Pyramid(nn.Module):
    """Computes maps with `channels` at ¼, ½, 1, 2 and 4 times the patch's stride from the one map of a plain ViT.

    Padded cells are set to zero before and after each layer that reads neighbouring cells. So the features at the
    border of an image are the same as in a batch of its own.
    """

    def __init__(self, width: int, channels: int, patch: int):
        super().__init__()
        self.strides = (patch // 4, patch // 2, patch, 2 * patch, 4 * patch)
        self.channels = channels
        half, quarter = width // 2, width // 4
        self.scales = nn.ModuleList(
            (
                nn.Sequential(_up(width, half), LayerNorm2d(half), nn.GELU(), _up(half, quarter)),
                _up(width, half),
                nn.Identity(),
                nn.MaxPool2d(2),
            )
        )
        widths = (quarter, half, width, width)
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n, channels, 1, bias=False), LayerNorm2d(channels)) for n in widths
        )
        self.smoothings = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels))
            for _ in widths
        )

    def forward(self, x: Tensor, sizes: Sequence[Size]) -> dict[str, Tensor]:
        """Returns maps by level, "0" the finest, of features (B, width, rows, columns) of images of `sizes` (height, width)."""
        x = _cleared(x, self.strides[2], sizes)
        maps = {}
        levels = zip(self.strides, self.scales, self.projections, self.smoothings, strict=False)
        for level, (stride, scale, project, smooth) in enumerate(levels):
            y = _cleared(project(scale(x)), stride, sizes)
            maps[str(level)] = _cleared(smooth(y), stride, sizes)
        maps["4"] = F.max_pool2d(maps["3"], 1, 2)  # every other cell
        return maps


def _up(width: int, channels: int) -> nn.Module:
    return nn.ConvTranspose2d(width, channels, 2, stride=2)


def _cleared(x: Tensor, stride: int, sizes: Sequence[Size]) -> Tensor:
    """Returns feature maps with padded cells set to zero."""
    is_inside = torch.stack([inside((x.shape[-2], x.shape[-1]), stride, size, x.device) for size in sizes])
    return x.masked_fill(~is_inside[:, None], 0.0)
