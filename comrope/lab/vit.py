"""The classifier of the experiments: timm's VisionTransformer, with any encoding attached and nothing else changed."""

from typing import Any

import torch
from timm.models import checkpoint
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import comrope
from comrope.encodings import AbsoluteEncoding, LearnedEncoding, kind_of
from comrope.errors import InputError
from comrope.hosts import angle_parameters
from comrope.lab.experiment import ExperimentConfig


class ViT(VisionTransformer):
    """A VisionTransformer with a class token, at any image size, whose only positions are those of `encoding`.

    Args:
        encoding: name of an encoding; "ape" adds its code book to the tokens, the others rotate queries and keys.
        image_size: (height, width), after the sizes of further axes if there are any; it gives the size of ape's code
            book.
        encoding_settings: further settings of the encoding, such as block_size=8.
        absolute: whether tokens get ape's code book in addition to a rotary encoding.
        shared_angles: whether all layers share the rotary encoding of the first.
        vit: settings of timm's VisionTransformer: embed_dim, depth, num_heads, patch_size, num_classes, in_chans, ….

    With the same seed, weights outside of the encoding are the same for all encodings.
    """

    def __init__(
        self,
        encoding: str,
        image_size: tuple[int, ...],
        encoding_settings: dict | None = None,
        *,
        absolute: bool = False,
        shared_angles: bool = False,
        **vit,
    ):
        size = (image_size[-2], image_size[-1])
        super().__init__(img_size=size, dynamic_img_size=True, pos_embed="none", **vit)
        # timm's own check formats the size into a message, which ties a compiled graph to one size: `grid` checks here.
        self.patch_embed.img_size = None
        self.num_axes = len(image_size)
        self.trained_grid: tuple[int, ...] = self.grid(image_size)
        settings = dict(encoding_settings or {})
        self.ape: AbsoluteEncoding | None = None
        if encoding == "ape":
            self.ape = self._code_book(image_size, settings)
            encoding, settings = "none", {}
        filters = self.patch_embed.proj.weight
        example = filters.new_zeros(
            1, filters.shape[1], *(2 for _ in image_size[:-2]), 2 * filters.shape[2], 3 * filters.shape[3]
        )
        attach_encoding(self, encoding, settings, example)
        if shared_angles:
            layers: Any = [block.attn for block in self.blocks]  # pyright: ignore
            for layer in layers[1:]:
                layer.encoding = layers[0].encoding
        if absolute and self.ape is None:
            self.ape = self._code_book(image_size, {})

    def _code_book(self, image_size: tuple[int, ...], settings: dict[str, Any]) -> AbsoluteEncoding:
        """Returns the code book of ape, laid out for the patches of such images."""
        attention: Any = self.blocks[0].attn
        sizes = {"num_heads": attention.num_heads, "head_dim": attention.head_dim, "num_axes": self.num_axes}
        return comrope.encoding("ape", **sizes, grid=self.grid(image_size), **settings)  # pyright: ignore

    def grid(self, image_size: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the numbers of patches (rows, columns) of an image; raises InputError if patches do not divide it."""
        *more, height, width = image_size
        patch = self.patch_embed.patch_size
        if height % patch[0] or width % patch[1]:
            raise InputError(f"images of {(height, width)} pixels: expected multiples of the patch, {patch}.")
        return (*more, *self.patch_embed.dynamic_feat_size((height, width)))

    def positions(self, image_size: tuple[int, ...], device: torch.device | str | None = None) -> Tensor:
        """Returns relative patch centres on [0, 1]², (1 + rows · columns, 2), the class token first, in the middle."""
        return comrope.positions.grid(self.grid(image_size), num_prefix_tokens=self.num_prefix_tokens, device=device)

    def token_positions(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Returns the positions of the tokens in a `forward` with these arguments."""
        return self.positions(tuple(x.shape[2:]), x.device) if positions is None else positions

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:  # pyright: ignore
        """Returns logits (B, classes) of images (B, C, height, width).

        `positions`, (L, 2) or (B, L, 2), replaces `self.positions(...)` where tokens are perturbed or offset.
        """
        return self.forward_head(self.forward_features(x, positions))

    def forward_features(self, x: Tensor, positions: Tensor | None = None) -> Tensor:  # pyright: ignore
        tokens = self._pos_embed(self._patches(x))
        if self.ape is not None:
            tokens = self.ape(tokens, self.token_positions(x, positions))
        tokens = self.norm_pre(tokens)
        for block in self.blocks:
            tokens = checkpoint(block, tokens) if self.grad_checkpointing else block(tokens)
        return self.norm(tokens)

    def _patches(self, x: Tensor) -> Tensor:
        """Returns the patches' tokens (B, rows, columns, width of the model) of images (B, C, height, width)."""
        return self.patch_embed(x)

    def no_weight_decay(self) -> set[str]:
        """Returns the names of timm's parameters without weight decay, and of the angles, which it would pull towards 0."""
        return super().no_weight_decay() | set(angle_parameters(self))


def check_encoding(config: ExperimentConfig, sizes: dict[str, Any], num_axes: int) -> None:
    """Raises ConfigurationError for an encoding that the heads of a model cannot have, before data are read or made.

    Args:
        config: the configuration with the encoding.
        sizes: the sizes of the model, among them embed_dim and num_heads.
        num_axes: the number of axes of its positions.
    """
    num_heads = sizes["num_heads"]
    grid = {"grid": (1,) * num_axes} if config.encoding == "ape" else {}
    heads = {"num_heads": num_heads, "head_dim": sizes["embed_dim"] // num_heads, "num_axes": num_axes}
    comrope.encoding(config.encoding, **heads, **grid, **config.settings, device="meta")


def attach_encoding(model: Any, encoding: str, settings: dict[str, Any], *example: Any) -> None:
    """Calls `comrope.attach` with the paper's random initial angles, and the positions that `model.token_positions` returns."""
    if issubclass(kind_of(encoding), LearnedEncoding):
        settings = {"init": "normal"} | settings
    comrope.attach(model, encoding, positions=model.token_positions, example=example, **settings)
