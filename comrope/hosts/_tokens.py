"""Where the tokens of the image at hand are: laid out by a `Canvas`, carried from the embedding to attention by `Tokens`."""

import math
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from comrope.encodings import SpectralEncoding, rotations
from comrope.errors import ConfigurationError, InputError


@dataclass(frozen=True)
class Canvas:
    """How a model measures positions: (row, column) of every patch, and where class and register tokens sit.

    The default is `comrope.positions.grid`: patch centres on [0, 1]², prefix tokens in the middle. The other units are those
    of models that have a RoPE, whose frequencies are per such a unit.
    """

    unit: str = "relative"
    """"relative": (i + ½) / n. "index": i. "centred": 2(i + ½) / n − 1. "spread": from −1 to 1, both included."""
    prefix: str = "middle"
    """"middle" of the canvas; at the "first" patch; or at the "origin", where a rotation is the identity."""
    offset: float = 0.0
    """Added to i."""
    reference: tuple[float, float] | None = None
    """With "index": indices are stretched to a grid of this size, i · reference / n."""
    divisor: str = "own"
    """With "relative" and "centred": n is the axis's "own" number of patches, or the "min" or "max" of both axes."""
    shift: float | None = None
    """In training all patches move by one uniform draw from [−shift, shift] on each axis, in the unit above."""
    jitter: float | None = None
    """In training each axis is scaled by a log-uniform draw from [1/jitter, jitter]."""
    rescale: float | None = None
    """In training both axes are scaled by one such draw from [1/rescale, rescale]."""

    def __post_init__(self):
        if self.prefix not in ("middle", "first", "origin"):
            raise ConfigurationError(f"prefix={self.prefix!r}: expected 'middle' or 'first', of the patches.")

    def positions(
        self,
        shape: Sequence[int],
        num_prefix_tokens: int,
        num_suffix_tokens: int = 0,
        *,
        like: Tensor,
        training: bool = False,
    ) -> Tensor:
        """(prefix + patches + suffix tokens, N), the last axis fastest, on the device of `like`; float64 or float32."""
        indices = [torch.arange(n, dtype=torch.float64, device=like.device) for n in shape]
        axes = [self._along(axis, each, shape) for axis, each in enumerate(indices)]
        patches = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
        return self._placed(patches, num_prefix_tokens, num_suffix_tokens, like, training)

    def positions_of(
        self, indices: Tensor, shape: Tensor, num_prefix_tokens: int, *, like: Tensor, training: bool = False
    ) -> Tensor:
        """The same where each sample has a grid of its own: indices (B, patches, N) on grids `shape` (B, N)."""
        sizes = [n.unsqueeze(1) for n in shape.double().unbind(-1)]
        patches = torch.stack([self._along(i, x, sizes) for i, x in enumerate(indices.double().unbind(-1))], dim=-1)
        return self._placed(patches, num_prefix_tokens, 0, like, training)

    def _placed(self, patches: Tensor, before: int, after: int, like: Tensor, training: bool) -> Tensor:
        """With the tokens around the patches."""
        if training:
            patches = self._augmented(patches)
        if self.prefix == "origin":
            prefix = torch.zeros_like(patches[..., :1, :])
        elif self.prefix == "first":
            prefix = patches[..., :1, :]
        else:
            prefix = (patches.amin(-2, keepdim=True) + patches.amax(-2, keepdim=True)) / 2
        around = [prefix.expand(*patches.shape[:-2], count, -1) for count in (before, after)]
        return torch.cat((around[0], patches, around[1]), dim=-2).to(torch.promote_types(torch.float32, like.dtype))

    def _along(self, axis: int, indices: Tensor, shape: Sequence[Any]) -> Tensor:
        """Indices on one axis in the unit of this canvas; of a grid of `shape`, numbers or tensors, one for each axis."""
        n = shape[axis]
        count = n if self.divisor == "own" else _extreme(shape, self.divisor)
        moved = indices + self.offset
        if self.unit == "relative":
            return (moved + 0.5) / count
        if self.unit == "centred":
            return 2 * (moved + 0.5) / count - 1
        if self.unit == "spread":
            moved = 2 * indices / (n - 1 if isinstance(n, Tensor) or n > 1 else 1) - 1
        return moved if self.reference is None else moved * (self.reference[axis] / n)

    def _augmented(self, patches: Tensor) -> Tensor:
        single = patches.float()
        if self.shift is not None:
            patches = patches + single.new_empty(single.shape[-1]).uniform_(-self.shift, self.shift)
        for factor, num_draws in ((self.jitter, patches.shape[-1]), (self.rescale, 1)):
            if factor is not None:
                bound = math.log(factor)
                patches = patches * single.new_empty(num_draws).uniform_(-bound, bound).exp()
        return patches


