"""transformers: image, video and language models, found by their submodules and never by the name of their class.

Every `PreTrainedModel` says what input it takes and how large; the innermost ones with attention layers are the
backbones. Positions are known from the first of these that a backbone has: a RoPE that is called with `position_ids`, or
with the image; a convolution that makes patches; a position embedding.
"""

import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from comrope._planes import half_layout
from comrope.errors import ConfigurationError
from comrope.hosts._attention_layer import Convention, find_attention_layers
from comrope.hosts._backbone import Backbone, ModuleHook, ModuleOverride
from comrope.hosts._coordinate_grid import CoordinateGrid
from comrope.hosts._host_rope import frequencies_from_table
from comrope.hosts._patch_tokens import check_patch_positions, find_patch_embedding
from comrope.hosts._position_context import PositionContext
from comrope.hosts._position_hooks import (
    TABLE,
    GridPositionHook,
    MaskedPatchHook,
    PackedPatchHook,
    PatchPositionHook,
    PositionEmbeddingHook,
    PositionIdsHook,
    ReorderedPositionContext,
    RopeTableHook,
    accepts,
)
from comrope.hosts._proof import deterministic_eval

POSITIONS = r"position|wpe|pos_emb"
"""A pattern for the names of position embeddings."""

INNER_ROPE = "apply_rotary_embeddings"
"""The method by which some attention layers compute and apply a RoPE themselves."""


def find_backbones(model: nn.Module) -> list[Backbone]:
    """Returns the innermost transformers models in a model that have attention layers, and positions that comrope can find."""
    found: list[TransformersBackbone] = []
    inner: tuple[str, ...] = ()
    models = [(name, module) for name, module in model.named_modules() if isinstance(module, PreTrainedModel)]
    for name, module in sorted(models, key=lambda each: -each[0].count(".") - bool(each[0])):
        prefix = f"{name}." if name else ""
        layers = [layer for layer in find_attention_layers(module, name) if not layer.name.startswith(inner)]
        kind = _backbone_class(module, prefix, inner)
        if layers and kind is not None:
            found.append(kind(module, layers))
            inner += (prefix,)
    names = [name for name, _ in model.named_modules()]
    found.sort(key=lambda backbone: names.index(backbone.layers[0].name))
    # A model with only a position embedding, such as a text tower, is used only if there are no other backbones.
    others = [backbone for backbone in found if not isinstance(backbone, PositionEmbeddingBackbone)]
    return list(others or found)


def _backbone_class(module: nn.Module, prefix: str, inner: tuple[str, ...]) -> "type[TransformersBackbone] | None":
    """Returns the class for a model by what its positions are known from, without looking into the backbones inside of it."""
    own = {n: m for n, m in module.named_modules() if not f"{prefix}{n}.".startswith(inner)}
    if any(_frequency_names(m) and accepts(m, "position_ids") for m in own.values()):
        return TextBackbone if hasattr(module.config, "vocab_size") else GridRopeBackbone
    if any(accepts(m, "spatial_shapes") for m in own.values() if m is not module):
        return PackedPatchBackbone
    if any(_frequency_names(m) and accepts(m, "pixel_values") for m in own.values()):
        return PatchRopeBackbone
    if any(hasattr(m, INNER_ROPE) for m in own.values()):
        return InnerRopeBackbone
    if any(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for m in own.values()):
        return PatchBackbone
    if any(isinstance(m, nn.Embedding) and re.search(POSITIONS, n.rpartition(".")[2]) for n, m in own.items()):
        return PositionEmbeddingBackbone
    return None


def _frequency_names(module: nn.Module) -> list[str]:
    """Returns the names of the buffers with a RoPE's frequencies, of which there may be one for each type of layer."""
    names = [name for name, _ in module.named_buffers(recurse=False) if name.endswith("inv_freq")]
    return [name for name in names if "original" not in name]


def _example_shape(module: Any, name: str) -> tuple[int, ...] | None:
    """Returns the shape of a small main input, from the configuration; None if that does not tell."""
    config = module.config
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None)
    if size is not None:
        size = (size, size) if isinstance(size, int) else tuple(size)
        channels = getattr(config, "num_channels", None) or getattr(config, "in_chans", 3)
        frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
        video = any(isinstance(m, nn.Conv3d) for m in module.modules())
        return (1, frames, channels, *size) if video and frames else (1, channels, *size)
    if name == "input_features" and hasattr(config, "max_source_positions"):
        return (1, config.num_mel_bins, 2 * config.max_source_positions)
    if name == "input_ids" and hasattr(config, "vocab_size"):
        return (1, min(12, getattr(config, "max_position_embeddings", None) or 12))
    return None


