"""Attention layers as found by the names and sizes of their submodules, and the conventions that those leave open."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from comrope.errors import ConfigurationError
from comrope.hosts._attention_forward import is_multihead

NORMS = (("q_norm", "k_norm"), ("norm_q", "norm_k"), ("q_layernorm", "k_layernorm"), ("query_norm", "key_norm"))
SEPARATE_PROJECTIONS = (
    ("q_proj", "k_proj"),
    ("query", "key"),
    ("to_q", "to_k"),
    ("q", "k"),
    ("q_lin", "k_lin"),
    ("wq", "wk"),
    ("query_proj", "key_proj"),
)
FUSED_PROJECTIONS = ("qkv", "qkv_proj", "Wqkv", "wqkv", "query_key_value", "c_attn", "to_qkv", "in_proj")
"""Names that models give to modules which make queries and keys. A name only makes a candidate; the proof decides (see
`_proof`)."""

HEAD_DIM_NAMES = ("head_dim", "attention_head_size", "attn_head_dim", "head_size", "dim_per_head")
NUM_HEADS_NAMES = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead")


@dataclass(frozen=True)
class QKModule:
    """A submodule of an attention layer that outputs queries ("q"), keys ("k"), or queries, keys and values ("qkv")."""

    name: str
    output: str
    feature_offset: int = 0
    """How many other features its output has before the queries, where it is "qkv"."""


@dataclass(frozen=True)
class AttentionLayer:
    """An attention layer, as described by the names and sizes of its submodules."""

    name: str
    """Dotted path in the model."""
    attention: nn.Module
    num_query_heads: int
    num_key_heads: int
    head_dim: int
    projections: tuple[QKModule, ...]
    """The modules whose weights `fold` changes."""
    norms: tuple[QKModule, ...] = ()
    """The norms of queries and keys behind the projections, if there are any."""
    rotate_at: str = "modules"
    """Where queries and keys are rotated: in the output of `rotated_modules` ("modules"), in the arguments of
    scaled_dot_product_attention ("sdpa"), or in a torch.nn.MultiheadAttention ("multihead")."""

    @property
    def rotated_modules(self) -> tuple[QKModule, ...]:
        """The last modules that output queries and keys."""
        return self.norms or self.projections

    @property
    def weight(self) -> Tensor:
        """A parameter with the device and dtype of the layer."""
        owner = (
            self.attention if self.rotate_at != "modules" else self.attention.get_submodule(self.projections[0].name)
        )
        return next(owner.parameters())


def find_attention_layers(module: nn.Module, prefix: str = "") -> list[AttentionLayer]:
    """Returns the attention layers in a module, in order. A layer is found by the names of its submodules."""
    found = []
    for name, attention in module.named_modules():
        layer = _attention_layer(".".join(filter(None, (prefix, name))), attention)
        if layer is not None:
            found.append(layer)
    return found


def matches_pattern(name: str, pattern: str) -> bool:
    """Returns whether a dotted name fits a pattern such as "blocks.*.attn", where a star stands for one part of the name."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _attention_layer(name: str, attention: nn.Module) -> AttentionLayer | None:
    if is_multihead(attention):
        heads, width = attention.num_heads, attention.head_dim  # pyright: ignore
        return AttentionLayer(name, attention, heads, heads, width, (QKModule("", "qkv"),), rotate_at="multihead")  # pyright: ignore
    children = {n: m for n, m in attention.named_children() if m is not None}
    pair = next((pair for pair in SEPARATE_PROJECTIONS if all(n in children for n in pair)), None)
    fused = next((n for n in FUSED_PROJECTIONS if n in children), None)
    if pair is not None:
        projections = tuple(QKModule(n, output) for n, output in zip(pair, "qk", strict=True))
    elif fused is not None:
        projections = (QKModule(fused, "qkv"),)
    else:
        return None
    found = [_num_outputs(children[part.name]) for part in projections]
    widths = [width for width in found if width is not None]
    if len(widths) < len(found):
        return None
    config = getattr(attention, "config", None)
    heads = _first_attribute(attention, config, NUM_HEADS_NAMES)
    head_dim = _first_attribute(attention, config, HEAD_DIM_NAMES)
    if head_dim is None and heads is not None:
        dim = widths[0] if pair is not None else _num_inputs(children[projections[0].name])
        head_dim = None if dim is None or dim % heads else dim // heads
    if head_dim is None or any(w % head_dim for w in widths):
        return None
    if pair is not None:
        num_query_heads, num_key_heads = (w // head_dim for w in widths)
    else:
        total = widths[0] // head_dim
        num_query_heads = heads or total // 3
        num_key_heads = min((total - num_query_heads) // 2, num_query_heads)
        num_others = total - num_query_heads - 2 * num_key_heads
        if num_key_heads < 1 or num_query_heads % num_key_heads:
            return None
        projections = (QKModule(fused, "qkv", num_others * head_dim),)  # pyright: ignore[reportArgumentType]
    norms = next((pair for pair in NORMS if all(n in children for n in pair)), ())
    return AttentionLayer(
        name,
        attention,
        num_query_heads,
        num_key_heads,
        head_dim,
        projections,
        tuple(QKModule(n, output) for n, output in zip(norms, "qk", strict=False)),
    )


def _first_attribute(attention: nn.Module, config: Any, names: Sequence[str]) -> int | None:
    for owner in (attention, config):
        for name in names:
            value = getattr(owner, name, None)
            if type(value) is int and value > 0:
                return value
    return None


def _num_outputs(module: nn.Module) -> int | None:
    """Returns the output features of a projection: an `nn.Linear`, a wrapper of one, or the Conv1D of transformers."""
    for name in ("out_features", "nf"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    weight = getattr(module, "weight", None)
    return len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _num_inputs(module: nn.Module) -> int | None:
    value = getattr(module, "in_features", getattr(module, "nx", None))
    if value is None and isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim == 2:
        value = weight.shape[0] if hasattr(module, "nf") else weight.shape[1]
    return value


@dataclass(frozen=True)
class Convention:
    """What the names and sizes of an attention layer leave open: its feature layout, and its own RoPE. Found by the proof."""

    num_groups: int = 1
    """The number of groups in a fused projection, each with queries, keys and values. 1: all queries come first."""
    heads_first: bool = True
    """Whether norms get (B, H, L, D), or (B, L, H, D)."""
    frequencies: Tensor | None = None
    """ω (N, H or 1, D/2) of the layer's own RoPE, in radians per unit of its positions; None without a RoPE."""
    order: Tensor | None = None
    """(D,), the feature order in which the two coordinates of each plane are neighbours; None if they already are."""
    rope_argument: str | int | None = None
    """The argument by which the layer gets the table of its own RoPE: a keyword, or an index."""
    disable_rope: str = "none"
    """How the layer's own RoPE is disabled. "none": its table is replaced by None; "origin": by the table of position 0,
    which may scale; "identity": by a table of ones and zeros. Otherwise the name of a method of the layer, which is
    replaced."""


@dataclass(frozen=True)
class LayerCall:
    """How an attention layer was called in the example forward pass."""

    layer: AttentionLayer
    args: tuple
    kwargs: Mapping[str, Any]
    outputs: Mapping[str, Tensor]
    """The outputs of its submodules, by name."""
    positions: Tensor
    """The positions of its tokens, (L, N) or (B, L, N)."""


def projection_rows(linear: nn.Module) -> list[Tensor]:
    """Returns views of a projection's weight (features, C) and bias (features,), through which `fold` changes them.

    Raises:
        ConfigurationError: the projection is not a plain nn.Linear, nor the Conv1D of transformers.
    """
    if isinstance(linear, nn.MultiheadAttention):
        return [t.detach() for t in (linear.in_proj_weight, linear.in_proj_bias) if t is not None]
    weight, bias = getattr(linear, "weight", None), getattr(linear, "bias", None)
    tensors = [t.detach() for t in (weight, bias) if isinstance(t, Tensor) and t.is_floating_point()]
    if isinstance(linear, nn.Linear) and tensors and tensors[0].shape == (linear.out_features, linear.in_features):
        return tensors
    if type(linear).__name__ == "Conv1D" and type(linear).__module__.startswith("transformers."):
        return [tensors[0].T, tensors[1]]
    raise ConfigurationError(
        f"a projection is a {type(linear).__name__}, not a plain nn.Linear: merge or remove what wraps it first (peft: "
        "merge_and_unload)."
    )
