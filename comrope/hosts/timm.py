"""timm: models with a patch embedding, with or without a RoPE of their own."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers.patch_dropout import PatchDropout, PatchDropoutWithIndices, patch_dropout_forward
from torch import Tensor, nn

from comrope.encodings import Encoding
from comrope.errors import ConfigurationError
from comrope.hosts._attention import Reading, find_layers, half_layout
from comrope.hosts._patches import tokens_around
from comrope.hosts._proof import at_rest
from comrope.hosts._surgery import Call, Hook, Swap, Trunk
from comrope.hosts._tables import measured
from comrope.hosts._tokens import Canvas, PatchTeller, Tokens


def trunks(model: nn.Module) -> list[Trunk]:
    """The outermost models of timm in a model that have attention layers."""
    found: list[Trunk] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        ours = any(kind.__module__.startswith("timm.models") for kind in type(module).__mro__)
        if name.startswith(inside) or not ours:
            continue
        layers = find_layers(module, name)
        flexible = hasattr(module, "embeds") and hasattr(module.embeds, "num_prefix_tokens")
        if layers and (flexible or hasattr(module, "patch_embed")):
            found.append((NaFlexTrunk if flexible else TimmTrunk)(module, layers, Tokens()))
            inside += (f"{name}." if name else "",)
    return found


class TimmTrunk(Trunk):
    """A model of timm, or the part of one that has the patch embedding and the blocks."""

    module: Any

    def hooks(self, prefix):
        with at_rest(self.module):
            conv, before, after = tokens_around(self.run, self.module)
        return [Hook(conv, PatchTeller(self.tokens, self._canvas(prefix), self.module, before, after))]

    def _canvas(self, prefix: str) -> Canvas:
        return Canvas(prefix=prefix) if self._rope is None else rope_canvas(self._rope)

    def swaps(self, *, keep_ape, whole):
        trunk = self.module
        sets: dict[str, Any] = {"no_weight_decay": _Undecayed(trunk)}
        if self._rope is not None and whole:
            sets["rope"] = None
        if not keep_ape and getattr(trunk, "pos_embed", None) is not None:
            if hasattr(trunk, "head_dist"):
                raise ConfigurationError(f"{type(trunk).__name__} cannot do without its APE: leave out keep_ape=False.")
            sets["pos_embed"] = None
        swaps = [Swap(trunk, sets)]
        drop: Any = getattr(trunk, "patch_drop", None)
        if type(drop) in PATCH_DROPOUTS:
            swaps.append(Swap(drop, {"tokens": self.tokens}, PATCH_DROPOUTS[type(drop)]))
        return swaps

    def example(self):
        config: Any = getattr(self.module, "pretrained_cfg", None) or getattr(self.module, "default_cfg", None) or {}
        embedded: Any = getattr(self.module, "patch_embed", None)
        size = getattr(embedded, "img_size", None) or config.get("input_size", (224,))[-2:]
        size = (size, size) if isinstance(size, int) else (size[0], size[-1])
        weight = next(p for p in self.module.parameters() if p.ndim > 1)
        channels = next((m.in_channels for m in self.module.modules() if isinstance(m, nn.Conv2d)), 3)
        return torch.randn(1, channels, *size, dtype=weight.dtype, device=weight.device)

    def readings(self, layer, call):
        if call.kwargs.get("rope") is None:
            return [Reading()]
        order = half_layout(layer.head_dim) if getattr(layer.attention, "rotate_half", False) else None
        if getattr(self._rope, "bands", self) is None:  # timm before 1.0.29 keeps no more than the table of one grid
            return self._off_the_table(call)
        frequencies = rope_frequencies(self._rope, self._depth[layer.attention])
        return [Reading(frequencies=frequencies, order=order, table="rope")]

    def _off_the_table(self, call: Call) -> list[Reading]:
        """The RoPE as its table, [sin | cos] of the patches, shows it."""
        sin, cos = call.kwargs["rope"].chunk(2, dim=-1)
        patches = call.positions[-len(sin) :]
        places = torch.stack([axis.unique(return_inverse=True)[1] for axis in patches.unbind(-1)], dim=-1).double()
        steps = (patches[-1] - patches[0]).double() / places[-1].clamp(min=1)
        found = measured((cos, sin), places, cos.shape[-1])
        return [
            Reading(frequencies=frequencies / steps.view(-1, 1, 1), order=order, table="rope")
            for frequencies, order in found
        ]

    def take_back(self, frequencies: Mapping[nn.Module, Tensor]) -> bool:
        if type(self._rope).__name__ != "RotaryEmbeddingMixed":
            return False
        for attention, depth in self._depth.items():
            if attention in frequencies:
                self._rope.freqs.data[:, depth] = _rows_first(self._rope, frequencies[attention])
        return True

    def settle(self):
        if hasattr(self._rope, "update_feat_shape") and hasattr(
            self.module, "patch_embed"
        ):  # the image size may have changed while the rope was set aside
            self._rope.update_feat_shape(self.module.patch_embed.grid_size)

    @property
    def _depth(self) -> dict[nn.Module, int]:
        return {layer.attention: depth for depth, layer in enumerate(find_layers(self.module))}

    @property
    def _rope(self) -> Any:
        return getattr(self.module, "rope", None)


class NaFlexTrunk(TimmTrunk):
    """NaFlexVit: images of any shape, or patches with their coordinates, each sample on a grid of its own."""

    def hooks(self, prefix):
        embeds = self.module.embeds
        return [Hook(embeds, _FlexibleTeller(self.tokens, self._canvas(prefix), self.module), with_kwargs=True)]

    def swaps(self, *, keep_ape, whole):
        if not keep_ape and self.module.embeds.pos_embed is not None:
            raise ConfigurationError("NaFlexVit cannot do without its APE: leave out keep_ape=False.")
        return super().swaps(keep_ape=True, whole=whole)

    def example(self):
        rows, columns = self.module.embeds.patch_size
        weight = next(self.module.parameters())
        return torch.randn(1, 3, 2 * rows, 3 * columns, dtype=weight.dtype, device=weight.device)


class _FlexibleTeller(PatchTeller):
    """The hook on the embedding of NaFlexVit."""

    def __init__(self, tokens: Tokens, canvas: Canvas, model: Any):
        super().__init__(tokens, canvas, model, model.num_prefix_tokens)

    def __call__(self, module, args, kwargs, output) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        embedded, grid = output
        coordinates = kwargs.get("patch_coord", args[1] if len(args) > 1 else None)
        if coordinates is None:
            self.tell(grid, embedded)
            return
        shape, training = coordinates.amax(dim=1) + 1, self.model.training
        positions = self.canvas.positions_of(
            coordinates, shape, self.num_prefix_tokens, like=embedded, training=training
        )
        self.tokens.tell(positions).pin(embedded)


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
        return self.tokens.latest_places().pin(x)


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
    kind = type(rope).__name__
    if kind not in ("RotaryEmbeddingDinoV3", "RotaryEmbeddingCat"):
        return Canvas("index", "origin", **augmentation)
    default = "pixel" if getattr(rope, "in_pixels", False) else "index"  # timm before 1.0.29
    grid = "centered" if kind == "RotaryEmbeddingDinoV3" else getattr(rope, "grid_type", default)
    unit = {"index": "index", "centered": "centred", "pixel": "spread"}[grid]
    divided = getattr(rope, "normalize_coords", "separate")
    divisor = "own" if divided == "separate" else divided
    reference = getattr(rope, "ref_feat_shape", None)
    return Canvas(unit, "origin", rope.grid_offset, reference, divisor, **augmentation)


def rope_frequencies(rope: Any, layer: int) -> Tensor:
    """ω (2, H or 1, D/2) of a rope module of timm in one layer, axes (row, column), radians per unit of its canvas."""
    kind = type(
        rope
    ).__name__  # not of subclasses, which may lay their planes out in another way; older timm lacks some
    if kind == "RotaryEmbeddingMixed":
        return _rows_first(rope, rope.freqs.detach()[:, layer])
    if kind == "RotaryEmbeddingMRope":
        return torch.stack([rope.inv_freq * (rope.axis == axis) for axis in (1, 2)]).unsqueeze(1)
    if kind not in ("RotaryEmbeddingDinoV3", "RotaryEmbeddingCat"):
        raise ConfigurationError(f"{kind} is no RoPE of timm that comrope knows.")
    bands = 2 * math.pi / rope.periods.double() if kind == "RotaryEmbeddingDinoV3" else rope.bands
    still = torch.zeros_like(bands)
    axial = torch.stack((torch.cat((bands, still)), torch.cat((still, bands))))  # (2, D/2)
    return _rows_first(rope, axial.unsqueeze(1))


def _rows_first(rope: Any, frequencies: Tensor) -> Tensor:
    return frequencies.flip(0) if rope.grid_indexing == "xy" else frequencies
