"""One attention layer of a model: which of its parts make queries and keys, and what their names leave open."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from comrope.errors import ConfigurationError
from comrope.hosts._scores import is_multihead

NORMS = (("q_norm", "k_norm"), ("norm_q", "norm_k"), ("q_layernorm", "k_layernorm"), ("query_norm", "key_norm"))
SEPARATE = (
    ("q_proj", "k_proj"),
    ("query", "key"),
    ("to_q", "to_k"),
    ("q", "k"),
    ("q_lin", "k_lin"),
    ("wq", "wk"),
    ("query_proj", "key_proj"),
)
FUSED = ("qkv", "qkv_proj", "Wqkv", "wqkv", "query_key_value", "c_attn", "to_qkv", "in_proj")
"""What models call the modules that make queries and keys. The names only propose: a proof decides (comrope.hosts._proof)."""

HEAD_DIM = ("head_dim", "attention_head_size", "attn_head_dim", "head_size", "dim_per_head")
NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead")
NUM_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")

TABLES = ("position_embeddings", "rope", "image_rotary_emb", "rotary_emb", "rotary_pos_emb", "freqs_cis", "freqs_cos")
"""What attention layers call the argument that brings the table of the model's own RoPE."""


@dataclass(frozen=True)
class Part:
    """A submodule of an attention layer that puts out queries ("q"), keys ("k"), or both and values ("qkv")."""

    name: str
    holds: str
    skip: int = 0
    """How many features of others come before them."""


@dataclass(frozen=True)
class Layer:
    """An attention layer, as far as its names and sizes tell."""

    name: str
    """Dotted path in the model."""
    attention: nn.Module
    num_query_heads: int
    num_heads: int
    """Key heads."""
    head_dim: int
    projections: tuple[Part, ...]
    """Whose weights `fold` turns."""
    norms: tuple[Part, ...] = ()
    """What queries and keys go through after that, by head; empty where there are none."""
    way: str = "parts"
    """Where they are turned: in what its "parts" put out, in the "scores", or in a "multihead" of torch."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Whose output is turned: what comes last."""
        return self.norms or self.projections

    @property
    def weight(self) -> Tensor:
        """Says where the encoding lives and whether in float64."""
        owner = self.attention if self.way != "parts" else self.attention.get_submodule(self.projections[0].name)
        return next(owner.parameters())


def find_layers(module: nn.Module, prefix: str = "") -> list[Layer]:
    """The attention layers in a module, in order, by what their parts are called."""
    found = []
    for name, attention in module.named_modules():
        layer = _layer(".".join(filter(None, (prefix, name))), attention)
        if layer is not None:
            found.append(layer)
    return found


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name fits a pattern such as "blocks.*.attn", in which a star stands for one part of a name."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _layer(name: str, attention: nn.Module) -> Layer | None:
    if is_multihead(attention):
        heads, width = attention.num_heads, attention.head_dim  # pyright: ignore
        return Layer(name, attention, heads, heads, width, (Part("", "qkv"),), way="multihead")  # pyright: ignore
    children = {n: m for n, m in attention.named_children() if m is not None}
    pair = next((pair for pair in SEPARATE if all(n in children for n in pair)), None)
    fused = next((n for n in FUSED if n in children), None)
    if pair is not None:
        projections = tuple(Part(n, holds) for n, holds in zip(pair, "qk", strict=True))
    elif fused is not None:
        projections = (Part(fused, "qkv"),)
    else:
        return None
    found = [_width(children[part.name]) for part in projections]
    widths = [width for width in found if width is not None]
    if len(widths) < len(found):
        return None
    config = getattr(attention, "config", None)
    heads = _first(attention, config, NUM_HEADS)
    head_dim = _first(attention, config, HEAD_DIM)
    if head_dim is None and heads is not None:
        dim = widths[0] if pair is not None else _width_in(children[projections[0].name])
        head_dim = None if dim is None or dim % heads else dim // heads
    if head_dim is None or any(w % head_dim for w in widths):
        return None
    if pair is not None:
        num_query_heads, num_heads = (w // head_dim for w in widths)
    else:
        total = widths[0] // head_dim
        num_query_heads = heads or total // 3
        num_heads = min((total - num_query_heads) // 2, num_query_heads)
        skip = total - num_query_heads - 2 * num_heads
        if num_heads < 1 or num_query_heads % num_heads:
            return None
        projections = (Part(fused, "qkv", skip * head_dim),)  # pyright: ignore[reportArgumentType]
    norms = next((pair for pair in NORMS if all(n in children for n in pair)), ())
    return Layer(
        name,
        attention,
        num_query_heads,
        num_heads,
        head_dim,
        projections,
        tuple(Part(n, holds) for n, holds in zip(norms, "qk", strict=False)),
    )


def _first(attention: nn.Module, config: Any, names: Sequence[str]) -> int | None:
    for owner in (attention, config):
        for name in names:
            value = getattr(owner, name, None)
            if type(value) is int and value > 0:
                return value
    return None


def _width(module: nn.Module) -> int | None:
    """How many features a projection puts out: `nn.Linear`, what wraps one, or the Conv1D of transformers."""
    for name in ("out_features", "nf"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    weight = getattr(module, "weight", None)
    return len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _width_in(module: nn.Module) -> int | None:
    value = getattr(module, "in_features", getattr(module, "nx", None))
    if value is None and isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim == 2:
        value = weight.shape[0] if hasattr(module, "nf") else weight.shape[1]
    return value


@dataclass(frozen=True)
class Reading:
    """What the names of a layer do not tell, and a proof finds out."""

    groups: int = 1
    """Of fused projections: into how many groups, each of queries, keys and values, the features fall. 1: all queries first."""
    heads_first: bool = True
    """Whether norms of heads see (B, H, L, D), or (B, L, H, D)."""
    frequencies: Tensor | None = None
    """ω (N, H or 1, D/2) of the RoPE that the layer has, radians per unit of its positions; None where it has none."""
    order: Tensor | None = None
    """(D,), which features to take so that the two coordinates of each plane are neighbours; None where they are."""
    table: str | int | None = None
    """The argument that brings the table of that RoPE, by name or by place."""
    still: str = "none"
    """What stands in its place, so that it turns nothing: "none"; the table of the "origin", which may scale; or "identity",
    where that does not. Where the layer works it out itself, the method that does."""


def half_layout(head_dim: int, turned: int | None = None) -> Tensor:
    """The order that makes neighbours of features p and p + r/2, which a "half" layout turns together: (D,).

    r is how many features the RoPE turns, all D unless given; the rest keep their places.
    """
    turned = head_dim if turned is None else turned
    return torch.cat((torch.arange(turned).view(2, -1).T.flatten(), torch.arange(turned, head_dim)))


def rows(linear: nn.Module) -> list[Tensor]:
    """Views of a projection's weight (features, C) and bias (features,), as `fold` changes them.

    ConfigurationError where they are not plain tensors of `nn.Linear` or of the Conv1D of transformers.
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
