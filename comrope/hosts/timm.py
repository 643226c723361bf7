"""timm: VisionTransformer and its flavours, and Eva with or without a RoPE of its own."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import maybe_add_mask, resolve_self_attn_mask
from timm.layers.attention import Attention, AttentionRope
from timm.layers.patch_dropout import PatchDropout, PatchDropoutWithIndices, patch_dropout_forward
from timm.layers.pos_embed_sincos import (
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
    RotaryEmbeddingMRope,
)
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from comrope.encodings import Encoding
from comrope.errors import ConfigurationError
from comrope.hosts._surgery import Canvas, Host, Rotary, Site, Swap, Tokens, half_layout, rows


class _RotaryAttention(Rotary):
    """The forward of timm's attention classes, with queries and keys turned after their norms."""

    def forward(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        q, k, v = self._heads(x)
        q, k = self.turn(self.q_norm(q), self.k_norm(k))
        x = self._attend(q.type_as(v), k.type_as(v), v, attn_mask, is_causal)
        x = self.norm(x.transpose(1, 2).flatten(2))
        return self.proj_drop(self.proj(x if gate is None else x * gate))

    def _heads(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        """Queries (B, H·g, L, D), keys and values (B, H, L, D)."""
        if self.qkv is not None:
            return self._fused(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        return tuple(p(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in projections)

    def _fused(self: Any, x: Tensor) -> Tensor:
        return self.qkv(x)

    def _attend(self: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        if (group := q.shape[1] // k.shape[1]) > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
        scores = (q * self.scale) @ k.mT
        scores = maybe_add_mask(scores, resolve_self_attn_mask(q.shape[2], scores, mask, is_causal))
        return self.attn_drop(scores.softmax(dim=-1)) @ v

    def projections(self: Any) -> list[Tensor]:
        if self.qkv is None:
            return [*rows(self.q_proj), *rows(self.k_proj)]
        size = self.num_heads * self.head_dim
        return [*rows(self.qkv, 0, size), *rows(self.qkv, size, 2 * size)]

    def norms(self: Any) -> list[nn.Module]:
        return [self.q_norm, self.k_norm]


class RotaryAttention(_RotaryAttention, Attention):
    """`timm.layers.Attention` with an encoding."""


class RotaryAttentionRope(_RotaryAttention, AttentionRope):
    """`timm.layers.AttentionRope` with an encoding in place of the table it is called with."""

    def forward(self, x, rope=None, attn_mask=None, is_causal=False):
        return super().forward(x, attn_mask, is_causal)


class RotaryEvaAttention(_RotaryAttention, EvaAttention):
    """timm's `EvaAttention` with an encoding in place of the table it is called with."""

    def forward(self, x, rope=None, attn_mask=None, is_causal=False):
        return super().forward(x, attn_mask, is_causal)

    def _fused(self: Any, x: Tensor) -> Tensor:
        if self.q_bias is None:
            return self.qkv(x)
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        return self.qkv(x) + bias if self.qkv_bias_separate else F.linear(x, self.qkv.weight, bias)

    def projections(self) -> list[Tensor]:
        # The biases are parameters of their own here, and that of the keys is zero always.
        return super().projections() + ([] if self.q_bias is None else [self.q_bias.detach()])


class _RotaryTrunk(nn.Module):
    """What tells the attention layers where the tokens are, once they are there."""

    tokens: Tokens
    canvas: Canvas

    def _pos_embed(self: Any, x: Tensor) -> Any:
        shape = x.shape[1:3] if x.ndim == 4 else self.patch_embed.grid_size  # channels come last
        self.tokens.tell(self.canvas.positions(shape, self.num_prefix_tokens, x, training=self.training))
        embedded = super()._pos_embed(x)  # pyright: ignore
        self.tokens.pin(embedded[0] if isinstance(embedded, tuple) else embedded)
        return embedded

    def no_weight_decay(self) -> set[str]:
        """timm's own, and the angles."""
        owners = [name for name, module in self.named_modules() if isinstance(module, Encoding)]
        angles = {name for name, _ in self.named_parameters() if name.startswith(tuple(f"{o}." for o in owners))}
        return super().no_weight_decay() | angles  # pyright: ignore


class RotaryVisionTransformer(_RotaryTrunk, VisionTransformer):
    """timm's `VisionTransformer` with encodings in its attention."""


class RotaryVisionTransformerDistilled(_RotaryTrunk, VisionTransformerDistilled):
    """timm's `VisionTransformerDistilled` with encodings in its attention."""


class RotaryEva(_RotaryTrunk, Eva):
    """timm's `Eva` with encodings in its attention."""


class RotaryPatchDropout(PatchDropout):
    """timm's `PatchDropout`, telling which patches stay."""

    tokens: Tokens

    def forward(self, x: Tensor) -> Tensor:
        x, kept = patch_dropout_forward(x, self.prob, self.num_prefix_tokens, self.ordered, self.training)
        if kept is not None:
            self.tokens.keep(kept, self.num_prefix_tokens)
        return self.tokens.pin(x)


class RotaryPatchDropoutWithIndices(PatchDropoutWithIndices):
    """timm's `PatchDropoutWithIndices`, telling which patches stay."""

    tokens: Tokens

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x, kept = super().forward(x)
        if kept is not None:
            self.tokens.keep(kept, self.num_prefix_tokens)
        return x, kept


ATTENTIONS: dict[type, type[Rotary]] = {
    Attention: RotaryAttention,
    AttentionRope: RotaryAttentionRope,
    EvaAttention: RotaryEvaAttention,
}
PATCH_DROPOUTS: dict[type, type[nn.Module]] = {
    PatchDropout: RotaryPatchDropout,
    PatchDropoutWithIndices: RotaryPatchDropoutWithIndices,
}


class Timm(Host):
    """Models of timm whose attention is `Attention`, `AttentionRope` or `EvaAttention`."""

    kinds: ClassVar = {
        VisionTransformer: RotaryVisionTransformer,
        VisionTransformerDistilled: RotaryVisionTransformerDistilled,
        Eva: RotaryEva,
    }

    def sites(self, name: str, trunk: nn.Module) -> list[Site]:
        found = _attentions(trunk)
        if not found:
            modules = trunk.blocks.named_modules()  # pyright: ignore
            attention = next((type(m).__name__ for n, m in modules if n.endswith("attn")), "of a kind of its own")
            raise ConfigurationError(
                f"{type(trunk).__name__}: its attention is {attention}; comrope knows "
                f"{', '.join(kind.__name__ for kind in ATTENTIONS)}."
            )
        rope = getattr(trunk, "rope", None)
        prefix = f"{name}." if name else ""
        return [_site(f"{prefix}{n}", attention, rope, layer) for layer, (n, attention) in enumerate(found)]

    def surroundings(self, trunk: Any, tokens: Tokens, *, keep_ape: bool, prefix: str, whole: bool) -> list[Swap]:
        rope = getattr(trunk, "rope", None)
        canvas = Canvas(prefix=prefix) if rope is None else rope_canvas(rope)
        sets: dict[str, Any] = {"tokens": tokens, "canvas": canvas}
        if rope is not None and whole:
            sets["rope"] = None
        if not keep_ape and trunk.pos_embed is not None:
            if isinstance(trunk, VisionTransformerDistilled):
                raise ConfigurationError(
                    "VisionTransformerDistilled cannot do without its APE: leave out keep_ape=False."
                )
            sets["pos_embed"] = None
        swaps = [Swap(trunk, self.kinds[type(trunk)], sets)]
        if type(trunk.patch_drop) in PATCH_DROPOUTS:
            swaps.append(Swap(trunk.patch_drop, PATCH_DROPOUTS[type(trunk.patch_drop)], {"tokens": tokens}))
        return swaps

    def take_back(self, trunk: Any, frequencies: Mapping[nn.Module, Tensor]) -> bool:
        rope = getattr(trunk, "rope", None)
        if type(rope) is not RotaryEmbeddingMixed:
            return False
        for layer, (_, attention) in enumerate(_attentions(trunk)):
            if attention in frequencies:
                rope.freqs.data[:, layer] = _rows_first(rope, frequencies[attention])
        return True

    def settle(self, trunk: Any) -> None:
        rope: Any = getattr(trunk, "rope", None)
        if hasattr(rope, "update_feat_shape"):  # the image size may have changed while the rope was set aside
            rope.update_feat_shape(trunk.patch_embed.grid_size)


HOST = Timm()


def _attentions(trunk: Any) -> list[tuple[str, nn.Module]]:
    """The attention layers of a trunk that comrope knows, by name, in order."""
    return [(f"blocks.{n}", m) for n, m in trunk.blocks.named_modules() if type(m) in ATTENTIONS]


def _site(name: str, attention: Any, rope: Any, layer: int) -> Site:
    weight = attention.q_proj.weight if attention.qkv is None else attention.qkv.weight
    half = rope is not None and attention.rotate_half
    return Site(
        name=name,
        attention=attention,
        into=ATTENTIONS[type(attention)],
        num_heads=getattr(attention, "num_kv_heads", attention.num_heads),
        head_dim=attention.head_dim,
        num_axes=2,
        query_weight=weight,
        frequencies=None if rope is None else rope_frequencies(rope, layer),
        order=half_layout(attention.head_dim) if half else None,
    )


def rope_canvas(rope: Any) -> Canvas:
    """The positions that a rope module of timm multiplies its frequencies with; prefix tokens, which it leaves, at 0."""
    augmentation: dict[str, Any] = {
        name: getattr(rope, f"{name}_coords", None) for name in ("shift", "jitter", "rescale")
    }
    if isinstance(rope, (RotaryEmbeddingDinoV3, RotaryEmbeddingCat)):
        kind = "centered" if isinstance(rope, RotaryEmbeddingDinoV3) else rope.grid_type
        unit = {"index": "index", "centered": "centred", "pixel": "spread"}[kind]
        divisor = "own" if rope.normalize_coords == "separate" else rope.normalize_coords
        reference = getattr(rope, "ref_feat_shape", None)
        return Canvas(unit, "origin", rope.grid_offset, reference, divisor, **augmentation)
    return Canvas("index", "origin", **augmentation)


def rope_frequencies(rope: Any, layer: int) -> Tensor:
    """ω (2, H or 1, D/2) of a rope module of timm in one layer, axes (row, column), radians per unit of its canvas."""
    kind = type(rope)  # exactly: a subclass may lay its planes out in another way
    if kind is RotaryEmbeddingMixed:
        return _rows_first(rope, rope.freqs.detach()[:, layer])
    if kind is RotaryEmbeddingMRope:
        return torch.stack([rope.inv_freq * (rope.axis == axis) for axis in (1, 2)]).unsqueeze(1)
    if kind not in (RotaryEmbeddingDinoV3, RotaryEmbeddingCat):
        raise ConfigurationError(f"{kind.__name__} is no RoPE of timm that comrope knows.")
    bands = 2 * math.pi / rope.periods.double() if kind is RotaryEmbeddingDinoV3 else rope.bands
    still = torch.zeros_like(bands)
    axial = torch.stack((torch.cat((bands, still)), torch.cat((still, bands))))  # (2, D/2)
    return _rows_first(rope, axial.unsqueeze(1))


def _rows_first(rope: Any, frequencies: Tensor) -> Tensor:
    return frequencies.flip(0) if rope.grid_indexing == "xy" else frequencies
