"""Hooks that tell positions in models of transformers: on what is called with them, or makes the tokens."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from comrope.hosts._tokens import Canvas, PatchTeller, Places, Tokens

TABLE = "position_embeddings"
"""The argument in which attention layers of transformers get the table of a RoPE."""


def takes(module: nn.Module, argument: str) -> bool:
    """Whether the forward of a module has an argument of that name."""
    return argument in inspect.signature(module.forward).parameters


class IdsTeller:
    """The hook on a RoPE that is called with position ids, (B, L)."""

    def __init__(self, tokens: Tokens, rope: nn.Module):
        self.tokens = tokens
        self.place = list(inspect.signature(rope.forward).parameters).index("position_ids")

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs["position_ids"] if "position_ids" in kwargs else args[self.place]
        places = self.tokens.among({"position_ids": ids})
        assert places is not None
        self.tokens.tell(places.positions)


class GridTeller:
    """The hook on a RoPE that is called with (row, column) of each token, (L, 2)."""

    def __init__(self, tokens: "FollowingTokens", rope: nn.Module, config: Any):
        self.tokens, self.config = tokens, config
        self.place = list(inspect.signature(rope.forward).parameters).index("position_ids")

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: tuple[Tensor, Tensor]) -> None:
        ids = kwargs["position_ids"] if "position_ids" in kwargs else args[self.place]
        if ids.ndim == 1:  # numbered row by row on a grid as wide as the largest image
            width = self.config.image_size // self.config.patch_size
            ids = torch.stack((ids // width, ids % width), dim=-1)
        self.tokens.tell_with(ids, output[0])


class FollowingTokens(Tokens):
    """Positions of tokens that the model puts into another order, with the table of its RoPE: they follow its rows."""

    def tell_with(self, positions: Tensor, table: Tensor) -> None:
        """Tokens are at `positions`, (L, N), and rows of `table`, (L, D), belong to them."""
        self.tell(positions)
        self._table = table

    def among(self, arguments):
        table = arguments.get(TABLE)
        if table is None or self.known() is None:
            return None
        positions = self.latest()
        if table[0].shape != self._table.shape:
            return None
        probe = torch.linspace(0.5, 1.5, self._table.shape[-1], device=self._table.device, dtype=torch.float64)
        told, asked = ((rows.double() @ probe).argsort() for rows in (self._table, table[0]))
        return Places(positions[told[asked.argsort()]])

    _table: Tensor


class PackedTeller:
    """The hook on embeddings of packed patches."""

    def __init__(self, tokens: Tokens, canvas: Canvas):
        self.tokens, self.canvas = tokens, canvas

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        shapes = torch.as_tensor(
            kwargs["spatial_shapes"] if "spatial_shapes" in kwargs else args[1], device=output.device
        )
        numbers = torch.arange(output.shape[1], device=output.device).expand(len(shapes), -1)
        rows, columns = shapes[:, :1], shapes[:, 1:]
        indices = torch.stack((numbers // columns, numbers % columns), dim=-1)
        padding = (numbers >= rows * columns).unsqueeze(-1)
        positions = self.canvas.positions_of(indices.masked_fill(padding, 0), shapes, 0, like=output)
        self.tokens.tell(positions).pin(output)


class DropTeller:
    """The hook on embeddings that leave out patches: ids to restore them, or a mask, say which have stayed."""

    def __init__(self, tokens: Tokens, before: int):
        self.tokens, self.before = tokens, before

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(output, tuple):
            embedded, _, restore = output
            kept = restore.argsort(dim=1)[:, : embedded.shape[1] - self.before]
        else:
            embedded, masked = output, kwargs.get("bool_masked_pos", args[1] if len(args) > 1 else None)
            if masked is None:
                return
            kept = masked.int().argsort(dim=1, stable=True)[:, : embedded.shape[1] - self.before]
        self.tokens.keep(kept, self.before)
        self.tokens.latest_places().pin(embedded)


class LookupTeller:
    """The hook on an embedding of positions, which is called with their numbers."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("position_ids")
        if ids is None:
            ids = args[0] if args else kwargs["input"]
            if ids.dtype not in (torch.int64, torch.int32) or takes(module, "attention_mask"):
                ids = torch.arange(ids.shape[-1], device=ids.device)
        ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
        self.tokens.tell(ids[0].unsqueeze(-1) if len(ids) == 1 else ids.unsqueeze(-1))


class SamePlaces:
    """The hook on a RoPE that measures patches itself, for layers that keep it: its table at the positions that were told.

    In training both would shift, stretch and rescale the canvas at random, each in its own way.
    """

    def __init__(self, teller: PatchTeller):
        self.teller = teller

    def __call__(self, module: Any, args: tuple, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        positions = self.teller.tokens.latest()
        patches = positions[self.teller.num_prefix_tokens : len(positions) - self.teller.num_suffix_tokens]
        phases = 2 * math.pi * patches.unsqueeze(-1) * module.inv_freq  # (L, 2, D/4)
        phases = phases.flatten(1).repeat(1, 2)
        return phases.cos().to(output[0].dtype), phases.sin().to(output[1].dtype)
