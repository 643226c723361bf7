"""A model of the user's own, of no known library: the user says where its tokens are."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from comrope._values import described, is_dense
from comrope.errors import ConfigurationError, InputError
from comrope.hosts._attention_layer import AttentionLayer, find_attention_layers, matches_pattern
from comrope.hosts._backbone import Backbone, ModuleHook
from comrope.hosts._position_context import PositionContext


class CustomBackbone(Backbone):
    """Any module, with positions given by the user: a tensor, or a function of the arguments of the module's forward."""

    user_hook: "_UserPositionHook"

    @classmethod
    def of(
        cls, model: nn.Module, positions: Tensor | Callable[..., Tensor], layers: Sequence[int | str] | str | None
    ) -> "CustomBackbone":
        position_context = PositionContext()
        backbone = cls(model, find_attention_layers(model) or _layers_by_name(model, layers), position_context)
        backbone.user_hook = _UserPositionHook(position_context, positions)
        return backbone

    def position_hooks(self, prefix):
        return [ModuleHook(self.module, self.user_hook, is_pre_hook=True)]

    def example(self):
        raise ConfigurationError(
            "positions=… belongs to a model that comrope does not know: give an example=… as well, the arguments of a small "
            "forward pass, for the proof."
        )


def _layers_by_name(model: nn.Module, layers: Sequence[int | str] | str | None) -> list[AttentionLayer]:
    """Returns the modules that the user names as attention layers; their sizes are found when they call SDPA."""
    patterns = [layers] if isinstance(layers, str) else [name for name in layers or () if isinstance(name, str)]
    modules = model.named_modules()
    named = [(n, m) for n, m in modules if any(matches_pattern(n, pattern) for pattern in patterns)]
    return [AttentionLayer(name, module, 0, 0, 0, (), rotate_at="sdpa") for name, module in named]


class _UserPositionHook:
    """Forward pre-hook of the model that sets the positions given by the user."""

    def __init__(self, position_context: PositionContext, positions: Tensor | Callable[..., Tensor]):
        self.position_context, self.positions = position_context, positions

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        positions = self.positions if isinstance(self.positions, Tensor) else self.positions(*args, **kwargs)
        numbers = is_dense(positions) and not positions.dtype.is_complex and positions.dtype != torch.bool
        if not numbers or positions.ndim not in (2, 3) or not positions.shape[-1]:
            raise InputError(
                f"positions: got {described(positions)}, expected real numbers in a dense tensor (L, N) or (B, L, N), one "
                "row for each token."
            )
        self.position_context.set(positions)
