"""Resizing and cropping of tensors, with the geometry that Pillow has for image files."""

import torch.nn.functional as F
from torch import Tensor


def cover(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns images (n, channels, height, width), resized with their aspect ratio to the smallest size that covers `size`.

    The interpolation is bilinear and antialiased, as in `PIL.ImageOps.cover`.
    """
    scale = max(small / big for small, big in zip(size, pixels.shape[-2:], strict=True))
    target = [max(small, round(scale * big)) for small, big in zip(size, pixels.shape[-2:], strict=True)]
    return F.interpolate(pixels, target, mode="bilinear", antialias=True, align_corners=False)


def crop(pixels: Tensor, size: tuple[int, int], down: float = 0.5, right: float = 0.5) -> Tensor:
    """Returns the crop of `size` at these shares, in [0, 1), of the possible offsets; by default the centre crop."""
    row, column = (
        int(share * (big - small + 1)) for share, big, small in zip((down, right), pixels.shape[-2:], size, strict=True)
    )
    return pixels[..., row : row + size[0], column : column + size[1]]
