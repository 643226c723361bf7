"""Forward hooks that set positions: one class for each kind of module from which they are known."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from comrope.errors import ConfigurationError
from comrope.hosts._coordinate_grid import CoordinateGrid
from comrope.hosts._position_context import PositionContext, TokenPositions

TABLE = "position_embeddings"
"""The argument by which attention layers of transformers get the table (cos, sin) of a RoPE."""


def accepts(module: nn.Module, argument: str) -> bool:
    """Returns whether the forward of a module has an argument of that name."""
    return argument in inspect.signature(module.forward).parameters


class AnchorOutputsHook:
    """Forward hook of a backbone: anchors the positions of this forward pass to the graph of its outputs."""

    def __init__(self, position_context: PositionContext):
        self.position_context = position_context

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        latest = self.position_context.latest_or_none()
        if latest is not None:
            for value in tensors_in(output):
                latest.anchor(value)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in a module's output: a tensor, or mappings and sequences of tensors."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(each)


class PatchPositionHook:
    """Forward hook of the convolution that makes patches, whose output has the shape of the grid.

    Args:
        position_context: where positions are set.
        coordinate_grid: maps patch indices to positions.
        model: is in training mode where positions are augmented.
        num_prefix_tokens: how many tokens come before the patches.
        num_suffix_tokens: how many come after them; they have the position of the prefix tokens.
    """

    def __init__(
        self,
        position_context: PositionContext,
        coordinate_grid: CoordinateGrid,
        model: nn.Module,
        num_prefix_tokens: int,
        num_suffix_tokens: int = 0,
    ):
        self.position_context, self.coordinate_grid, self.model = position_context, coordinate_grid, model
        self.num_prefix_tokens, self.num_suffix_tokens = num_prefix_tokens, num_suffix_tokens

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.set_positions(output.shape[2:], output)

    def set_positions(self, shape: Sequence[int], like: Tensor) -> None:
        counts = (self.num_prefix_tokens, self.num_suffix_tokens)
        positions = self.coordinate_grid.positions(shape, *counts, like=like, training=self.model.training)
        self.position_context.set(positions).anchor(like)


class PositionIdsHook:
    """Forward pre-hook of a RoPE that is called with position ids, (B, L)."""

    def __init__(self, position_context: PositionContext, rope: nn.Module):
        self.position_context = position_context
        self.index = list(inspect.signature(rope.forward).parameters).index("position_ids")

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs["position_ids"] if "position_ids" in kwargs else args[self.index]
        found = self.position_context.from_arguments({"position_ids": ids})
        assert found is not None
        self.position_context.set(found.positions)


class GridPositionHook:
    """Forward hook of a RoPE that is called with (row, column) of each token, (L, 2), or with patch numbers, (L,)."""

    def __init__(self, position_context: "ReorderedPositionContext", rope: nn.Module, config: Any):
        self.position_context, self.config = position_context, config
        self.index = list(inspect.signature(rope.forward).parameters).index("position_ids")

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: tuple[Tensor, Tensor]) -> None:
        ids = kwargs["position_ids"] if "position_ids" in kwargs else args[self.index]
        if ids.ndim == 1:  # numbered row by row on a grid as wide as the largest image
            width = self.config.image_size // self.config.patch_size
            ids = torch.stack((ids // width, ids % width), dim=-1)
        self.position_context.set_with_table(ids, output[0])


class ReorderedPositionContext(PositionContext):
    """A position context for models that reorder their tokens, and the rows of the RoPE table with them (Qwen-VL).

    The order that an attention layer has is found by comparing the rows of its table with those of the original table.
    """

    def set_with_table(self, positions: Tensor, table: Tensor) -> None:
        """Sets `positions`, (L, N), of tokens whose rows in the RoPE table are `table`, (L, D)."""
        self.set(positions)
        self._table = table

    def from_arguments(self, arguments):
        table = arguments.get(TABLE)
        if table is None or self.latest_or_none() is None:
            return None
        positions = self.latest().positions
        if table[0].shape != self._table.shape:
            return None
        probe = torch.linspace(0.5, 1.5, self._table.shape[-1], device=self._table.device, dtype=torch.float64)
        original, reordered = ((rows.double() @ probe).argsort() for rows in (self._table, table[0]))
        return TokenPositions(positions[original[reordered.argsort()]])

    _table: Tensor


class PackedPatchHook:
    """Forward hook of embeddings of packed patches, which are called with the shape of each image's grid (SigLIP 2)."""

    def __init__(self, position_context: PositionContext, coordinate_grid: CoordinateGrid):
        self.position_context, self.coordinate_grid = position_context, coordinate_grid

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        shapes = torch.as_tensor(
            kwargs["spatial_shapes"] if "spatial_shapes" in kwargs else args[1], device=output.device
        )
        numbers = torch.arange(output.shape[1], device=output.device).expand(len(shapes), -1)
        rows, columns = shapes[:, :1], shapes[:, 1:]
        indices = torch.stack((numbers // columns, numbers % columns), dim=-1)
        padding = (numbers >= rows * columns).unsqueeze(-1)
        positions = self.coordinate_grid.positions_at(indices.masked_fill(padding, 0), shapes, 0, like=output)
        self.position_context.set(positions).anchor(output)


class MaskedPatchHook:
    """Forward hook of embeddings that drop patches: selects the positions of those that are kept (masked autoencoders).

    The kept patches are known from the ids that restore the order, in the output, or from a mask, in the arguments.
    """

    def __init__(self, position_context: PositionContext, num_prefix_tokens: int):
        self.position_context, self.num_prefix_tokens = position_context, num_prefix_tokens

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(output, tuple):
            embedded, _, restore = output
            kept = restore.argsort(dim=1)[:, : embedded.shape[1] - self.num_prefix_tokens]
        else:
            embedded, masked = output, kwargs.get("bool_masked_pos", args[1] if len(args) > 1 else None)
            if masked is None:
                return
            kept = masked.int().argsort(dim=1, stable=True)[:, : embedded.shape[1] - self.num_prefix_tokens]
        self.position_context.select(kept, self.num_prefix_tokens)
        self.position_context.latest().anchor(embedded)


class PositionEmbeddingHook:
    """Forward pre-hook of a position embedding: its arguments are the position ids, or tensors of the same length."""

    def __init__(self, position_context: PositionContext):
        self.position_context = position_context

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("position_ids")
        if ids is None:
            ids = args[0] if args else kwargs.get("input")
            if not isinstance(ids, Tensor):
                raise ConfigurationError(
                    f"{type(module).__name__} is called with {type(ids).__name__} and not with position ids or tokens, so that "
                    "the positions of tokens are not known there."
                )
            if ids.dtype not in (torch.int64, torch.int32) or accepts(module, "attention_mask"):
                ids = torch.arange(ids.shape[-1], device=ids.device)
        ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
        self.position_context.set(ids[0].unsqueeze(-1) if len(ids) == 1 else ids.unsqueeze(-1))


class RopeTableHook:
    """Forward hook of a RoPE that computes patch positions itself, for layers that keep it (DINOv3).

    Replaces its table by the one at the positions that were set. In training the RoPE and the coordinate grid would
    otherwise augment the same patches by different random draws.
    """

    def __init__(self, patch_hook: PatchPositionHook):
        self.patch_hook = patch_hook

    def __call__(self, module: Any, args: tuple, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        positions = self.patch_hook.position_context.latest().positions
        patches = positions[self.patch_hook.num_prefix_tokens : len(positions) - self.patch_hook.num_suffix_tokens]
        phases = 2 * math.pi * patches.unsqueeze(-1) * module.inv_freq  # (L, 2, D/4)
        phases = phases.flatten(1).repeat(1, 2)
        return phases.cos().to(output[0].dtype), phases.sin().to(output[1].dtype)
