"""timm's VisionTransformer as a detector's backbone, for batches of images of different sizes."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import comrope
from comrope.encodings import LearnedEncoding, kind_of
from comrope.lab.vit import attach_encoding

Size = tuple[int, int]
"""(height, width)"""


class DetectionViT(nn.Module):
    """A VisionTransformer of timm with an encoding in its attention, beside its own absolute positions; returns feature maps.

    Positions, position embeddings and attention of an image are those of its own patches, which are the ones that begin
    inside of it. So its features depend neither on the other images of the batch nor on padding.
    """

    def __init__(self, vit: Any, encoding: str, settings: dict[str, Any]):
        """
        Args:
            vit: the VisionTransformer, made with dynamic_img_size=True.
            encoding: the name of the encoding; with "ape" the model stays as it is.
            settings: settings of the encoding; `init` and `std` are left out if it learns nothing.
        """
        super().__init__()
        self.vit = vit
        name = "none" if encoding == "ape" else encoding
        if not issubclass(kind_of(name), LearnedEncoding):
            settings = {key: value for key, value in settings.items() if key not in ("init", "std")}
        size = (2 * self.patch, 3 * self.patch)
        attach_encoding(self, name, settings, vit.patch_embed.proj.weight.new_zeros(1, 3, *size), [size])

    @property
    def patch(self) -> int:
        """Edge of a patch in pixels."""
        return self.vit.patch_embed.patch_size[0]

    def forward(self, images: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Returns features (B, width, rows, columns) of images (B, 3, height, width) whose `sizes` without padding are given.

        Features of padded patches are undefined.
        """
        x = self.vit.patch_embed(images)  # (B, rows, columns, width)
        padded_grid, grids = self._grids(images, sizes)
        if all(grid == padded_grid for grid in grids):
            x, mask = self.vit._pos_embed(x), None
        else:
            own = [self._embedded(image, grid) for image, grid in zip(x.split(1), grids, strict=True)]
            x = torch.stack([self._padded(tokens, grid, padded_grid) for tokens, grid in zip(own, grids, strict=True)])
            valid = [torch.ones(len(tokens), 1, dtype=torch.bool, device=x.device) for tokens in own]
            mask = [self._padded(tokens, grid, padded_grid) for tokens, grid in zip(valid, grids, strict=True)]
            mask = torch.stack(mask)[:, None].mT  # (B, 1, 1, L)
        x = self.vit.norm_pre(x)
        for block in self.vit.blocks:
            x = block(x, attn_mask=mask)
        return self.vit.norm(x)[:, self.vit.num_prefix_tokens :].unflatten(1, padded_grid).permute(0, 3, 1, 2)

    def token_positions(self, images: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Returns the positions of tokens in a `forward` with these arguments: (L, 2), or (B, L, 2) if sizes differ."""
        padded_grid, grids = self._grids(images, sizes)
        prefix = {"num_prefix_tokens": self.vit.num_prefix_tokens, "device": images.device}
        if all(grid == padded_grid for grid in grids):
            return comrope.positions.grid(padded_grid, **prefix)
        return torch.stack([self._padded(comrope.positions.grid(grid, **prefix), grid, padded_grid) for grid in grids])

    def _grids(self, images: Tensor, sizes: Sequence[Size]) -> tuple[Size, list[Size]]:
        """Returns the numbers of patches (rows, columns) of the padded batch, and of each image in it."""
        rows, columns = self.vit.patch_embed.dynamic_feat_size(images.shape[2:])
        return (rows, columns), [(-(-height // self.patch), -(-width // self.patch)) for height, width in sizes]

    def _embedded(self, image: Tensor, grid: Size) -> Tensor:
        """Returns the tokens of one image with timm's position embedding, (prefix + rows · columns, width)."""
        return self.vit._pos_embed(image[:, : grid[0], : grid[1]].contiguous())[0]

    def _padded(self, tokens: Tensor, grid: Size, padded_grid: Size) -> Tensor:
        """Pads tokens (prefix + Π grid, n) with zeros at the bottom and right to (prefix + Π padded_grid, n)."""
        prefix = self.vit.num_prefix_tokens
        patches = tokens[prefix:].unflatten(0, grid)
        patches = F.pad(patches, (0, 0, 0, padded_grid[1] - grid[1], 0, padded_grid[0] - grid[0]))
        return torch.cat((tokens[:prefix], patches.flatten(0, 1)))
