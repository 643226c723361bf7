"""Attach and detach, whatever the host: every check comes before the first change, and every change is written down.

An attention module takes an encoding by a change of class: a `Rotary…` subclass of the host's own class, whose forward
turns queries and keys, with the encoding as one more submodule. Weights, names and everything else stay where they are,
so that PEFT, FSDP, `isinstance` and the host's own code go on working, and undoing is exact.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from comrope.encodings import Encoding
from comrope.errors import ConfigurationError
from comrope.hosts._tokens import Canvas as Canvas
from comrope.hosts._tokens import Tokens as Tokens


@dataclass(frozen=True)
class Swap:
    """A module that changes its class, and what is set on it: submodules, parameters, buffers or plain attributes."""

    module: nn.Module
    into: type[nn.Module]
    """A subclass of the module's class, importable by name, so that copies and pickles work."""
    sets: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """One attention layer that can take an encoding, and what must be known of it."""

    name: str
    """Dotted path in the model."""
    attention: nn.Module
    into: type["Rotary"]
    """The `Rotary…` class it becomes."""
    num_heads: int
    """Key heads."""
    head_dim: int
    num_axes: int
    query_weight: Tensor
    """Says where the encoding lives and whether in float64."""
    frequencies: Tensor | None = None
    """ω (N, H or 1, D/2) of the RoPE the host has here, in radians per unit of the positions that `into` uses, planes in the
    order that `order` gives them; None where it has none."""
    order: Tensor | None = None
    """(D,), which features to take so that the two coordinates of each plane are neighbours (`half_layout`); None where
    they are."""


@dataclass(frozen=True)
class Trunk:
    """A transformer inside a model: the attention layers that share one `Tokens`."""

    host: "Host"
    module: nn.Module
    sites: tuple[Site, ...]


class Host(ABC):
    """A family of models whose attention layers are found, swapped and folded in the same way."""

    kinds: ClassVar[Mapping[type[nn.Module], type[nn.Module]]]
    """The trunks it knows, by their exact class, and the class each is swapped into (itself where nothing changes)."""

    @abstractmethod
    def sites(self, name: str, trunk: nn.Module) -> list[Site]:
        """Every attention layer of a trunk called `name`, in order; ConfigurationError for a trunk it cannot serve."""

    @abstractmethod
    def surroundings(self, trunk: nn.Module, tokens: Tokens, *, keep_ape: bool, prefix: str, whole: bool) -> list[Swap]:
        """What must change beside the attention layers: what tells `tokens` the positions, an APE that is left out.

        `prefix` is where class and register tokens sit, in a trunk without a RoPE of its own; `whole` says whether all
        attention layers get an encoding, so that the host's own RoPE is of no more use.
        """

    def take_back(self, trunk: nn.Module, frequencies: Mapping[nn.Module, Tensor]) -> bool:
        """Whether the trunk's own RoPE can hold folded `frequencies`, (N, H, D/2) by attention layer; then it does.

        Called on the trunk as it was before `attach`; each plane is two neighbouring features.
        """
        return False

    def settle(self, trunk: nn.Module) -> None:  # noqa: B027
        """Brings what was set aside up to date, in a trunk that is what it was before `attach`."""


class Rotary(nn.Module, ABC):
    """What every attention class with an encoding shares; its subclasses are subclasses of a host's attention too."""

    encoding: Encoding
    tokens: Tokens | None
    order: Tensor | None

    def turn(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Queries (B, H·g, L, D) and keys (B, H, L, D) turned by their positions; those of `tokens` unless given."""
        asked = positions is None
        if asked:
            assert self.tokens is not None
            positions = self.tokens.ask(q.shape[-2])
        if self.order is not None:
            q, k = _Reorder.apply(q, self.order), _Reorder.apply(k, self.order)  # pyright: ignore
        q, k = self.encoding(q, k, positions)
        if asked and self.tokens is not None:
            self.tokens.pin(q, positions)
        return q, k

    @abstractmethod
    def projections(self) -> list[Tensor]:
        """For `fold`: views of the weights (H·g·D, C) and biases (H·g·D,) that queries and keys come from.

        ConfigurationError where they are not plain tensors of this layer, as under an adapter.
        """

    @abstractmethod
    def norms(self) -> list[nn.Module]:
        """For `fold`: what stands between these projections and the rotation."""


class _Reorder(torch.autograd.Function):
    """x[..., order] of a permutation, whose gradient is a gather too and not the scatter that indexing has."""

    @staticmethod
    def forward(x: Tensor, order: Tensor) -> Tensor:
        return x[..., order]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, *grads):
        (order,) = ctx.saved_tensors
        return _Reorder.apply(grads[0], order.argsort()), None


class _Absent:
    """Stands for an attribute that did not exist."""


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
            elif hasattr(self.module, name):
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
    """With those sites that get an encoding."""
    swaps: list[Swap]
    undos: list[Undo] = field(default_factory=list)
    home: tuple[torch.device, torch.dtype] = field(init=False)
    """Of the weights at the swap."""

    def apply(self) -> None:
        """Makes the swaps; where one fails, what was changed stays in `undos`."""
        self.home = self._weight.device, self._weight.dtype
        for swap in self.swaps:
            undo = Undo(swap.module, type(swap.module))
            self.undos.append(undo)
            for name, value in swap.sets.items():
                undo.attributes[name] = getattr(swap.module, name, _Absent)
                setattr(swap.module, name, value)
            swap.module.__class__ = swap.into

    def undo(self) -> None:
        """Everything as it was, the last change first."""
        while self.undos:
            undo = self.undos.pop()
            undo.follow(self._weight, self.home)
            undo.apply()
        self.trunk.host.settle(self.trunk.module)

    @property
    def _weight(self) -> Tensor:
        return next(self.trunk.sites[0].attention.parameters())


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


def find_trunks(model: nn.Module, hosts: Sequence[Host]) -> list[Trunk]:
    """The transformers in `model` that some host knows, with all their sites; none inside of another."""
    trunks: list[Trunk] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        host = next((h for h in hosts if type(module) in h.kinds), None)
        if host is None or (inside and name.startswith(inside)):
            continue
        trunks.append(Trunk(host, module, tuple(host.sites(name, module))))
        inside += (f"{name}." if name else "",)
    return trunks


def half_layout(head_dim: int, device: torch.device | None = None) -> Tensor:
    """The order that makes neighbours of the features p and p + D/2, which a "half" layout turns together: (D,)."""
    return torch.arange(head_dim, device=device).view(2, -1).T.flatten()


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


def rows(linear: nn.Module, start: int = 0, stop: int | None = None) -> list[Tensor]:
    """Views of some rows of a linear layer's weight and bias; ConfigurationError where it is anything but `nn.Linear`."""
    if type(linear) is not nn.Linear:
        raise ConfigurationError(
            f"a projection is a {type(linear).__name__}, not a plain nn.Linear: merge or remove what wraps it first (peft: "
            "merge_and_unload)."
        )
    return [t.detach()[start:stop] for t in (linear.weight, linear.bias) if t is not None]