class TransformersBackbone(Backbone):
    """A transformers model, or the part of one with the attention layers."""

    module: Any

    def __init__(self, module: nn.Module, layers, position_context: PositionContext | None = None):
        super().__init__(module, layers, PositionContext() if position_context is None else position_context)

    def overrides(self, *, keep_ape, all_layers):
        if keep_ape:
            return []
        # Embeddings always add it, so it is set to zeros.
        overrides = []
        for owner in self.module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                embedded = isinstance(owner, nn.Embedding) and owner in self._position_embeddings()
                if embedded or re.fullmatch(r"(abs_)?pos(ition)?_?embed(ding)?s?", name):
                    overrides.append(
                        ModuleOverride(owner, {name: nn.Parameter(torch.zeros_like(parameter), requires_grad=False)})
                    )
        return overrides

    def _position_embeddings(self) -> list[nn.Embedding]:
        modules = self.module.named_modules()
        return [m for n, m in modules if isinstance(m, nn.Embedding) and re.search(POSITIONS, n.rpartition(".")[2])]

    def example(self):
        name, config, weight = self.module.main_input_name, self.module.config, next(self.module.parameters())
        shape = _example_shape(self.module, name)
        if shape is None:
            raise ConfigurationError(
                f"{type(self.module).__name__} takes {name}, of which comrope cannot make up an example: give one, "
                "comrope.attach(model, name, example={…}), the arguments of a small forward pass."
            )
        if name == "input_ids" and not self._takes_pixels:
            return {name: torch.randint(config.vocab_size, shape, device=weight.device)}
        name = "pixel_values" if name == "input_ids" else name
        return {name: torch.randn(shape, dtype=weight.dtype, device=weight.device)}

    _takes_pixels = False
    """Whether the main input is an image, video or sound, even if the model calls it input_ids."""

    def _ropes(self) -> Iterator[tuple[Any, str]]:
        for module in self.module.modules():
            for name in _frequency_names(module):
                yield module, name


