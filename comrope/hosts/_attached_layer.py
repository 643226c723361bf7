"""Rotates the queries and keys of one attention layer, by hooks, before its scores are computed.

The forward of the attention layer is not rewritten. Queries and keys are rotated in the output of the last modules that
compute them, so that scores, masks, biases and caches see rotated ones, whatever computes those. If such a module is a norm,
or anything but a plain `nn.Linear`, a forward hook rotates its output. A plain `nn.Linear` gets a new forward, which
multiplies the basis into its weights, once a step instead of once a token, and rotates the output in place.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from comrope._planes import full_precision
from comrope.encodings import TokenEncoding
from comrope.errors import InputError
from comrope.hosts._attention_forward import MultiheadForward, SDPAForward
from comrope.hosts._attention_layer import AttentionLayer, Convention, QKModule
from comrope.hosts._identity_rope import identity_table
from comrope.hosts._position_context import PositionContext, TokenPositions, is_sharded
from comrope.rotation import Rotation, compute_dtype

CACHES = ("past_key_values", "past_key_value", "layer_past")
"""Arguments by which attention layers get keys of earlier tokens."""


class AttachedLayer:
    """The hooks of one attention layer with an encoding.

    They refer to submodules by name. If an adapter replaces a projection, its replacement is hooked from the next forward
    pass on.
    """

    def __init__(self, layer: AttentionLayer, convention: Convention, position_context: PositionContext):
        self.name, self.rotate_at = layer.name, layer.rotate_at
        self.attention = layer.attention
        self.rotated_modules, self.projections = layer.rotated_modules, layer.projections
        self.num_heads = {"q": layer.num_query_heads, "k": layer.num_key_heads}
        self.head_dim = layer.head_dim
        self.convention = convention
        self.position_context = position_context
        self._positions: TokenPositions | None = None
        self._rotation: Any = None
        self._tokens: Tensor | None = None
        """What the attention layer was called with, for encodings that depend on it."""
        self._handles: dict[str, Any] = {}
        self._hooked: dict[str, nn.Module] = {}

    def __getstate__(self):
        return vars(self) | {"_positions": None, "_rotation": None, "_tokens": None}

    def norms(self) -> list[nn.Module]:
        """Returns the norms between the projections and the rotation."""
        if self.rotated_modules == self.projections:
            return []
        return [self.attention.get_submodule(module.name) for module in self.rotated_modules]

    def install(self) -> None:
        """Registers the hooks."""
        self._handles["before"] = self.attention.register_forward_pre_hook(self.before_forward, with_kwargs=True)
        self._handles["after"] = self.attention.register_forward_hook(self.after_forward)
        if hasattr(type(self.attention), self.convention.disable_rope):
            vars(self.attention)[self.convention.disable_rope] = _return_unrotated
        if self.rotate_at != "modules":
            # A forward set on the instance is called in place of the one of its class.
            forward = SDPAForward(self) if self.rotate_at == "sdpa" else MultiheadForward(self)
            vars(self.attention)["forward"] = forward
            return
        for module in self.rotated_modules:
            self._hook(module)

    def uninstall(self) -> None:
        """Removes the hooks."""
        vars(self.attention).pop(self.convention.disable_rope, None)
        if self.rotate_at != "modules":
            vars(self.attention).pop("forward", None)
        for module in self.rotated_modules if self._hooked else ():
            self._unhook(module)
        for handle in self._handles.values():
            handle.remove()
        self._handles = {}

    def _hook(self, module: QKModule) -> None:
        if module.name in self._hooked:
            self._unhook(module)
        target = self.attention.get_submodule(module.name)
        is_projection = self.rotated_modules == self.projections
        if is_projection and type(target) is nn.Linear and "forward" not in vars(target):
            vars(target)["forward"] = _ProjectionForward(self, module)
        else:
            self._handles[module.name] = target.register_forward_hook(_RotateOutputHook(self, module))
        self._hooked[module.name] = target

    def _unhook(self, module: QKModule) -> None:
        target = self._hooked.pop(module.name)
        if module.name in self._handles:
            self._handles.pop(module.name).remove()
        elif isinstance(vars(target).get("forward"), _ProjectionForward):
            del vars(target)["forward"]

    def before_forward(self, attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Hooks replaced submodules, takes position ids from the arguments, and disables the layer's own RoPE there."""
        for module in self.rotated_modules if self.rotate_at == "modules" else ():
            if attention.get_submodule(module.name) is not self._hooked[module.name]:
                if torch.compiler.is_compiling():
                    raise InputError(
                        f"{module.name} was replaced after the encoding was attached: call the model once before it is "
                        "compiled."
                    )
                self._hook(module)
        self._positions, self._rotation = self.position_context.from_arguments(kwargs), None
        if isinstance(attention.encoding, TokenEncoding):
            if any(_num_cached(kwargs.get(name), attention) for name in CACHES):
                raise InputError(
                    f"{self.name}: {type(attention.encoding).__name__} rotates tokens by those before them, which a key cache "
                    "does not hold: call the model on whole sequences, with use_cache=False."
                )
            self._tokens = attention_input(args, kwargs)
        argument, how = self.convention.rope_argument, self.convention.disable_rope
        if isinstance(argument, int):
            return (*args[:argument], identity_table(args[argument], how), *args[argument + 1 :]), kwargs
        if argument is not None and kwargs.get(argument) is not None:
            kwargs = kwargs | {argument: identity_table(kwargs[argument], how)}
        return args, kwargs

    def after_forward(self, attention: nn.Module, args: tuple, output: Any) -> None:
        """Releases the positions and the rotation of this forward pass."""
        self._positions = self._rotation = self._tokens = None

    def project(self, x: Tensor, module: QKModule) -> Tensor:
        """Returns the output of a plain projection for tokens x, (B, L, C) or (L, C), with queries and keys rotated."""
        linear: Any = self._hooked[module.name]
        weight, bias = linear.weight, linear.bias
        rotation = self._rotation_for(x.shape[-2], compute_dtype(x))
        in_basis = isinstance(rotation, Rotation) and _basis_pays_in_weights(x, weight)
        if in_basis:
            weight = self._weight_in_basis(weight, module, rotation)
            bias = None if bias is None else self._weight_in_basis(bias.unsqueeze(1), module, rotation).squeeze(1)
        in_order = in_basis or self._order is None
        if not (isinstance(rotation, Rotation) and in_order and _can_rotate_in_place(x)):
            return self.rotate_output(F.linear(x, weight, bias), module, in_basis)
        y = F.linear(x.flatten(0, -2), weight, bias)  # 2-d, because autograd returns a view for more dimensions
        heads = functools.partial(self._query_key_views, module=module, num_tokens=x.shape[-2])
        y = rotation.within(y, heads, in_basis=in_basis)
        assert self._positions is not None
        return self._positions.anchor(y).view(*x.shape[:-1], -1)

    def rotate_output(self, y: Tensor, module: QKModule, in_basis: bool = False) -> Tensor:
        """Returns the output of a module with its queries and keys rotated, in the same layout.

        With `in_basis` they are multiplied by Qᵀ, and in the feature order of planes, already.
        """
        if module.output == "qkv":
            return self._rotate_fused(y, module.feature_offset, in_basis)
        if y.ndim == 4 and self.convention.heads_first:
            return self._rotate(y, module.output, in_basis)
        heads = y if y.ndim == 4 else _batched(y).unflatten(-1, (self.num_heads[module.output], self.head_dim))
        return self._rotate(heads.transpose(1, 2), module.output, in_basis).transpose(1, 2).reshape(y.shape)

    def rotate_queries_and_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns queries and keys, each (B, heads, L, D), rotated."""
        return self._rotate(q, "q"), self._rotate(k, "k")

    def split_rows(self, rows: Tensor, module: QKModule) -> list[Tensor]:
        """Returns views of the rows (features, C) of a projection, each (groups, heads in a group, D, C).

        These are the queries or the keys; or queries, keys and values of a fused projection.
        """
        if module.output != "qkv":
            return [rows.unflatten(0, (1, -1, self.head_dim))]
        num_groups = self.convention.num_groups
        heads = rows[module.feature_offset :].unflatten(0, (num_groups, -1, self.head_dim))
        q, k = (num // num_groups for num in self.num_heads.values())
        return list(heads.split((q, k, heads.shape[1] - q - k), dim=1))

    def _weight_in_basis(self, rows: Tensor, module: QKModule, rotation: Rotation) -> Tensor:
        """Returns the rows of a projection, (features, C), with Qᵀ multiplied into those of queries and keys."""
        basis, order = rotation.basis, self._order
        if basis is None and order is None:
            return rows
        basis = None if basis is None else basis.detach().mT  # its gradient comes from the rotation of the output
        with full_precision(rows.device):
            pieces = self.split_rows(rows, module)
            pieces[:2] = [mapped_rows(piece, self.num_heads["k"], basis, order) for piece in pieces[:2]]
        whole = (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)).flatten(0, 2)
        return torch.cat((rows[: module.feature_offset], whole)) if module.feature_offset else whole

    def _query_key_views(self, y: Tensor, module: QKModule, num_tokens: int) -> list[Tensor]:
        """Returns views of the queries and keys in a projection's output (B·L, features), each (B, key heads, …, L, D)."""
        num, num_keys = self.num_heads.values()
        num_groups = self.convention.num_groups
        y = y.unflatten(0, (-1, num_tokens))
        if module.output != "qkv":
            views = [y.unflatten(-1, (num_keys, -1, self.head_dim))]
        elif num_groups == num_keys:  # the heads of a group are beside their key head
            heads = y[..., module.feature_offset :].unflatten(-1, (num_groups, -1, self.head_dim))
            views = [heads[..., : num // num_groups + 1, :]]
        else:
            heads = y[..., module.feature_offset :].unflatten(-1, (-1, self.head_dim))
            q, k, _ = heads.tensor_split((num, num + num_keys), dim=-2)
            views = [each.unflatten(-2, (num_keys, -1)) for each in (q, k)]
        return [view.permute(0, 2, 3, 1, 4) for view in views]

    def _rotate_fused(self, y: Tensor, feature_offset: int, in_basis: bool) -> Tensor:
        if feature_offset:
            others, y = y[..., :feature_offset], y[..., feature_offset:]
            return torch.cat((others, self._rotate_fused(y, 0, in_basis)), dim=-1)
        num_groups = self.convention.num_groups
        q_heads, k_heads = (num // num_groups for num in self.num_heads.values())
        heads = _batched(y).unflatten(-1, (num_groups, -1, self.head_dim))  # (B, L, groups, heads in a group, D)
        q, k, v = heads.split([q_heads, k_heads, k_heads], dim=-2)
        q, k = (
            self._rotate(x.flatten(2, 3).transpose(1, 2), which, in_basis).transpose(1, 2).reshape(x.shape)
            for x, which in ((q, "q"), (k, "k"))
        )
        return torch.cat((q, k, v), dim=-2).view(y.shape)

    def _rotate(self, x: Tensor, which: str, in_basis: bool = False) -> Tensor:
        """Returns queries ("q") or keys ("k"), (B, heads, L, D), rotated."""
        rotation = self._rotation_for(x.shape[-2], compute_dtype(x))
        if self._order is not None and not in_basis:
            x = Permute.apply(x, self._order)  # pyright: ignore
        rotate = rotation.queries if which == "q" else rotation.keys
        x = rotate(x, in_basis=True) if in_basis else rotate(x)
        assert self._positions is not None
        return self._positions.anchor(x)

    @property
    def _order(self) -> Tensor | None:
        """The feature order in which the coordinates of planes are neighbours; None if they already are."""
        return self.attention.order  # pyright: ignore[reportReturnType]

    def _rotation_for(self, num_tokens: int, dtype: torch.dtype) -> Any:
        """Returns the rotation of the layer's current tokens, computed once in each forward pass."""
        if self._positions is None:
            self._positions = self.position_context.get(num_tokens)
        if self._rotation is None:
            self._rotation = self._positions.rotation(self.attention, dtype, self._tokens)
        return self._rotation


def _batched(y: Tensor) -> Tensor:
    return y.unsqueeze(0) if y.ndim == 2 else y


def _num_cached(cache: Any, attention: Any) -> int:
    """Returns how many tokens the cache of a model holds for one of its attention layers."""
    if cache is None or not hasattr(cache, "get_seq_length"):
        return 0 if cache is None else 1
    return int(cache.get_seq_length(getattr(attention, "layer_idx", 0)))


def attention_input(args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
    """Returns the tokens (B, L, width) among the arguments of an attention layer; None if its input is of another shape."""
    found = [value for value in (*args, kwargs.get("hidden_states"), kwargs.get("x")) if isinstance(value, Tensor)]
    return found[0] if found and found[0].ndim == 3 and found[0].is_floating_point() else None


def _return_unrotated(x: Tensor, *positions: Any) -> Tensor:
    """Replaces a method by which an attention layer applies its own RoPE."""
    return x


class _RotateOutputHook:
    """Forward hook of a module that outputs queries or keys."""

    def __init__(self, layer: AttachedLayer, module: QKModule):
        self.layer, self.module = layer, module

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.layer.rotate_output(output, self.module)


class _ProjectionForward:
    """Replaces the forward of a plain projection."""

    def __init__(self, layer: AttachedLayer, module: QKModule):
        self.layer, self.module = layer, module

    def __call__(self, input: Tensor) -> Tensor:
        return self.layer.project(input, self.module)


def mapped_rows(rows: Tensor, num_heads: int, matrices: Tensor | None, order: Tensor | None) -> Tensor:
    """Returns rows (…, D, C) of a projection, permuted by `order` and multiplied by a matrix in each block.

    Args:
        rows: the heads that share a key head are neighbours.
        num_heads: the number of key heads.
        matrices: (key heads, m, b, b), such as Qᵀ; None for the identity.
        order: (D,), the feature order; None if it does not change.
    """
    heads = rows.reshape(num_heads, -1, *rows.shape[-2:])
    heads = heads if order is None else heads.index_select(-2, order)
    if matrices is not None:
        heads = (matrices.unsqueeze(1).to(rows.dtype) @ heads.unflatten(-2, matrices.shape[1:3])).flatten(-3, -2)
    return heads.reshape(rows.shape)


def _basis_pays_in_weights(x: Tensor, weight: Tensor) -> bool:
    """Returns whether there are enough tokens for a multiplication of the basis into the weights to save time.

    False in half precision, where the product would be rounded once more.
    """
    if weight.dtype not in (torch.float32, torch.float64) or is_sharded(weight):
        return False
    if torch.compiler.is_compiling():  # a graph is for any number of tokens: many in training, maybe one in inference
        return torch.is_grad_enabled()
    return bool(4 * x[..., 0].numel() >= weight.shape[1])


def _can_rotate_in_place(x: Tensor) -> bool:
    """Returns whether a projection's output for x may be changed in place: not under torch.func or torch.compile."""
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return type(x) is Tensor and not transformed and not torch.compiler.is_compiling()


class Permute(torch.autograd.Function):
    """x[..., order] for a permutation. Its gradient is a gather too, instead of the scatter that indexing has."""

    @staticmethod
    def forward(x: Tensor, order: Tensor) -> Tensor:
        return x[..., order]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, *grads):
        (order,) = ctx.saved_tensors
        return Permute.apply(grads[0], order.argsort()), None