def _extreme(shape: Sequence[Any], which: str) -> Any:
    """The least or greatest of a grid's sizes."""
    if isinstance(shape[0], Tensor):
        return torch.stack(list(shape)).amin(0) if which == "min" else torch.stack(list(shape)).amax(0)
    return min(shape) if which == "min" else max(shape)


TOGETHER = 2**24
"""Numbers in the tables of all layers, up to which they are worked out together."""


class Places:
    """The positions of the tokens of one forward pass, (L, N) or (B, L, N), prefix tokens included."""

    def __init__(self, positions: Tensor, pins: "weakref.WeakSet[_Pin] | None" = None):
        self.positions = positions
        self.rotations: dict[nn.Module, Any] = {}
        """Of each attention layer, where they were worked out together."""
        self.asked_without_graph = False
        """As in the forward pass of a checkpoint with use_reentrant=True."""
        self._pins = pins

    def rotation(self, attention: Any, dtype: torch.dtype) -> Any:
        """The rotation of one attention layer at these places, for tokens that are turned in `dtype`."""
        shared = self.rotations.get(attention)
        if shared is None or shared.tables[0].dtype != dtype:
            return attention.encoding.rotation(self.positions, dtype=dtype)
        learned = shared.phases[0].requires_grad
        if learned and not torch.is_grad_enabled():
            self.asked_without_graph = True
        wanted = torch.is_grad_enabled() and any(p.requires_grad for p in attention.encoding.parameters())
        # A graph that all layers share can be gone through once; and one that was not made then cannot be.
        if wanted and (not learned or (self.asked_without_graph and _backward_pass() != -1)):
            return attention.encoding.rotation(self.positions, dtype=dtype)
        return shared

    def pin(self, tensor: Tensor) -> Tensor:
        """Makes them known as long as the graph lives that `tensor` came from; returns `tensor`."""
        if self._pins is not None and not torch.compiler.is_compiling() and tensor.grad_fn is not None:
            pin = next((known for known in self._pins if known.places is self), None) or _Pin(self)
            tensor.grad_fn.metadata[_Pin] = pin  # pyright: ignore[reportIndexIssue]
            self._pins.add(pin)
        return tensor


class _Pin:
    """Holds places, and is held by nothing but autograd graphs."""

    def __init__(self, places: Places):
        self.places = places


