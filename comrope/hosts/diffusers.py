"""diffusers: transformers that make images and videos of patches, DiT and Wan for example.

Joint attention over an image and a text (SD 3, Flux) is refused by the proof: its text has queries and keys of its own, which stay
where they are while the patches move.
"""

import inspect
from typing import Any

import torch
from torch import nn

from comrope.errors import ConfigurationError
from comrope.hosts._attention import Reading, find_layers
from comrope.hosts._proof import at_rest, tokens_around
from comrope.hosts._surgery import Hook, Trunk
from comrope.hosts._tables import measured
from comrope.hosts._tokens import Canvas, PatchTeller, Tokens


def trunks(model: nn.Module) -> list[Trunk]:
    """The outermost models of diffusers in a model that have attention layers."""
    found: list[Trunk] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        ours = any(kind.__module__.startswith("diffusers.models.transformers") for kind in type(module).__mro__)
        if name.startswith(inside) or not ours or not hasattr(module, "config"):
            continue
        layers = find_layers(module, name)
        if layers:
            found.append(DiffusionTrunk(module, layers, Tokens()))
            inside += (f"{name}." if name else "",)
    return found


class DiffusionTrunk(Trunk):
    """A transformer of diffusers."""

    module: Any

    def hooks(self, prefix):
        with at_rest(self.module):
            conv, before, after = tokens_around(self.run, self.module)
        # Its own RoPE, where it has one, counts patches.
        canvas = Canvas("index", "origin") if hasattr(self.module, "rope") else Canvas(prefix=prefix)
        return [Hook(conv, PatchTeller(self.tokens, canvas, self.module, before, after))]

    def swaps(self, *, keep_ape, whole):
        if not keep_ape:
            raise ConfigurationError(
                f"{type(self.module).__name__} cannot do without its APE: leave out keep_ape=False."
            )
        return []

    def example(self):
        config, weight = self.module.config, next(self.module.parameters())
        side = config.get("sample_size") or 8
        frames = (2,) if any(isinstance(m, nn.Conv3d) for m in self.module.modules()) else ()
        width = next((config[name] for name in TEXT if config.get(name)), None)
        made: dict[str, Any] = {
            "hidden_states": torch.randn(1, config["in_channels"], *frames, side, side),
            "timestep": torch.ones(1),
            "class_labels": torch.zeros(1, dtype=torch.long),
            "encoder_hidden_states": None if width is None else torch.randn(1, 4, width),
        }
        wanted = inspect.signature(self.module.forward).parameters
        given = {name: value.to(weight.device) for name, value in made.items() if name in wanted and value is not None}
        return {name: v.to(weight.dtype) if v.is_floating_point() else v for name, v in given.items()}

    def readings(self, layer, call):
        for place, value in (*call.kwargs.items(), *enumerate(call.args)):
            if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, torch.Tensor) for v in value):
                return [
                    Reading(frequencies=frequencies, order=order, table=place, still="origin")
                    for frequencies, order in reversed(measured(value, call.positions, layer.head_dim))
                ]
        return [Reading()]


TEXT = ("text_dim", "joint_attention_dim", "cross_attention_dim", "caption_channels")
"""What configurations call the width of the text."""
