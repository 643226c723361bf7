"""Attach and detach, whatever the model: every check comes before the first change, and every change is written down.

An attention layer takes an encoding as one more submodule, and hooks that turn queries and keys. Classes, weights and their
names stay what they are, so that PEFT, FSDP, `isinstance` and the model's own code go on working, and undoing is exact.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from comrope.errors import ConfigurationError
from comrope.hosts._attention import Layer, Reading
from comrope.hosts._seat import Seat
from comrope.hosts._tokens import Tokens


@dataclass(frozen=True)
class Hook:
    """What listens to a module that is no attention layer: to its arguments before it runs, or to its output."""

    module: nn.Module
    call: Callable
    """Importable by name or of an importable class, so that copies and pickles work."""
    before: bool = False
    with_kwargs: bool = False
    """Whether what listens to an output wants the keyword arguments too."""

    def put(self) -> Any:
        if self.before:
            return self.module.register_forward_pre_hook(self.call, with_kwargs=True)
        return self.module.register_forward_hook(self.call, with_kwargs=self.with_kwargs)


@dataclass(frozen=True)
class Swap:
    """What is set on a module: submodules, parameters, buffers or plain attributes; and the class it changes to, if any."""

    module: nn.Module
    sets: Mapping[str, Any]
    into: type[nn.Module] | None = None


@dataclass
class Trunk(ABC):
    """A transformer inside a model: attention layers whose tokens are in the same places. Each library has its own kinds."""

    module: nn.Module
    layers: Sequence[Layer]
    tokens: Tokens
    given: tuple[nn.Module, Any] | None = None
    """A model and the arguments of a forward pass for the proof, in place of `example`."""

    def run(self) -> Any:
        """A small forward pass that all layers take part in."""
        module, example = self.given or (self.module, self.example())
        if isinstance(example, Mapping):
            return module(**example)
        return module(*example) if isinstance(example, (tuple, list)) else module(example)

    @abstractmethod
    def hooks(self, prefix: str) -> list[Hook]:
        """What tells `tokens` where they are; class and register tokens at `prefix`, in a trunk without a RoPE of its own."""

    def swaps(self, *, keep_ape: bool, whole: bool) -> list[Swap]:
        """What else changes while there is an encoding: an APE that is left out, a RoPE that no layer needs any more."""
        return []

    @abstractmethod
    def example(self) -> Any:
        """Arguments of a small forward pass of `module`: a tensor, several, or a mapping by name."""

    def readings(self, layer: Layer, call: "Call") -> Sequence[Reading]:
        """What a layer, called so in the example, may be like: the likeliest first."""
        return [Reading()]

    def take_back(self, frequencies: Mapping[nn.Module, Tensor]) -> bool:
        """Whether the trunk's own RoPE can hold folded frequencies, (N, H, D/2) by attention layer; then it does.

        Called on the trunk as it was before `attach`; each plane is two neighbouring features.
        """
        return False

    def settle(self) -> None:  # noqa: B027
        """Brings what was set aside up to date, once the trunk is what it was before `attach`."""


@dataclass(frozen=True)
class Call:
    """How a layer was called in the example."""

    layer: Layer
    """As it was found to be."""
    args: tuple
    kwargs: Mapping[str, Any]
    outputs: Mapping[str, Tensor]
    """Of its parts, by name."""
    positions: Tensor
    """Of its tokens, (L, N) or (B, L, N)."""


class _Absent:
    """Stands for an attribute that did not exist."""


def _held(module: nn.Module, name: str) -> Any:
    """What a module itself has by that name, not its class."""
    stores = (vars(module), module._modules, module._parameters, module._buffers)
    return next((store[name] for store in stores if name in store), _Absent)


@dataclass
class Undo:
    """What a module was before its swap."""

    module: nn.Module
    kind: type[nn.Module]
    attributes: dict[str, Any] = field(default_factory=dict)
    """What was set then, and the value before."""

    def apply(self) -> None:
        self.module.__class__ = self.kind
        for name, value in self.attributes.items():
            if value is not _Absent:
                setattr(self.module, name, value)
            elif _held(self.module, name) is not _Absent:
                delattr(self.module, name)

    def follow(self, weight: Tensor, before: tuple[torch.device, torch.dtype]) -> None:
        """Takes what was set aside along with the model, which may have moved, been cast or changed its mode since."""
        moved = (weight.device, weight.dtype) != before
        for value in self.attributes.values():
            if isinstance(value, nn.Module):
                value.train(self.module.training)
            if isinstance(value, (nn.Module, nn.Parameter)) and moved:
                (value if isinstance(value, nn.Module) else nn.ParameterList([value])).to(weight.device, weight.dtype)


@dataclass
class Graft:
    """A trunk, what changes in it, and how to undo that."""

    trunk: Trunk
    """With those layers that get an encoding."""
    hooks: list[Hook]
    seats: list[Seat]
    swaps: list[Swap]
    undos: list[Undo] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)
    home: tuple[torch.device, torch.dtype] = field(init=False)
    """Of the weights at the swap."""

    def apply(self) -> None:
        """Makes the changes; where one fails, what was changed stays in `undos`."""
        self.home = self._weight.device, self._weight.dtype
        for swap in self.swaps:
            undo = Undo(swap.module, type(swap.module))
            self.undos.append(undo)
            for name, value in swap.sets.items():
                undo.attributes[name] = _held(swap.module, name)
                setattr(swap.module, name, value)
            if swap.into is not None:
                swap.module.__class__ = swap.into
        self.handles += [hook.put() for hook in self.hooks]
        self.trunk.tokens.layers = [seat.attention for seat in self.seats]
        for seat in self.seats:
            seat.sit()

    def change(self, swaps: list[Swap]) -> None:
        """Other swaps in place of those that were made."""
        self.undo()
        self.swaps = swaps
        self.apply()

    def undo(self) -> None:
        """Everything as it was, the last change first."""
        self.trunk.tokens.layers = []
        for seat in self.seats:
            seat.rise()
        while self.handles:
            self.handles.pop().remove()
        while self.undos:
            undo = self.undos.pop()
            undo.follow(self._weight, self.home)
            undo.apply()
        self.trunk.settle()

    @property
    def _weight(self) -> Tensor:
        return self.trunk.layers[0].weight


@dataclass
class Attachment:
    """What `attach` did to a model, kept on it as `model._comrope`: enough to undo it, and to do it again elsewhere."""

    settings: dict[str, Any]
    """The arguments of `attach`, in JSON's types."""
    grafts: list[Graft]
    folded: bool = False

    @staticmethod
    def of(model: nn.Module) -> "Attachment":
        """The attachment of a model; ConfigurationError where there is none."""
        if not isinstance(model, nn.Module):
            raise ConfigurationError(f"model: got {type(model).__name__}, expected a torch module.")
        attachment = model.__dict__.get("_comrope")
        if isinstance(attachment, Attachment):
            return attachment
        inside = [name for name, module in model.named_modules() if "_comrope" in module.__dict__]
        hint = f": its part {inside[0]!r} has, pass that" if inside else ": comrope.attach one first"
        raise ConfigurationError(f"{type(model).__name__} has no encoding attached{hint}.")

    def apply(self) -> None:
        """All swaps or, where one fails, none."""
        try:
            for graft in self.grafts:
                graft.apply()
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        for graft in reversed(self.grafts):
            graft.undo()


def one_axis_a_block(frequencies: Tensor, block_size: int) -> Tensor | None:
    """An order of the planes in which block j turns with axis j mod N alone, as ComRoPE-AP wants it: (D/2,).

    Args:
        frequencies: ω (N, H or 1, D/2) in which each plane turns with one axis (axial RoPE).
    Returns:
        None where there is no such order.
    """
    num_axes, h = len(frequencies), block_size // 2
    turning = frequencies.ne(0).any(1)  # (N, D/2)
    axis = turning.int().argmax(0)
    planes = [(axis == i).nonzero().squeeze(1) for i in range(num_axes)]
    if turning.sum(0).gt(1).any() or any(len(p) != len(planes[0]) or len(p) % h for p in planes):
        return None
    return torch.stack([p.view(-1, h) for p in planes], dim=1).flatten()  # (blocks an axis, N, h)
