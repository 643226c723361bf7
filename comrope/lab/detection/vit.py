"""timm's VisionTransformer as a detector's backbone: images of different sizes in a batch, each as if it were alone."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

import comrope
from comrope.encodings import ENCODINGS, LearnedEncoding, SpectralEncoding, rotations
from comrope.lab.vit import RotaryAttention
from comrope.rotation import Rotation, compute_dtype

Size = tuple[int, int]
"""(height, width)"""


class MaskedAttention(RotaryAttention):
    """timm's attention with queries and keys turned, which looks at some of the tokens only."""

    def forward(self, x: Tensor, place: Rotation | Tensor, seen: Tensor | None = None) -> Tensor:  # pyright: ignore
        q, k, v = self._turned(x, place)
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.norm(x)))


class MaskedBlock(Block):
    """timm's block, handing its attention the rotation of this layer, or the positions, and which tokens are to be seen."""

    def forward(self, x: Tensor, place: Rotation | Tensor, seen: Tensor | None = None) -> Tensor:  # pyright: ignore
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), place, seen)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


LAYERS: dict[str, Any] = {"block_fn": MaskedBlock, "attn_layer": MaskedAttention}
"""What `timm.create_model` makes a VisionTransformer of, for `Trunk`; parameters have the names that they have without it."""


class Trunk(nn.Module):
    """Tokens of a VisionTransformer, made of LAYERS, with an encoding in its attention beside its own absolute positions.

    Each image has the positions, the absolute codes and the attention of its own patches, those that begin inside of it:
    whatever else is in its batch, and however far it is padded, does not change them.
    """

    def __init__(self, vit: Any, encoding: str, settings: dict[str, Any]):
        """
        Args:
            vit: the VisionTransformer, of dynamic_img_size=True.
            encoding: a name; "ape" leaves the model as it is.
            settings: of the encoding; `init` and `std` matter where angles are learned.
        """
        super().__init__()
        self.vit = vit
        name = "none" if encoding == "ape" else encoding
        if not issubclass(ENCODINGS.get(name, nn.Module), LearnedEncoding):
            settings = {key: value for key, value in settings.items() if key not in ("init", "std")}
        for block in vit.blocks:
            shape = {"num_heads": block.attn.num_heads, "head_dim": block.attn.head_dim, "num_axes": 2}
            block.attn.encoding = comrope.encoding(name, **shape, **settings)

    @property
    def patch(self) -> int:
        """Edge of a patch in pixels."""
        return self.vit.patch_embed.patch_size[0]

    def forward(self, images: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Features (B, width, rows, columns) of images (B, 3, height, width), of which `sizes` are no padding.

        What is at padded places means nothing.
        """
        x = self.vit.patch_embed(images)  # (B, rows, columns, width)
        canvas = (x.shape[1], x.shape[2])
        grids = [(-(-height // self.patch), -(-width // self.patch)) for height, width in sizes]
        x, positions, seen = self._alike(x) if all(g == canvas for g in grids) else self._padded(x, grids)
        x = self.vit.norm_pre(x)
        for block, place in zip(self.vit.blocks, self._places(x, positions), strict=True):
            x = block(x, place, seen)
        return self.vit.norm(x)[:, self.vit.num_prefix_tokens :].unflatten(1, canvas).permute(0, 3, 1, 2)

    def _alike(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        prefix = self.vit.num_prefix_tokens
        positions = comrope.positions.grid(tuple(x.shape[1:3]), num_prefix_tokens=prefix, device=x.device)
        return self.vit._pos_embed(x), positions, None

    def _padded(self, x: Tensor, grids: Sequence[Size]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L, width), positions (B, L, 2), and which tokens may be looked at, (B, 1, 1, L)."""
        prefix = self.vit.num_prefix_tokens
        tokens, places, seen = [], [], []
        for image, (rows, columns) in zip(x.split(1), grids, strict=True):
            own = self.vit._pos_embed(image[:, :rows, :columns].contiguous())[0]  # (prefix + rows · columns, width)
            place = comrope.positions.grid((rows, columns), num_prefix_tokens=prefix, device=x.device)
            canvas = (x.shape[1], x.shape[2])
            tokens.append(_laid_out(own, prefix, (rows, columns), canvas))
            places.append(_laid_out(place, prefix, (rows, columns), canvas))
            there = torch.ones(len(own), 1, dtype=torch.bool, device=x.device)
            seen.append(_laid_out(there, prefix, (rows, columns), canvas))
        return torch.stack(tokens), torch.stack(places), torch.stack(seen)[:, None].mT

    def _places(self, x: Tensor, positions: Tensor) -> Sequence[Rotation | Tensor]:
        """The rotation of each layer, or the positions where there is no spectrum."""
        encodings: list[Any] = [block.attn.encoding for block in self.vit.blocks]
        if not all(isinstance(pe, SpectralEncoding) for pe in encodings):
            return [positions] * len(encodings)
        return rotations(encodings, positions, dtype=compute_dtype(x))


def _laid_out(tokens: Tensor, prefix: int, grid: Size, canvas: Size) -> Tensor:
    """(prefix + Π grid, n) as (prefix + Π canvas, n): the grid in the canvas's first corner, zeros elsewhere."""
    patches = tokens[prefix:].unflatten(0, grid)
    patches = F.pad(patches, (0, 0, 0, canvas[1] - grid[1], 0, canvas[0] - grid[0]))
    return torch.cat((tokens[:prefix], patches.flatten(0, 1)))
