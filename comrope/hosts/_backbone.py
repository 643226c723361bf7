"""The interface to a host library: a backbone is a transformer inside a model whose attention layers share positions."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from comrope.hosts._attention_layer import AttentionLayer, Convention, LayerCall
from comrope.hosts._position_context import PositionContext


@dataclass(frozen=True)
class ModuleHook:
    """A forward hook and the module it is for, which is not an attention layer."""

    module: nn.Module
    call: Callable
    """A function or an object whose class can be imported by name, so that copies and pickles of the model work."""
    is_pre_hook: bool = False
    with_kwargs: bool = False
    """Whether a hook on the output gets the keyword arguments too; a pre-hook always does."""

    def register(self) -> Any:
        if self.is_pre_hook:
            return self.module.register_forward_pre_hook(self.call, with_kwargs=True)
        return self.module.register_forward_hook(self.call, with_kwargs=self.with_kwargs)


@dataclass(frozen=True)
class ModuleOverride:
    """Attributes to set on a module (submodules, parameters, buffers or plain ones), and a class to change it to, if any."""

    module: nn.Module
    attributes: Mapping[str, Any]
    new_class: type[nn.Module] | None = None


@dataclass
class Backbone(ABC):
    """A transformer inside a model, all of whose attention layers have tokens at the same positions.

    Each host library has subclasses, one for each way in which positions are known.
    """

    module: nn.Module
    layers: Sequence[AttentionLayer]
    position_context: PositionContext
    user_example: tuple[nn.Module, Any] | None = None
    """A model and the arguments of a forward pass, given by the user; replaces `example`."""

    def run_example(self) -> Any:
        """Runs a small forward pass that all attention layers take part in, and returns its output."""
        module, example = self.user_example or (self.module, self.example())
        if isinstance(example, Mapping):
            return module(**example)
        return module(*example) if isinstance(example, (tuple, list)) else module(example)

    @abstractmethod
    def example(self) -> Any:
        """Returns the arguments of a small forward pass of `module`: a tensor, a tuple, or a mapping of keywords."""

    @abstractmethod
    def position_hooks(self, prefix: str) -> list[ModuleHook]:
        """Returns the hooks that set positions.

        `prefix` is where class and register tokens are ("middle" or "first"), in a backbone without a RoPE of its own.
        """

    def overrides(self, *, keep_ape: bool, all_layers: bool) -> list[ModuleOverride]:
        """Returns what else changes while an encoding is attached.

        For example, an absolute position embedding is removed, or a RoPE that no layer uses any more.
        """
        return []

    def conventions(self, layer: AttentionLayer, call: LayerCall) -> Sequence[Convention]:
        """Returns the conventions that a layer may follow, the most likely first."""
        return [Convention()]

    def restore_rope(self, frequencies: Mapping[nn.Module, Tensor]) -> bool:
        """Writes folded frequencies, (N, H, D/2) by attention module, into the backbone's own RoPE; False if it cannot.

        Called on a detached backbone. The two coordinates of each plane are neighbouring features.
        """
        return False

    def refresh_rope(self) -> None:  # noqa: B027
        """Updates the backbone's own RoPE after `detach`, since the model may have changed while it was removed."""
