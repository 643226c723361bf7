"""timm: models with a patch embedding, with or without a RoPE of their own."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers.patch_dropout import PatchDropout, PatchDropoutWithIndices, patch_dropout_forward
from timm.layers.pos_embed_sincos import (
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
    RotaryEmbeddingMRope,
)
from torch import Tensor, nn

from comrope.encodings import Encoding
from comrope.errors import ConfigurationError
from comrope.hosts._attention import Reading, find_layers, half_layout
from comrope.hosts._surgery import Hook, Swap, Trunk
from comrope.hosts._tokens import Canvas, PatchTeller, Tokens


def trunks(model: nn.Module) -> list[Trunk]:
    """The transformers of timm in a model: modules with a convolution that makes patches, and none of these inside another."""
    found: list[Trunk] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside) if inside else False:
            continue
        if not type(module).__module__.startswith("timm.models") or _patches(module) is None:
            continue
        prefix = f"{name}." if name else ""
        layers = [layer for layer in find_layers(module, name) if layer.name.startswith(f"{prefix}blocks.")]
        if layers:
            found.append(TimmTrunk(module, layers, Tokens()))
            inside += (prefix,)
    return found


def _patches(module: nn.Module) -> nn.Conv2d | None:
    projection = getattr(getattr(module, "patch_embed", None), "proj", None)
    return projection if isinstance(projection, nn.Conv2d) else None


class TimmTrunk(Trunk):
    """A model of timm, or the part of one that has the patch embedding and the blocks."""

    module: Any

    def hooks(self, prefix):
        canvas = Canvas(prefix=prefix) if self._rope is None else rope_canvas(self._rope)
        patches = _patches(self.module)
        assert patches is not None
        return [Hook(patches, PatchTeller(self.tokens, canvas, self.module, self.module.num_prefix_tokens))]

    def swaps(self, *, keep_ape, whole):
        trunk = self.module
        sets: dict[str, Any] = {"no_weight_decay": _Undecayed(trunk)}
        if self._rope is not None and whole:
            sets["rope"] = None
        if not keep_ape and getattr(trunk, "pos_embed", None) is not None:
            sets["pos_embed"] = None
        swaps = [Swap(trunk, sets)]
        drop = getattr(trunk, "patch_drop", None)
        if type(drop) in PATCH_DROPOUTS:
            swaps.append(Swap(drop, {"tokens": self.tokens}, PATCH_DROPOUTS[type(drop)]))
        return swaps

    def example(self):
        size = self.module.patch_embed.img_size or (2 * self.module.patch_embed.patch_size[0],) * 2
        weight = self.module.patch_embed.proj.weight
        return torch.randn(1, weight.shape[1], *size, dtype=weight.dtype, device=weight.device)

    def readings(self, layer, call):
        if call.kwargs.get("rope") is None:
            return [Reading()]
        order = half_layout(layer.head_dim) if getattr(layer.attention, "rotate_half", False) else None
        frequencies = rope_frequencies(self._rope, self._depth[layer.attention])
        return [Reading(frequencies=frequencies, order=order, table="rope")]

    def take_back(self, frequencies: Mapping[nn.Module, Tensor]) -> bool:
        if type(self._rope) is not RotaryEmbeddingMixed:
            return False
        for attention, depth in self._depth.items():
            if attention in frequencies:
                self._rope.freqs.data[:, depth] = _rows_first(self._rope, frequencies[attention])
        return True

    def settle(self):
        if hasattr(self._rope, "update_feat_shape"):  # the image size may have changed while the rope was set aside
            self._rope.update_feat_shape(self.module.patch_embed.grid_size)

    @property
    def _depth(self) -> dict[nn.Module, int]:
        return {layer.attention: depth for depth, layer in enumerate(find_layers(self.module.blocks))}

    @property
    def _rope(self) -> Any:
        return getattr(self.module, "rope", None)


class _Undecayed:
    """In place of a model's `no_weight_decay`: its own names, and those of the angles."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self) -> set[str]:
        owners = [name for name, module in self.model.named_modules() if isinstance(module, Encoding)]
        angles = {name for name, _ in self.model.named_parameters() if name.startswith(tuple(f"{o}." for o in owners))}
        return set(type(self.model).no_weight_decay(self.model)) | angles  # pyright: ignore


class RotaryPatchDropout(PatchDropout):
    """timm's `PatchDropout`, telling which patches stay."""

    tokens: Tokens

    def forward(self, x: Tensor) -> Tensor:
        x, kept = patch_dropout_forward(x, self.prob, self.num_prefix_tokens, self.ordered, self.training)
        if kept is not None:
            self.tokens.keep(kept, self.num_prefix_tokens)
        return self.tokens.pin(x)


class RotaryPatchDropoutWithIndices(PatchDropoutWithIndices):
    """timm's `PatchDropoutWithIndices`, telling which patches stay."""

    tokens: Tokens

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x, kept = super().forward(x)
        if kept is not None:
            self.tokens.keep(kept, self.num_prefix_tokens)
        return x, kept


PATCH_DROPOUTS: dict[type, type[nn.Module]] = {
    PatchDropout: RotaryPatchDropout,
    PatchDropoutWithIndices: RotaryPatchDropoutWithIndices,
}


def rope_canvas(rope: Any) -> Canvas:
    """The positions that a rope module of timm multiplies its frequencies with; prefix tokens, which it leaves, at 0."""
    augmentation: dict[str, Any] = {
        name: getattr(rope, f"{name}_coords", None) for name in ("shift", "jitter", "rescale")
    }
    if isinstance(rope, (RotaryEmbeddingDinoV3, RotaryEmbeddingCat)):
        kind = "centered" if isinstance(rope, RotaryEmbeddingDinoV3) else rope.grid_type
        unit = {"index": "index", "centered": "centred", "pixel": "spread"}[kind]
        divisor = "own" if rope.normalize_coords == "separate" else rope.normalize_coords
        reference = getattr(rope, "ref_feat_shape", None)
        return Canvas(unit, "origin", rope.grid_offset, reference, divisor, **augmentation)
    return Canvas("index", "origin", **augmentation)


def rope_frequencies(rope: Any, layer: int) -> Tensor:
    """ω (2, H or 1, D/2) of a rope module of timm in one layer, axes (row, column), radians per unit of its canvas."""
    kind = type(rope)  # exactly: a subclass may lay its planes out in another way
    if kind is RotaryEmbeddingMixed:
        return _rows_first(rope, rope.freqs.detach()[:, layer])
    if kind is RotaryEmbeddingMRope:
        return torch.stack([rope.inv_freq * (rope.axis == axis) for axis in (1, 2)]).unsqueeze(1)
    if kind not in (RotaryEmbeddingDinoV3, RotaryEmbeddingCat):
        raise ConfigurationError(f"{kind.__name__} is no RoPE of timm that comrope knows.")
    bands = 2 * math.pi / rope.periods.double() if kind is RotaryEmbeddingDinoV3 else rope.bands
    still = torch.zeros_like(bands)
    axial = torch.stack((torch.cat((bands, still)), torch.cat((still, bands))))  # (2, D/2)
    return _rows_first(rope, axial.unsqueeze(1))


def _rows_first(rope: Any, frequencies: Tensor) -> Tensor:
    return frequencies.flip(0) if rope.grid_indexing == "xy" else frequencies