class Tokens:
    """The positions of the tokens that are under way: where the model knows them they are told, and attention layers ask.

    Blocks of a vision transformer are called with the tokens alone, so positions travel beside them. In a forward pass
    those last told are the right ones. Gradient checkpointing runs a block once more in the backward pass, when other
    images may have been seen since. So whoever computes with positions pins them to the autograd graph that comes out:
    then they live as long as that graph, and in a backward pass those alive are the only ones that can be meant. Where
    several differ, there is an error and no guess.

    One object is shared by all layers of a trunk; copies and pickles of the model share a new, empty one.

    Args:
        keyword: the argument in which attention layers are called with positions, where the model does so.
    """

    def __init__(self, keyword: str | None = None):
        self.keyword = keyword
        self.layers: list[Any] = []
        """The attention layers that ask."""
        self._pins: weakref.WeakSet[_Pin] = weakref.WeakSet()
        self._latest: Places | None = None
        self._told_in = -1

    def __reduce__(self):
        return type(self), (self.keyword,), {"layers": self.layers}

    def tell(self, positions: Tensor) -> Places:
        """From now on tokens are at `positions`, (L, N) or (B, L, N), prefix tokens included."""
        self._latest = Places(positions, self._pins)
        self._latest.rotations = self._rotations(positions)
        if not torch.compiler.is_compiling():
            self._told_in = _backward_pass()
        return self._latest

    def _rotations(self, positions: Tensor) -> dict[nn.Module, Any]:
        """Those of all layers, so that their small operators run once; none where that would keep large tables for long."""
        encodings = [layer.encoding for layer in self.layers]
        if len(encodings) < 2 or not all(isinstance(pe, SpectralEncoding) for pe in encodings):
            return {}
        size = positions[..., 0].numel() * sum(pe.num_heads * pe.head_dim for pe in encodings)
        if size > TOGETHER or any(is_sharded(p) for pe in encodings for p in pe.parameters()):
            return {}
        found = rotations(encodings, positions, dtype=torch.promote_types(torch.float32, encodings[0].dtype))
        return dict(zip(self.layers, found, strict=True))

    def latest(self) -> Tensor:
        """The positions last told."""
        if self._latest is None:
            raise InputError("No positions have been told: call the model, not parts of it.")
        return self._latest.positions

    def latest_places(self) -> Places:
        """The same, to be pinned."""
        self.latest()
        assert self._latest is not None
        return self._latest

    def known(self) -> Places | None:
        """What was last told, if anything."""
        return self._latest

    def keep(self, indices: Tensor, num_prefix_tokens: int) -> None:
        """Of all patches only `indices` (B, kept) stay, as patch dropout has it; and the prefix tokens."""
        positions = self.latest()
        positions = positions.expand(len(indices), *positions.shape[-2:])
        prefix, patches = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
        before = self.latest_places()
        kept = self.tell(torch.cat((prefix, patches.take_along_dim(indices.unsqueeze(-1), dim=1)), dim=1))
        for pin in self._pins if not torch.compiler.is_compiling() else ():
            if pin.places is before:  # the graph so far goes on to those that stay
                pin.places = kept

    def among(self, arguments: dict) -> Places | None:
        """The positions among the keyword arguments of an attention layer, (B or 1, L) ids; None where there are none."""
        ids = None if self.keyword is None else arguments.get(self.keyword)
        if ids is None:
            return None
        return Places(ids.squeeze(0).unsqueeze(-1) if ids.shape[0] == 1 else ids.unsqueeze(-1))

    def ask(self, num_tokens: int) -> Places:
        """Where the `num_tokens` tokens are that an attention layer has.

        Raises:
            InputError: no positions for so many tokens are known, or in a backward pass several that differ.
        """
        fitting = [p for p in self._candidates() if p.positions.shape[-2] == num_tokens]
        if not fitting:
            told = "none were told" if self._latest is None else f"the last were told of {self.latest().shape[-2]}"
            raise InputError(
                f"Attention has {num_tokens} tokens, but of positions {told}. Call the whole model, so that it can tell them, "
                "and leave the number of tokens between embedding and attention as it is."
            )
        first = fitting[0]
        if any(other is not first and not torch.equal(other.positions, first.positions) for other in fitting[1:]):
            raise InputError(
                f"Gradient checkpointing recomputes a block on {num_tokens} tokens, but images of different grids with so "
                "many are waiting for their gradients, and which this is cannot be known. Call backward() after each "
                "forward pass, or switch checkpointing off."
            )
        return first

    def _candidates(self) -> list[Places]:
        latest = [] if self._latest is None else [self._latest]
        if torch.compiler.is_compiling() or _backward_pass() == -1:
            return latest
        alive = [pin.places for pin in self._pins]
        return alive + latest if self._told_in == _backward_pass() else alive


class Pinner:
    """The hook on a whole trunk: the graph of what it puts out keeps the positions of that pass alive."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        places = self.tokens.known()
        if places is not None:
            for value in tensors_in(output):
                places.pin(value)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module gives: one, or a mapping or sequence of such."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(each)


class PatchTeller:
    """The hook on the convolution that makes patches: it alone sees the real grid, and tells it.

    Args:
        tokens: are told.
        canvas: how positions are measured.
        model: whose mode says whether positions are augmented.
        num_prefix_tokens, num_suffix_tokens: before and after the patches, where the canvas has its prefix.
    """

    def __init__(
        self, tokens: Tokens, canvas: Canvas, model: nn.Module, num_prefix_tokens: int, num_suffix_tokens: int = 0
    ):
        self.tokens, self.canvas, self.model = tokens, canvas, model
        self.num_prefix_tokens, self.num_suffix_tokens = num_prefix_tokens, num_suffix_tokens

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.tell(output.shape[2:], output)

    def tell(self, grid: Sequence[int], like: Tensor) -> None:
        counts = (self.num_prefix_tokens, self.num_suffix_tokens)
        positions = self.canvas.positions(grid, *counts, like=like, training=self.model.training)
        self.tokens.tell(positions).pin(like)


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which this process has a part. That module takes a second to import, so nobody else need."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def _backward_pass() -> int:
    """Which backward pass this code is called from, or −1 where it is called from none (torch has no public name for it)."""
    return torch._C._current_graph_task_id()
