"""The classifier of the experiments: timm's VisionTransformer, with any encoding in its attention and nothing else changed."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import checkpoint
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import comrope
from comrope.encodings import AbsoluteEncoding, Encoding, SpectralEncoding, rotations
from comrope.errors import InputError
from comrope.rotation import Rotation, compute_dtype


class RotaryAttention(Attention):
    """timm's attention, with queries and keys turned after the qk-norms."""

    encoding: Encoding

    def forward(self, x: Tensor, place: Rotation | Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = self._turned(x, place)
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.norm(x)))

    def _turned(self, x: Tensor, place: Rotation | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, (B, H, L, D). A learned basis goes into the weights, unless norms stand between it and them."""
        normed = not (isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity))
        if normed or not isinstance(place, Rotation):
            q, k, v = self._heads(self.qkv(x), 3)
            q, k = self.q_norm(q), self.k_norm(k)
            q, k = place.turn(q, k) if isinstance(place, Rotation) else self.encoding(q, k, place)
            return q, k, v
        rows, weight, bias = 2 * self.attn_dim, self.qkv.weight, self.qkv.bias
        qk_bias, v_bias = (None, None) if bias is None else (place.into_basis(bias[:rows]), bias[rows:])
        q, k = self._heads(F.linear(x, place.into_basis(weight[:rows]), qk_bias), 2)
        (v,) = self._heads(F.linear(x, weight[rows:], v_bias), 1)
        return (*place.turn(q, k, in_basis=True), v)

    def _heads(self, x: Tensor, num: int) -> tuple[Tensor, ...]:
        """(B, L, num·H·D) as `num` tensors (B, H, L, D)."""
        return x.unflatten(-1, (num, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)


class RotaryBlock(Block):
    """timm's block, handing its attention the rotation of this layer or, where it has none at hand, the positions."""

    def forward(self, x: Tensor, place: Rotation | Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), place)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ViT(VisionTransformer):
    """A VisionTransformer with a class token whose only positions are those of `encoding`, at any image size.

    Args:
        encoding: name of an encoding; "ape" adds its code book to the tokens, the others turn queries and keys.
        image_size: (height, width) that ape's code book is laid out for; with axes before them in a model that has more.
        encoding_settings: further settings of the encoding, such as block_size=8.
        vit: settings of timm's VisionTransformer: embed_dim, depth, num_heads, patch_size, num_classes, in_chans, ….

    With the same seed all encodings start with the same weights outside of themselves.
    """

    def __init__(self, encoding: str, image_size: tuple[int, ...], encoding_settings: dict | None = None, **vit):
        super().__init__(
            img_size=(image_size[-2], image_size[-1]),
            dynamic_img_size=True,
            pos_embed="none",
            block_fn=RotaryBlock,
            attn_layer=RotaryAttention,
            **vit,
        )
        # timm's own check of the size puts it into a message, which ties a compiled graph to one size; `grid` checks here.
        self.patch_embed.img_size = None
        attentions: list[Any] = [block.attn for block in self.blocks]
        attention = attentions[0]
        shape = {"num_heads": attention.num_heads, "head_dim": attention.head_dim, "num_axes": len(image_size)}
        self.num_axes = len(image_size)
        settings = dict(encoding_settings or {})
        self.ape: AbsoluteEncoding | None = None
        if encoding == "ape":
            self.ape = comrope.encoding("ape", **shape, grid=self.grid(image_size), **settings)  # type: ignore
            encoding, settings = "none", {}
        for attention in attentions:
            attention.encoding = comrope.encoding(encoding, **shape, **settings)

    def grid(self, image_size: tuple[int, ...]) -> tuple[int, ...]:
        """Patches along (rows, columns) of an image of `image_size`; InputError where they leave a rest."""
        *more, height, width = image_size
        patch = self.patch_embed.patch_size
        if height % patch[0] or width % patch[1]:
            raise InputError(f"images of {(height, width)} pixels: expected multiples of the patch, {patch}.")
        return (*more, *self.patch_embed.dynamic_feat_size((height, width)))

    def positions(self, image_size: tuple[int, ...], device: torch.device | str | None = None) -> Tensor:
        """Relative patch centres on [0, 1]², class token first, in the middle: (1 + rows · columns, 2)."""
        return comrope.positions.grid(self.grid(image_size), num_prefix_tokens=self.num_prefix_tokens, device=device)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:  # pyright: ignore
        """Logits (B, classes) of images (B, C, height, width).

        `positions`, (L, 2) or (B, L, 2), replaces `self.positions(...)` where tokens are perturbed or offset.
        """
        return self.forward_head(self.forward_features(x, positions))

    def forward_features(self, x: Tensor, positions: Tensor | None = None) -> Tensor:  # pyright: ignore
        if positions is None:
            positions = self.positions(tuple(x.shape[2:]), x.device)
        x = self._pos_embed(self._patches(x))
        if self.ape is not None:
            x = self.ape(x, positions)
        x = self.norm_pre(x)
        for block, place in zip(self.blocks, self._places(x, positions), strict=True):
            x = checkpoint(block, x, place) if self.grad_checkpointing else block(x, place)
        return self.norm(x)

    def _patches(self, x: Tensor) -> Tensor:
        """(B, C, height, width) as (B, rows, columns, width of the model)."""
        return self.patch_embed(x)

    def _places(self, x: Tensor, positions: Tensor) -> Sequence[Rotation | Tensor]:
        """The rotation of each layer, all worked out at once.

        The positions themselves where there is no spectrum, and where FSDP has sharded the parameters: a block's are whole
        only while that block runs.
        """
        encodings: list[Any] = [block.attn.encoding for block in self.blocks]  # pyright: ignore
        sharded = any(isinstance(p, DTensor) for pe in encodings for p in pe.parameters())
        if sharded or not all(isinstance(pe, SpectralEncoding) for pe in encodings):
            return [positions] * len(encodings)
        return rotations(encodings, positions, dtype=compute_dtype(x))

    def encoding_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that belong to the encoding, by name."""
        owners = [n for n, m in self.named_modules() if isinstance(m, (Encoding, AbsoluteEncoding))]
        return {n: p for n, p in self.named_parameters() if any(n.startswith(f"{o}.") for o in owners)}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay would pull towards no positions at all, beside timm's own."""
        return super().no_weight_decay() | set(self.encoding_parameters())
