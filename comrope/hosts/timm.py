"""timm: models with a patch embedding, with or without a RoPE of their own."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers.patch_dropout import PatchDropout, PatchDropoutWithIndices, patch_dropout_forward
from torch import Tensor, nn

from comrope._planes import half_layout
from comrope.encodings import Encoding
from comrope.errors import ConfigurationError
from comrope.hosts._attention_layer import Convention, LayerCall, find_attention_layers
from comrope.hosts._backbone import Backbone, ModuleHook, ModuleOverride
from comrope.hosts._coordinate_grid import CoordinateGrid
from comrope.hosts._host_rope import frequencies_from_table
from comrope.hosts._patch_tokens import find_patch_embedding
from comrope.hosts._position_context import PositionContext
from comrope.hosts._position_hooks import PatchPositionHook
from comrope.hosts._proof import deterministic_eval


def find_backbones(model: nn.Module) -> list[Backbone]:
    """Returns the outermost timm models in a model that have attention layers."""
    found: list[Backbone] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        is_timm = any(kind.__module__.startswith("timm.models") for kind in type(module).__mro__)
        if name.startswith(inside) or not is_timm:
            continue
        layers = find_attention_layers(module, name)
        flexible = hasattr(module, "embeds") and hasattr(module.embeds, "num_prefix_tokens")
        if layers and (flexible or hasattr(module, "patch_embed")):
            found.append((NaFlexBackbone if flexible else TimmBackbone)(module, layers, PositionContext()))
            inside += (f"{name}." if name else "",)
    return found


class TimmBackbone(Backbone):
    """A timm model, or the part of one with the patch embedding and the blocks."""

    module: Any

    def position_hooks(self, prefix):
        with deterministic_eval(self.module):
            conv, before, after = find_patch_embedding(self.run_example, self.module)
        hook = PatchPositionHook(self.position_context, self._coordinate_grid(prefix), self.module, before, after)
        return [ModuleHook(conv, hook)]

    def _coordinate_grid(self, prefix: str) -> CoordinateGrid:
        return CoordinateGrid(prefix=prefix) if self._rope is None else rope_coordinate_grid(self._rope)

    def overrides(self, *, keep_ape, all_layers):
        model = self.module
        attributes: dict[str, Any] = {"no_weight_decay": _NoWeightDecay(model)}
        if self._rope is not None and all_layers:
            attributes["rope"] = None
        if not keep_ape and getattr(model, "pos_embed", None) is not None:
            if hasattr(model, "head_dist"):
                raise ConfigurationError(f"{type(model).__name__} cannot do without its APE: leave out keep_ape=False.")
            attributes["pos_embed"] = None
        overrides = [ModuleOverride(model, attributes)]
        drop: Any = getattr(model, "patch_drop", None)
        if type(drop) in PATCH_DROPOUTS:
            overrides.append(
                ModuleOverride(drop, {"position_context": self.position_context}, PATCH_DROPOUTS[type(drop)])
            )
        return overrides

    def example(self):
        config: Any = getattr(self.module, "pretrained_cfg", None) or getattr(self.module, "default_cfg", None) or {}
        embedded: Any = getattr(self.module, "patch_embed", None)
        size = getattr(embedded, "img_size", None) or config.get("input_size", (224,))[-2:]
        size = (size, size) if isinstance(size, int) else (size[0], size[-1])
        weight = next(p for p in self.module.parameters() if p.ndim > 1)
        channels = next((m.in_channels for m in self.module.modules() if isinstance(m, nn.Conv2d)), 3)
        return torch.randn(1, channels, *size, dtype=weight.dtype, device=weight.device)

    def conventions(self, layer, call):
        if call.kwargs.get("rope") is None:
            return [Convention()]
        order = half_layout(layer.head_dim) if getattr(layer.attention, "rotate_half", False) else None
        if getattr(self._rope, "bands", self) is None:  # timm before 1.0.29 has only the table of one grid
            return self._conventions_from_table(call)
        frequencies = rope_frequencies(self._rope, self._depth[layer.attention])
        return [Convention(frequencies=frequencies, order=order, rope_argument="rope")]

    def _conventions_from_table(self, call: LayerCall) -> list[Convention]:
        """Returns conventions with the RoPE as found from its table, [sin | cos] of the patches."""
        sin, cos = call.kwargs["rope"].chunk(2, dim=-1)
        patches = call.positions[-len(sin) :]
        indices = torch.stack([axis.unique(return_inverse=True)[1] for axis in patches.unbind(-1)], dim=-1).double()
        steps = (patches[-1] - patches[0]).double() / indices[-1].clamp(min=1)
        found = frequencies_from_table((cos, sin), indices, cos.shape[-1])
        return [
            Convention(frequencies=frequencies / steps.view(-1, 1, 1), order=order, rope_argument="rope")
            for frequencies, order in found
        ]

    def restore_rope(self, frequencies: Mapping[nn.Module, Tensor]) -> bool:
        if type(self._rope).__name__ != "RotaryEmbeddingMixed":
            return False
        for attention, depth in self._depth.items():
            if attention in frequencies:
                self._rope.freqs.data[:, depth] = _row_axis_first(self._rope, frequencies[attention])
        return True

    def refresh_rope(self):
        # The image size may have changed while the RoPE was removed.
        if hasattr(self._rope, "update_feat_shape") and hasattr(self.module, "patch_embed"):
            self._rope.update_feat_shape(self.module.patch_embed.grid_size)

    @property
    def _depth(self) -> dict[nn.Module, int]:
        return {layer.attention: depth for depth, layer in enumerate(find_attention_layers(self.module))}

    @property
    def _rope(self) -> Any:
        return getattr(self.module, "rope", None)


class NaFlexBackbone(TimmBackbone):
    """NaFlexVit, which takes images of any shape, or patches with their coordinates, each sample on its own grid."""

    def position_hooks(self, prefix):
        embeds = self.module.embeds
        hook = _NaFlexPositionHook(self.position_context, self._coordinate_grid(prefix), self.module)
        return [ModuleHook(embeds, hook, with_kwargs=True)]

    def overrides(self, *, keep_ape, all_layers):
        if not keep_ape and self.module.embeds.pos_embed is not None:
            raise ConfigurationError("NaFlexVit cannot do without its APE: leave out keep_ape=False.")
        return super().overrides(keep_ape=True, all_layers=all_layers)

    def example(self):
        rows, columns = self.module.embeds.patch_size
        weight = next(self.module.parameters())
        return torch.randn(1, 3, 2 * rows, 3 * columns, dtype=weight.dtype, device=weight.device)


class _NaFlexPositionHook(PatchPositionHook):
    """Forward hook of the embedding of NaFlexVit."""

    def __init__(self, position_context: PositionContext, coordinate_grid: CoordinateGrid, model: Any):
        super().__init__(position_context, coordinate_grid, model, model.num_prefix_tokens)

    def __call__(self, module, args, kwargs, output) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        embedded, shape = output
        coordinates = kwargs.get("patch_coord", args[1] if len(args) > 1 else None)
        if coordinates is None:
            self.set_positions(shape, embedded)
            return
        shape, training = coordinates.amax(dim=1) + 1, self.model.training
        positions = self.coordinate_grid.positions_at(
            coordinates, shape, self.num_prefix_tokens, like=embedded, training=training
        )
        self.position_context.set(positions).anchor(embedded)


class _NoWeightDecay:
    """Replaces a model's `no_weight_decay`: returns its own names and those of the angles."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self) -> set[str]:
        owners = [name for name, module in self.model.named_modules() if isinstance(module, Encoding)]
        angles = {name for name, _ in self.model.named_parameters() if name.startswith(tuple(f"{o}." for o in owners))}
        return set(type(self.model).no_weight_decay(self.model)) | angles  # pyright: ignore


