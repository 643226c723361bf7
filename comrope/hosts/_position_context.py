"""The positions of the current tokens, carried from the hooks that compute them to the attention layers that use them."""

import sys
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from comrope.encodings import SpectralEncoding, rotations
from comrope.errors import InputError

MAX_SHARED_TABLE_SIZE = 2**24
"""The rotations of all layers are computed together if their tables have at most this many numbers."""


class TokenPositions:
    """The positions of the tokens of one forward pass, (L, N) or (B, L, N), prefix tokens included."""

    def __init__(self, positions: Tensor, anchors: "weakref.WeakSet[_Anchor] | None" = None):
        self.positions = positions
        self.rotations: dict[nn.Module, Any] = {}
        """The rotation of each attention layer, where those of all layers were computed together."""
        self.used_without_graph = False
        """Whether a learned rotation was used under no_grad, as in the forward of a checkpoint with use_reentrant=True."""
        self._anchors = anchors

    def rotation(self, attention: Any, dtype: torch.dtype, tokens: Tensor | None = None) -> Any:
        """Returns the rotation of one attention layer at these positions, for tokens that are rotated in `dtype`.

        `tokens`, (B, L, width), are what the layer was called with, if its encoding depends on them.
        """
        if tokens is not None:
            return attention.encoding.rotation(self.positions, dtype=dtype, tokens=tokens)
        shared = self.rotations.get(attention)
        if shared is None or shared.tables[0].dtype != dtype:
            return attention.encoding.rotation(self.positions, dtype=dtype)
        learned = shared.phases[0].requires_grad
        if learned and not torch.is_grad_enabled():
            self.used_without_graph = True
        needs_grad = torch.is_grad_enabled() and any(p.requires_grad for p in attention.encoding.parameters())
        # The shared graph can be differentiated once, and not at all where it was computed without gradients.
        if needs_grad and (not learned or (self.used_without_graph and _backward_pass() != -1)):
            return attention.encoding.rotation(self.positions, dtype=dtype)
        return shared

    def anchor(self, tensor: Tensor) -> Tensor:
        """Keeps these positions alive as long as the autograd graph of `tensor`, and returns `tensor`."""
        if self._anchors is not None and not torch.compiler.is_compiling() and tensor.grad_fn is not None:
            anchor = next((known for known in self._anchors if known.target is self), None) or _Anchor(self)
            tensor.grad_fn.metadata[_Anchor] = anchor  # pyright: ignore[reportIndexIssue]
            self._anchors.add(anchor)
        return tensor


class _Anchor:
    """A reference to positions that only autograd graphs hold, so that it dies with the last of them."""

    def __init__(self, target: TokenPositions):
        self.target = target


class PositionContext:
    """Holds the positions of the current tokens: hooks set them, attention layers get them.

    The blocks of a vision transformer are called with tokens alone, so positions have to reach them another way. In a
    forward pass the positions set last are the right ones. Gradient checkpointing runs a block again during the backward
    pass, when other images may have been processed since. Therefore positions are anchored to the autograd graph of what
    was computed with them: they live as long as that graph, and only these can be meant in a backward pass. If several of
    them differ, `get` raises an error instead of guessing.

    All attention layers of a backbone share one context. Copies and pickles of the model share a new, empty one.

    Args:
        position_argument: the keyword argument by which attention layers are called with position ids, if they are.
    """

    def __init__(self, position_argument: str | None = None):
        self.position_argument = position_argument
        self.layers: list[Any] = []
        """The attention modules that get positions from here."""
        self._anchors: weakref.WeakSet[_Anchor] = weakref.WeakSet()
        self._latest: TokenPositions | None = None
        self._backward_pass_of_latest = -1

    def __reduce__(self):
        return type(self), (self.position_argument,), {"layers": self.layers}

    def set(self, positions: Tensor) -> TokenPositions:
        """Makes `positions`, (L, N) or (B, L, N), prefix tokens included, those of the current tokens."""
        self._latest = TokenPositions(positions, self._anchors)
        self._latest.rotations = self._shared_rotations(positions)
        if not torch.compiler.is_compiling():
            self._backward_pass_of_latest = _backward_pass()
        return self._latest

    def _shared_rotations(self, positions: Tensor) -> dict[nn.Module, Any]:
        """Returns the rotations of all layers, computed by one set of small kernels; none if the tables would be large."""
        encodings = [layer.encoding for layer in self.layers]
        if len(encodings) < 2 or not all(isinstance(pe, SpectralEncoding) for pe in encodings):
            return {}
        size = positions[..., 0].numel() * sum(pe.num_heads * pe.head_dim for pe in encodings)
        if size > MAX_SHARED_TABLE_SIZE or any(is_sharded(p) for pe in encodings for p in pe.parameters()):
            return {}
        found = rotations(encodings, positions, dtype=torch.promote_types(torch.float32, encodings[0].dtype))
        return dict(zip(self.layers, found, strict=True))

    def latest(self) -> TokenPositions:
        """Returns the positions set last; InputError if none were set."""
        if self._latest is None:
            raise InputError("No positions have been set: call the model, not parts of it.")
        return self._latest

    def latest_or_none(self) -> TokenPositions | None:
        """Returns the positions set last, or None."""
        return self._latest

    def select(self, indices: Tensor, num_prefix_tokens: int) -> None:
        """Keeps the positions of the prefix tokens and of the patches `indices`, (B, kept), after patch dropout."""
        before = self.latest()
        positions = before.positions.expand(len(indices), *before.positions.shape[-2:])
        prefix, patches = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
        kept = self.set(torch.cat((prefix, patches.take_along_dim(indices.unsqueeze(-1), dim=1)), dim=1))
        for anchor in self._anchors if not torch.compiler.is_compiling() else ():
            if anchor.target is before:  # the graph so far continues with the kept tokens
                anchor.target = kept

    def from_arguments(self, arguments: dict) -> TokenPositions | None:
        """Returns the position ids, (B or 1, L), among the keyword arguments of an attention layer; None without any."""
        ids = None if self.position_argument is None else arguments.get(self.position_argument)
        if ids is None:
            return None
        return TokenPositions(ids.squeeze(0).unsqueeze(-1) if ids.shape[0] == 1 else ids.unsqueeze(-1))

    def get(self, num_tokens: int) -> TokenPositions:
        """Returns the positions of the `num_tokens` tokens that an attention layer is called with.

        Raises:
            InputError: no positions for that many tokens are known, or, in a backward pass, several that differ.
        """
        fitting = [p for p in self._candidates() if p.positions.shape[-2] == num_tokens]
        if not fitting:
            known = (
                "none were set" if self._latest is None else f"the last were set for {self._latest.positions.shape[-2]}"
            )
            raise InputError(
                f"Attention has {num_tokens} tokens, but of positions {known}. Call the whole model, so that it can set them, "
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

    def _candidates(self) -> list[TokenPositions]:
        """Returns the positions that the current tokens may have: the latest, or in a backward pass those still anchored."""
        latest = [] if self._latest is None else [self._latest]
        if torch.compiler.is_compiling() or _backward_pass() == -1:
            return latest
        alive = [anchor.target for anchor in self._anchors]
        return alive + latest if self._backward_pass_of_latest == _backward_pass() else alive


def is_sharded(tensor: Tensor) -> bool:
    """Returns whether a tensor is a DTensor, without importing that module, which takes a second."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def _backward_pass() -> int:
    """Returns the id of the backward pass that is running, or −1 outside of one (torch has no public name for it)."""
    return torch._C._current_graph_task_id()
