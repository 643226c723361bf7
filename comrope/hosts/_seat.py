"""What turns the queries and keys of one attention layer on the way to its scores.

No forward of attention is written anew. Queries and keys are turned in what the last module that makes them puts out: before
scores, masks, biases and caches, whatever computes those. Where that is a norm, or anything but a plain `nn.Linear`, a hook
turns its output. A plain `nn.Linear` gets a forward of ours, which takes the basis into its weights, once a step and not once a
token, and turns what comes out in place.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from comrope._planes import full_precision
from comrope.errors import InputError
from comrope.hosts._attention import Layer, Part, Reading
from comrope.hosts._scores import Caught, Multihead
from comrope.hosts._still import stilled
from comrope.hosts._tokens import Places, Tokens, is_sharded
from comrope.rotation import Rotation, compute_dtype


class Seat:
    """The hooks of one attention layer with an encoding.

    They keep to the names of its parts: where an adapter puts a module of its own in place of a projection, that module is
    listened to from the next forward pass on.
    """

    def __init__(self, layer: Layer, reading: Reading, tokens: Tokens):
        self.name, self.way = layer.name, layer.way
        self.attention = layer.attention
        self.parts, self.projections = layer.parts, layer.projections
        self.num_heads = {"q": layer.num_query_heads, "k": layer.num_heads}
        self.head_dim = layer.head_dim
        self.reading = reading
        self.tokens = tokens
        self._places: Places | None = None
        self._rotation: Any = None
        self._handles: dict[str, Any] = {}
        self._heard: dict[str, nn.Module] = {}

    def __getstate__(self):
        return vars(self) | {"_places": None, "_rotation": None}

    def norms(self) -> list[nn.Module]:
        """What stands between the projections and the turning of what they put out."""
        return [] if self.parts == self.projections else [self.attention.get_submodule(p.name) for p in self.parts]

    def sit(self) -> None:
        """From now on the layer has its encoding."""
        self._handles["before"] = self.attention.register_forward_pre_hook(self.before, with_kwargs=True)
        self._handles["after"] = self.attention.register_forward_hook(self.after)
        if hasattr(type(self.attention), self.reading.still):
            vars(self.attention)[self.reading.still] = _as_it_is
        if self.way != "parts":
            # An instance's own forward is what its class's is called by.
            vars(self.attention)["forward"] = Caught(self) if self.way == "scores" else Multihead(self)
            return
        for part in self.parts:
            self._listen(part)

    def rise(self) -> None:
        """Takes the hooks away."""
        vars(self.attention).pop(self.reading.still, None)
        if self.way != "parts":
            vars(self.attention).pop("forward", None)
        for part in self.parts if self._heard else ():
            self._hush(part)
        for handle in self._handles.values():
            handle.remove()
        self._handles = {}

    def _listen(self, part: Part) -> None:
        if part.name in self._heard:
            self._hush(part)
        module = self.attention.get_submodule(part.name)
        if self.parts == self.projections and type(module) is nn.Linear and "forward" not in vars(module):
            vars(module)["forward"] = _Projection(self, part)
        else:
            self._handles[part.name] = module.register_forward_hook(_Listener(self, part))
        self._heard[part.name] = module

    def _hush(self, part: Part) -> None:
        module = self._heard.pop(part.name)
        if part.name in self._handles:
            self._handles.pop(part.name).remove()
        elif isinstance(vars(module).get("forward"), _Projection):
            del vars(module)["forward"]

    def before(self, attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Before the layer runs: are its parts still those; where are its tokens; and no RoPE beside the encoding."""
        for part in self.parts if self.way == "parts" else ():
            if attention.get_submodule(part.name) is not self._heard[part.name]:
                if torch.compiler.is_compiling():
                    raise InputError(
                        f"{part.name} was replaced after the encoding was attached: call the model once before it is compiled."
                    )
                self._listen(part)
        self._places, self._rotation = self.tokens.among(kwargs), None
        table = self.reading.table
        if isinstance(table, int):
            return (*args[:table], stilled(args[table], self.reading.still), *args[table + 1 :]), kwargs
        if table is not None and kwargs.get(table) is not None:
            kwargs = kwargs | {table: stilled(kwargs[table], self.reading.still)}
        return args, kwargs

    def after(self, attention: nn.Module, args: tuple, output: Any) -> None:
        """After the layer has run nothing of that pass is kept."""
        self._places = self._rotation = None

    def project(self, x: Tensor, part: Part) -> Tensor:
        """What a plain projection makes of tokens x, (B, L, C) or (L, C), with its queries and keys turned."""
        linear: Any = self._heard[part.name]
        weight, bias = linear.weight, linear.bias
        rotation = self._at(x.shape[-2], compute_dtype(x))
        in_planes = isinstance(rotation, Rotation) and _is_worth_it(x, weight)
        if in_planes:
            weight = self._into_planes(weight, part, rotation)
            bias = None if bias is None else self._into_planes(bias.unsqueeze(1), part, rotation).squeeze(1)
        ready = in_planes or self._order is None
        if not (isinstance(rotation, Rotation) and ready and _may_be_written_to(x)):
            return self.turn(F.linear(x, weight, bias), part, in_planes)
        y = F.linear(x.flatten(0, -2), weight, bias)  # in two dimensions: of more autograd makes a view of that
        heads = functools.partial(self._to_be_turned, part=part, num_tokens=x.shape[-2])
        y = rotation.within(y, heads, in_basis=in_planes)
        assert self._places is not None
        return self._places.pin(y).view(*x.shape[:-1], -1)

    def turn(self, y: Tensor, part: Part, in_planes: bool = False) -> Tensor:
        """What a part put out with its queries and keys turned, laid out as it came.

        With `in_planes` they are in the order of planes and in the basis already.
        """
        if part.holds == "qkv":
            return self._fused(y, part.skip, in_planes)
        if y.ndim == 4 and self.reading.heads_first:
            return self._turned(y, part.holds, in_planes)
        flat = y if y.ndim == 4 else _batched(y).unflatten(-1, (self.num_heads[part.holds], self.head_dim))
        return self._turned(flat.transpose(1, 2), part.holds, in_planes).transpose(1, 2).reshape(y.shape)

    def turn_scores(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys that are about to meet, (B, heads, L, D), turned."""
        return self._turned(q, "q"), self._turned(k, "k")

    def pieces(self, rows: Tensor, part: Part) -> list[Tensor]:
        """Views of the rows of a projection, (features, C) behind those of others: each (groups, heads of a group, D, C).

        Returns:
            The one of queries or keys that it makes; or queries, keys and values.
        """
        if part.holds != "qkv":
            return [rows.unflatten(0, (1, -1, self.head_dim))]
        heads = rows[part.skip :].unflatten(0, (self.reading.groups, -1, self.head_dim))
        q, k = (num // self.reading.groups for num in self.num_heads.values())
        return list(heads.split((q, k, heads.shape[1] - q - k), dim=1))

    def _into_planes(self, rows: Tensor, part: Part, rotation: Rotation) -> Tensor:
        """The rows of a projection, (features, C), of which those of queries and keys make coordinates of planes."""
        basis, order = rotation.basis, self._order
        if basis is None and order is None:
            return rows
        basis = None if basis is None else basis.detach()  # its gradient comes from turning what it makes
        with full_precision(rows.device):
            pieces = self.pieces(rows, part)
            pieces[:2] = [into_planes(piece, self.num_heads["k"], basis, order) for piece in pieces[:2]]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
        return torch.cat((rows[: part.skip], whole.flatten(0, 2))) if part.skip else whole.flatten(0, 2)

    def _to_be_turned(self, y: Tensor, part: Part, num_tokens: int) -> list[Tensor]:
        """Views of the queries and keys in what a projection put out, (B·L, features): each (B, key heads, …, L, D)."""
        y, (num, num_keys), groups = y.unflatten(0, (-1, num_tokens)), self.num_heads.values(), self.reading.groups
        if part.holds != "qkv":
            views = [y.unflatten(-1, (num_keys, -1, self.head_dim))]
        elif groups == num_keys:  # the heads of a group beside their key head
            heads = y[..., part.skip :].unflatten(-1, (groups, -1, self.head_dim))
            views = [heads[..., : num // groups + 1, :]]
        else:
            q, k, _ = y[..., part.skip :].unflatten(-1, (-1, self.head_dim)).tensor_split((num, num + num_keys), dim=-2)
            views = [each.unflatten(-2, (num_keys, -1)) for each in (q, k)]
        return [view.permute(0, 2, 3, 1, 4) for view in views]

    def _fused(self, y: Tensor, skip: int, in_planes: bool) -> Tensor:
        if skip:
            others, y = y[..., :skip], y[..., skip:]
            return torch.cat((others, self._fused(y, 0, in_planes)), dim=-1)
        groups = self.reading.groups
        a_group = {which: num // groups for which, num in self.num_heads.items()}
        heads = _batched(y).unflatten(-1, (groups, -1, self.head_dim))  # (B, L, groups, heads of a group, D)
        q, k, v = heads.split([a_group["q"], a_group["k"], a_group["k"]], dim=-2)
        q, k = (
            self._turned(x.flatten(2, 3).transpose(1, 2), which, in_planes).transpose(1, 2).reshape(x.shape)
            for x, which in ((q, "q"), (k, "k"))
        )
        return torch.cat((q, k, v), dim=-2).view(y.shape)

    def _turned(self, x: Tensor, which: str, in_planes: bool = False) -> Tensor:
        """Queries or keys, (B, heads, L, D), turned."""
        rotation = self._at(x.shape[-2], compute_dtype(x))
        if self._order is not None and not in_planes:
            x = Reorder.apply(x, self._order)  # pyright: ignore
        turn = rotation.queries if which == "q" else rotation.keys
        x = turn(x, in_basis=True) if in_planes else turn(x)
        assert self._places is not None
        return self._places.pin(x)

    @property
    def _order(self) -> Tensor | None:
        """Which features to take so that the coordinates of planes are neighbours, where they are not."""
        return self.attention.order  # pyright: ignore[reportReturnType]

    def _at(self, num_tokens: int, dtype: torch.dtype) -> Any:
        """The rotation of the tokens that the layer has, worked out once a pass."""
        if self._places is None:
            self._places = self.tokens.ask(num_tokens)
        if self._rotation is None:
            self._rotation = self._places.rotation(self.attention, dtype)
        return self._rotation


def _batched(y: Tensor) -> Tensor:
    return y.unsqueeze(0) if y.ndim == 2 else y


def _as_it_is(x: Tensor, *positions: Any) -> Tensor:
    """In place of a layer's own RoPE."""
    return x


class _Listener:
    """The hook on one part."""

    def __init__(self, seat: Seat, part: Part):
        self.seat, self.part = seat, part

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.seat.turn(output, self.part)


class _Projection:
    """In place of the forward of a plain projection."""

    def __init__(self, seat: Seat, part: Part):
        self.seat, self.part = seat, part

    def __call__(self, input: Tensor) -> Tensor:
        return self.seat.project(input, self.part)


def into_planes(rows: Tensor, num_heads: int, basis: Tensor | None, order: Tensor | None) -> Tensor:
    """Rows (…, D, C) of a projection's heads, those that share a key head together, taken in `order` and by Qᵀ."""
    heads = rows.reshape(num_heads, -1, *rows.shape[-2:])
    heads = heads if order is None else heads.index_select(-2, order)
    if basis is not None:
        heads = (basis.mT.unsqueeze(1).to(rows.dtype) @ heads.unflatten(-2, basis.shape[1:3])).flatten(-3, -2)
    return heads.reshape(rows.shape)


def _is_worth_it(x: Tensor, weight: Tensor) -> bool:
    """Whether there are tokens enough to take the basis into the weights. Half precision would round those once more."""
    if weight.dtype not in (torch.float32, torch.float64) or is_sharded(weight):
        return False
    if torch.compiler.is_compiling():  # a graph is for any number of tokens: many in training, perhaps one without
        return torch.is_grad_enabled()
    return bool(4 * x[..., 0].numel() >= weight.shape[1])


def _may_be_written_to(x: Tensor) -> bool:
    """Whether what a projection makes of x can be changed in place: not where torch transforms or compiles."""
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return type(x) is Tensor and not transformed and not torch.compiler.is_compiling()


class Reorder(torch.autograd.Function):
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
        return Reorder.apply(grads[0], order.argsort()), None