class RotaryPatchDropout(PatchDropout):
    """timm's `PatchDropout`, which also selects the positions of the patches that are kept."""

    position_context: PositionContext

    def forward(self, x: Tensor) -> Tensor:
        x, kept = patch_dropout_forward(x, self.prob, self.num_prefix_tokens, self.ordered, self.training)
        if kept is not None:
            self.position_context.select(kept, self.num_prefix_tokens)
        return self.position_context.latest().anchor(x)


class RotaryPatchDropoutWithIndices(PatchDropoutWithIndices):
    """timm's `PatchDropoutWithIndices`, which also selects the positions of the patches that are kept."""

    position_context: PositionContext

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x, kept = super().forward(x)
        if kept is not None:
            self.position_context.select(kept, self.num_prefix_tokens)
        return x, kept


PATCH_DROPOUTS: dict[type, type[nn.Module]] = {
    PatchDropout: RotaryPatchDropout,
    PatchDropoutWithIndices: RotaryPatchDropoutWithIndices,
}


def rope_coordinate_grid(rope: Any) -> CoordinateGrid:
    """Returns the grid of positions that a timm RoPE multiplies by its frequencies. Prefix tokens are at 0."""
    augmentation: dict[str, Any] = {
        name: getattr(rope, f"{name}_coords", None) for name in ("shift", "jitter", "rescale")
    }
    kind = type(rope).__name__
    if kind not in ("RotaryEmbeddingDinoV3", "RotaryEmbeddingCat"):
        return CoordinateGrid("index", "origin", **augmentation)
    default = "pixel" if getattr(rope, "in_pixels", False) else "index"  # timm before 1.0.29
    grid = "centered" if kind == "RotaryEmbeddingDinoV3" else getattr(rope, "grid_type", default)
    unit = {"index": "index", "centered": "centred", "pixel": "spread"}[grid]
    divided = getattr(rope, "normalize_coords", "separate")
    divisor = "own" if divided == "separate" else divided
    reference_shape = getattr(rope, "ref_feat_shape", None)
    return CoordinateGrid(unit, "origin", rope.grid_offset, reference_shape, divisor, **augmentation)


def rope_frequencies(rope: Any, layer: int) -> Tensor:
    """Returns ω (2, H or 1, D/2) of a timm RoPE in one layer, axes (row, column), in radians per unit of its grid."""
    # By name, since older timm lacks some of these classes; no subclasses, which may lay out their planes differently.
    kind = type(rope).__name__
    if kind == "RotaryEmbeddingMixed":
        return _row_axis_first(rope, rope.freqs.detach()[:, layer])
    if kind == "RotaryEmbeddingMRope":
        return torch.stack([rope.inv_freq * (rope.axis == axis) for axis in (1, 2)]).unsqueeze(1)
    if kind not in ("RotaryEmbeddingDinoV3", "RotaryEmbeddingCat"):
        raise ConfigurationError(f"{kind} is no RoPE of timm that comrope knows.")
    bands = 2 * math.pi / rope.periods.double() if kind == "RotaryEmbeddingDinoV3" else rope.bands
    zeros = torch.zeros_like(bands)
    axial = torch.stack((torch.cat((bands, zeros)), torch.cat((zeros, bands))))  # (2, D/2)
    return _row_axis_first(rope, axial.unsqueeze(1))


def _row_axis_first(rope: Any, frequencies: Tensor) -> Tensor:
    return frequencies.flip(0) if rope.grid_indexing == "xy" else frequencies