class PatchBackbone(TransformersBackbone):
    """Tokens are the patches of a convolution, in row-major order, perhaps between class and register tokens."""

    _takes_pixels = True

    def position_hooks(self, prefix):
        grid, masking = CoordinateGrid(prefix=prefix), self._masking_embeddings()
        if masking:
            # Derivatives cannot tell, since patches are dropped at random. A class token comes first.
            before = sum(hasattr(module, "cls_token") for module in masking)
            conv = next(m for m in self.module.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
            after = 0
        else:
            with deterministic_eval(self.module):
                conv, before, after = find_patch_embedding(self.run_example, self.module)
        hooks = [ModuleHook(conv, PatchPositionHook(self.position_context, grid, self.module, before, after))]
        for module in masking:
            hooks.append(ModuleHook(module, MaskedPatchHook(self.position_context, before), with_kwargs=True))
        if masking:
            with deterministic_eval(self.module):
                check_patch_positions(self.run_example, self.module, self.position_context, hooks, grid)
        return hooks

    def _masking_embeddings(self) -> list[nn.Module]:
        """Returns the embeddings that drop patches, as in masked autoencoders."""
        embeddings = (m for m in self.module.modules() if any(isinstance(c, nn.Module) for c in m.children()))
        return [
            m
            for m in embeddings
            if m is not self.module
            and "pixel_values" in (names := inspect.signature(m.forward).parameters)
            and ("noise" in names or ("bool_masked_pos" in names and not hasattr(m, "mask_token")))
        ]


class InnerRopeBackbone(PatchBackbone):
    """The attention layers of the encoder compute a RoPE themselves (V-JEPA 2). Those of the predictor keep it.

    That RoPE multiplies the two features of a plane by cosines of different frequencies, so it is not a rotation, and no
    encoding can start from it.
    """

    def __init__(self, module, layers):
        super().__init__(module, [layer for layer in layers if ".predictor." not in f".{layer.name}"])

    def example(self):
        more = {"skip_predictor": True} if accepts(self.module, "skip_predictor") else {}
        return super().example() | more

    def conventions(self, layer, call):
        return [Convention(disable_rope=INNER_ROPE)]


class PatchRopeBackbone(TransformersBackbone):
    """Tokens are patches, and a RoPE is called with the image and computes their positions itself (DINOv3)."""

    def position_hooks(self, prefix):
        with deterministic_eval(self.module):
            conv, before, after = find_patch_embedding(self.run_example, self.module)
        config = self.module.config
        augmentation: dict[str, Any] = {
            name: getattr(config, f"pos_embed_{name}", None) for name in ("shift", "jitter", "rescale")
        }
        grid = CoordinateGrid("centred", "origin", **augmentation)
        hook = PatchPositionHook(self.position_context, grid, self.module, before, after)
        return [ModuleHook(conv, hook), *(ModuleHook(rope, RopeTableHook(hook)) for rope, _ in self._ropes())]

    def conventions(self, layer, call):
        rope, name = next(self._ropes())
        bands = 2 * math.pi * getattr(rope, name).double()  # (D/4,)
        frequencies = torch.block_diag(bands, bands).unsqueeze(1)
        return [
            Convention(
                frequencies=frequencies, order=half_layout(layer.head_dim), rope_argument=TABLE, disable_rope="origin"
            ),
            Convention(rope_argument=TABLE, disable_rope="origin"),
        ]


class TextBackbone(TransformersBackbone):
    """A RoPE is called with the position ids of the tokens."""

    def __init__(self, module, layers):
        super().__init__(module, layers, PositionContext(position_argument="position_ids"))

    def position_hooks(self, prefix):
        for rope, _ in self._ropes():
            _check_rope_type(rope)
        ropes = {rope: None for rope, _ in self._ropes()}
        return [ModuleHook(rope, PositionIdsHook(self.position_context, rope), is_pre_hook=True) for rope in ropes]

    def conventions(self, layer, call):
        table = call.kwargs.get(TABLE)
        if table is None:
            return [Convention()]
        cos, positions = table[0], call.positions.double()
        num_rotated, found = cos.shape[-1], []
        scale = (table[0].double().square() + table[1].double().square()).sqrt().mean()
        for rope, name in self._ropes():
            frequencies = getattr(rope, name).double().to(positions.device)
            if 2 * len(frequencies) != num_rotated or num_rotated > layer.head_dim:
                continue
            expected = scale * (positions * frequencies).cos()  # (…, L, r/2)
            if (cos[..., : num_rotated // 2].double() - expected).abs().max() > 0.05 * scale:
                continue
            unrotated = torch.zeros((layer.head_dim - num_rotated) // 2).to(frequencies)
            padded = torch.cat((frequencies, unrotated)).view(1, 1, -1)
            for order in (half_layout(layer.head_dim, num_rotated), None):
                found.append(Convention(frequencies=padded, order=order, rope_argument=TABLE, disable_rope="origin"))
        # A layer may get a table and not use it.
        return [*found, Convention(rope_argument=TABLE, disable_rope="origin")]


class GridRopeBackbone(TransformersBackbone):
    """Images of any shape in one sequence of tokens; a RoPE is called with (row, column) of each (Pixtral, Qwen-VL)."""

    _takes_pixels = True

    position_context: ReorderedPositionContext

    def __init__(self, module, layers):
        super().__init__(module, layers, ReorderedPositionContext(position_argument=TABLE))

    def example(self):
        if "grid_thw" not in inspect.signature(self.module.forward).parameters:
            return super().example()
        config, weight = self.module.config, next(self.module.parameters())
        side = 2 * config.spatial_merge_size
        features = config.in_channels * config.temporal_patch_size * config.patch_size**2
        pixels = torch.randn(
            side * (side + config.spatial_merge_size), features, dtype=weight.dtype, device=weight.device
        )
        grid = torch.tensor([[1, side, side + config.spatial_merge_size]], device=weight.device)
        first = next(iter(inspect.signature(self.module.forward).parameters))
        return {first: pixels, "grid_thw": grid}

    def position_hooks(self, prefix):
        rope, *others = {module: None for module, _ in self._ropes()}
        if others:
            raise ConfigurationError(
                f"{type(self.module).__name__} has {1 + len(others)} modules that make RoPE tables: expected one"
            )
        return [ModuleHook(rope, GridPositionHook(self.position_context, rope, self.module.config), with_kwargs=True)]

    def conventions(self, layer, call):
        table = call.kwargs.get(TABLE)
        known = torch.cat([getattr(rope, name).flatten() for rope, name in self._ropes()])
        return [
            Convention(frequencies=frequencies, order=order, rope_argument=TABLE, disable_rope="origin")
            for frequencies, order in frequencies_from_table(table, call.positions, layer.head_dim, known)
        ]


class PackedPatchBackbone(TransformersBackbone):
    """Patches are packed and padded, and come with the shape of each image's grid (SigLIP 2)."""

    def example(self):
        config, weight = self.module.config, next(self.module.parameters())
        pixels = torch.randn(1, 6, config.num_channels * config.patch_size**2, dtype=weight.dtype, device=weight.device)
        mask = torch.ones(1, 6, dtype=torch.long, device=weight.device)
        return {
            "pixel_values": pixels,
            "pixel_attention_mask": mask,
            "spatial_shapes": torch.tensor([[2, 3]], device=weight.device),
        }

    def position_hooks(self, prefix):
        accepting = [m for m in self.module.modules() if m is not self.module and accepts(m, "spatial_shapes")]
        embeddings = next(m for m in accepting if not any(inner in accepting for inner in list(m.modules())[1:]))
        hook = PackedPatchHook(self.position_context, CoordinateGrid(prefix=prefix))
        return [ModuleHook(embeddings, hook, with_kwargs=True)]


class PositionEmbeddingBackbone(TransformersBackbone):
    """Positions are the ids that a position embedding is called with."""

    def position_hooks(self, prefix):
        hook = PositionEmbeddingHook(self.position_context)
        return [ModuleHook(embedding, hook, is_pre_hook=True) for embedding in self._position_embeddings()[:1]]


def _check_rope_type(rope: Any) -> None:
    kinds = getattr(rope, "rope_type", "default")
    for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
        if "dynamic" in kind or kind == "longrope":
            raise ConfigurationError(
                f"rope_type={kind!r} changes its frequencies with the length of the text, and the learned frequencies of an "
                "encoding are the same for all lengths: set another rope_type in the configuration (default, linear, llama3, "
                "yarn)."
            )
