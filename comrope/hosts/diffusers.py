"""diffusers: transformers that make images and videos of noisy patches, by what they are made of and never by their class.

Where tokens are is told by a convolution that makes patches of an image or video (DiT, Wan), or by a RoPE that is called with
the ids of all tokens, text among them (Flux). Elsewhere joint attention over patches and a text is refused: the text has no
place.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from comrope.errors import ConfigurationError
from comrope.hosts._attention import Layer, Reading, find_layers
from comrope.hosts._patches import tokens_around
from comrope.hosts._proof import at_rest
from comrope.hosts._surgery import Hook, Trunk
from comrope.hosts._tables import measured
from comrope.hosts._tokens import Canvas, PatchTeller, Tokens

TEXT = {
    "encoder_hidden_states": ("text_dim", "joint_attention_dim", "caption_channels", "cross_attention_dim"),
    "pooled_projections": ("pooled_projection_dim",),
}
"""What configurations call the width of a text; that before its projection first."""


def trunks(model: nn.Module) -> list[Trunk]:
    """The outermost transformers of diffusers in a model that have attention layers."""
    found: list[Trunk] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        ours = any(kind.__module__.startswith("diffusers.models.transformers") for kind in type(module).__mro__)
        if name.startswith(inside) or not ours or not hasattr(module, "config"):
            continue
        layers = find_layers(module, name)
        if layers:
            kind = IdsTrunk if _ids_rope(module) is not None else PatchTrunk
            found.append(kind(module, layers, Tokens()))
            inside += (f"{name}." if name else "",)
    return found


class DiffusionTrunk(Trunk):
    """A transformer of diffusers."""

    module: Any

    def swaps(self, *, keep_ape, whole):
        if not keep_ape:
            raise ConfigurationError(
                f"{type(self.module).__name__} keeps its position embedding: leave out keep_ape=False."
            )
        return []

    def _made(self, **made: Tensor) -> dict[str, Tensor]:
        """What is given, and what else its forward takes: a timestep, a class and a text."""
        config, weight = self.module.config, self.layers[0].weight  # others may be kept in float32
        made |= {"timestep": torch.ones(1), "class_labels": torch.zeros(1, dtype=torch.long)}
        for name, widths in TEXT.items():
            width = next((config[each] for each in widths if config.get(each)), None)
            if width is not None:
                made[name] = torch.randn(1, width) if "pooled" in name else torch.randn(1, 4, width)
        wanted = inspect.signature(self.module.forward).parameters
        given = {name: value.to(weight.device) for name, value in made.items() if name in wanted}
        return {name: v.to(weight.dtype) if v.is_floating_point() else v for name, v in given.items()}


class PatchTrunk(DiffusionTrunk):
    """Tokens are the patches of a convolution, row by row, frame by frame."""

    def hooks(self, prefix):
        with at_rest(self.module):
            conv, before, after = tokens_around(self.run, self.module)
        # Its own RoPE, where it has one, counts patches.
        canvas = Canvas("index", "origin") if hasattr(self.module, "rope") else Canvas(prefix=prefix)
        return [Hook(conv, PatchTeller(self.tokens, canvas, self.module, before, after))]

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
        return self._made(hidden_states=torch.randn(1, channels, *(4 * size for size in kernel)))

    def readings(self, layer, call):
        if getattr(layer.attention, "add_k_proj", None) is not None:
            raise ConfigurationError(
                f"{layer.name}: an encoding cannot be put into this {type(layer.attention).__name__}: it attends to patches "
                "and a text at once, and the text has no place among the patches. Nothing has changed."
            )
        for place, value in (*call.kwargs.items(), *enumerate(call.args)):
            if _is_table(value):
                return _of_table(value, call.positions, layer, place)
        return [Reading()]


class IdsTrunk(DiffusionTrunk):
    """Tokens, patches and text alike, are where the ids say with which its RoPE is called (Flux).

    Queries and keys of the text come from parts of their own, so both are turned where they meet.
    """

    def __init__(self, module, layers, tokens):
        super().__init__(module, [replace(layer, projections=(), norms=(), way="scores") for layer in layers], tokens)

    def hooks(self, prefix):
        return [Hook(_ids_rope(self.module), IdsTeller(self.tokens), before=True)]

    def example(self):
        rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        still = torch.zeros(16, len(_ids_rope(self.module).axes_dim))
        ids = torch.cat((still[:, :1], rows.reshape(-1, 1), columns.reshape(-1, 1), still[:, 3:]), dim=1)
        patches = torch.randn(1, 16, self.module.config.in_channels)
        return self._made(hidden_states=patches, img_ids=ids, txt_ids=still[:4])

    def readings(self, layer, call):
        rope = _ids_rope(self.module)
        # The origin, and a step from there on each axis.
        steps = torch.eye(len(rope.axes_dim) + 1, device=call.positions.device)[:, 1:]
        place = next((place for place, value in call.kwargs.items() if _is_table(value)), None)
        return _of_table(rope(steps), steps, layer, place)


class IdsTeller:
    """The hook on a RoPE that is called with the ids of tokens, (L, N)."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.tokens.tell(args[0].float())


def _ids_rope(module: nn.Module) -> Any:
    """The RoPE of a model that is called with the ids of all its tokens; None where there is none."""
    rope: Any = getattr(module, "pos_embed", None)
    return rope if hasattr(rope, "axes_dim") and "ids" in inspect.signature(rope.forward).parameters else None


def _is_table(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, Tensor) for v in value)


def _of_table(table: Sequence[Tensor], positions: Tensor, layer: Layer, place: str | int | None) -> list[Reading]:
    """With the RoPE that a table shows, neighbouring features first; else one that starts anew."""
    known = [
        Reading(frequencies=frequencies, order=order, table=place, still="origin")
        for frequencies, order in reversed(measured(table, positions, layer.head_dim))
    ]
    return [*known, Reading(table=place, still="origin")]
