"""diffusers: transformers that denoise patches of images and videos, found by their submodules and never by their class.

Positions are known from a convolution that makes patches of an image or video (DiT, Wan), or from a RoPE that is called
with the ids of all tokens, including those of a text (Flux). Otherwise joint attention over patches and a text is
refused, since the text has no positions.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from comrope.errors import ConfigurationError
from comrope.hosts._attention_layer import AttentionLayer, Convention, find_attention_layers
from comrope.hosts._backbone import Backbone, ModuleHook
from comrope.hosts._coordinate_grid import CoordinateGrid
from comrope.hosts._host_rope import frequencies_from_table
from comrope.hosts._patch_tokens import find_patch_embedding
from comrope.hosts._position_context import PositionContext
from comrope.hosts._position_hooks import PatchPositionHook
from comrope.hosts._proof import deterministic_eval

TEXT = {
    "encoder_hidden_states": ("text_dim", "joint_attention_dim", "caption_channels", "cross_attention_dim"),
    "pooled_projections": ("pooled_projection_dim",),
}
"""Names in configurations for the width of a text; the width before its projection comes first."""


def find_backbones(model: nn.Module) -> list[Backbone]:
    """Returns the outermost diffusers transformers in a model that have attention layers."""
    found: list[Backbone] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        is_diffusers = any(kind.__module__.startswith("diffusers.models.transformers") for kind in type(module).__mro__)
        if name.startswith(inside) or not is_diffusers or not hasattr(module, "config"):
            continue
        layers = find_attention_layers(module, name)
        if layers:
            kind = TokenIdsBackbone if _ids_rope(module) is not None else PatchBackbone
            found.append(kind(module, layers, PositionContext()))
            inside += (f"{name}." if name else "",)
    return found


class DiffusionBackbone(Backbone):
    """A transformer of diffusers."""

    module: Any

    def overrides(self, *, keep_ape, all_layers):
        if not keep_ape:
            raise ConfigurationError(
                f"{type(self.module).__name__} keeps its position embedding: leave out keep_ape=False."
            )
        return []

    def _example_arguments(self, **given: Tensor) -> dict[str, Tensor]:
        """Returns the given arguments that the forward takes, and its others: a timestep, a class and a text."""
        config, weight = self.module.config, self.layers[0].weight  # other weights may stay in float32
        given |= {"timestep": torch.ones(1), "class_labels": torch.zeros(1, dtype=torch.long)}
        for name, widths in TEXT.items():
            width = next((config[each] for each in widths if config.get(each)), None)
            if width is not None:
                given[name] = torch.randn(1, width) if "pooled" in name else torch.randn(1, 4, width)
        accepted = inspect.signature(self.module.forward).parameters
        found = {name: value.to(weight.device) for name, value in given.items() if name in accepted}
        return {name: v.to(weight.dtype) if v.is_floating_point() else v for name, v in found.items()}


class PatchBackbone(DiffusionBackbone):
    """Tokens are the patches of a convolution, in row-major order, frame by frame."""

    def position_hooks(self, prefix):
        with deterministic_eval(self.module):
            conv, before, after = find_patch_embedding(self.run_example, self.module)
        # The model's own RoPE, if it has one, uses patch indices.
        grid = CoordinateGrid("index", "origin") if hasattr(self.module, "rope") else CoordinateGrid(prefix=prefix)
        return [ModuleHook(conv, PatchPositionHook(self.position_context, grid, self.module, before, after))]

    def example(self):
        modules = list(self.module.modules())
        conv: Any = next((m for m in modules if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
        norm: Any = next((m for m in modules if isinstance(m, nn.GroupNorm)), None)
        if conv is None and norm is None:
            raise ConfigurationError(
                f"{type(self.module).__name__}: no convolution makes its tokens, and comrope cannot know where they are: say "
                "where, comrope.attach(model, name, positions=…, example=…)."
            )
        channels, kernel = (norm.num_channels, (1, 1)) if conv is None else (conv.in_channels, conv.kernel_size)
        return self._example_arguments(hidden_states=torch.randn(1, channels, *(4 * size for size in kernel)))

    def conventions(self, layer, call):
        if getattr(layer.attention, "add_k_proj", None) is not None:
            raise ConfigurationError(
                f"{layer.name}: an encoding cannot be put into this {type(layer.attention).__name__}: it attends to patches "
                "and a text at once, and the text has no place among the patches. Nothing has changed."
            )
        for argument, value in (*call.kwargs.items(), *enumerate(call.args)):
            if _is_table(value):
                return _conventions_from_table(value, call.positions, layer, argument)
        return [Convention()]


class TokenIdsBackbone(DiffusionBackbone):
    """A RoPE is called with the ids of all tokens, patches and text (Flux).

    Queries and keys of the text come from projections of their own, so both kinds are rotated where they enter SDPA.
    """

    def __init__(self, module, layers, position_context):
        layers = [replace(layer, projections=(), norms=(), rotate_at="sdpa") for layer in layers]
        super().__init__(module, layers, position_context)

    def position_hooks(self, prefix):
        return [ModuleHook(_ids_rope(self.module), TokenIdsHook(self.position_context), is_pre_hook=True)]

    def example(self):
        rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        zeros = torch.zeros(16, len(_ids_rope(self.module).axes_dim))
        ids = torch.cat((zeros[:, :1], rows.reshape(-1, 1), columns.reshape(-1, 1), zeros[:, 3:]), dim=1)
        patches = torch.randn(1, 16, self.module.config.in_channels)
        return self._example_arguments(hidden_states=patches, img_ids=ids, txt_ids=zeros[:4])

    def conventions(self, layer, call):
        rope = _ids_rope(self.module)
        # The origin, and the positions one step from it on each axis.
        steps = torch.eye(len(rope.axes_dim) + 1, device=call.positions.device)[:, 1:]
        argument = next((name for name, value in call.kwargs.items() if _is_table(value)), None)
        return _conventions_from_table(rope(steps), steps, layer, argument)


class TokenIdsHook:
    """Forward pre-hook of a RoPE that is called with token ids, (L, N)."""

    def __init__(self, position_context: PositionContext):
        self.position_context = position_context

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.position_context.set(args[0].float())


def _ids_rope(module: nn.Module) -> Any:
    """Returns the RoPE of a model that is called with the ids of all its tokens; None if there is none."""
    rope: Any = getattr(module, "pos_embed", None)
    return rope if hasattr(rope, "axes_dim") and "ids" in inspect.signature(rope.forward).parameters else None


def _is_table(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, Tensor) for v in value)


def _conventions_from_table(
    table: Sequence[Tensor], positions: Tensor, layer: AttentionLayer, argument: str | int | None
) -> list[Convention]:
    """Returns conventions with the RoPE found from a table, neighbouring features first, and one without its frequencies."""
    known = [
        Convention(frequencies=frequencies, order=order, rope_argument=argument, disable_rope="origin")
        for frequencies, order in reversed(frequencies_from_table(table, positions, layer.head_dim))
    ]
    return [*known, Convention(rope_argument=argument, disable_rope="origin")]
