"""transformers: vision towers of CLIP, SigLIP, ViT, DINOv2 and DINOv3, and language models of Llama's kind.

Only attention layers and the patch convolution change their class, never a `PreTrainedModel`: transformers looks up what it
records, saves and wraps by the classes of those.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip import modeling_clip as clip
from transformers.models.dinov2 import modeling_dinov2 as dinov2
from transformers.models.dinov2_with_registers import modeling_dinov2_with_registers as registers
from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3
from transformers.models.siglip import modeling_siglip as siglip
from transformers.models.vit import modeling_vit as vit

from comrope.errors import ConfigurationError, InputError
from comrope.hosts._surgery import Canvas, Host, Rotary, Site, Swap, Tokens, half_layout, rows


class _Names(NamedTuple):
    """What an attention class calls its parts."""

    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    out: str | None = "o_proj"
    head_dim: str = "head_dim"
    scale: str = "scaling"
    dropout: str = "attention_dropout"


class _RotaryAttention(Rotary):
    """What the attention classes of transformers do, with a place to turn queries and keys."""

    config: Any
    names = _Names()
    eager: Callable[..., Any]
    """The host's attention in plain arithmetic: what "eager" stands for."""
    temperature = 1.0
    """Of the scores, by a host whose RoPE scales what it turns: its `attention_scaling` squared."""

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H·g, L, D), keys and values (B, H, L, D), before any norm."""
        names = self.names
        head_dim = getattr(self, names.head_dim)
        q, k, v = (
            getattr(self, name)(x).unflatten(-1, (-1, head_dim)).transpose(1, 2)
            for name in (names.query, names.key, names.value)
        )
        return q, k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options) -> tuple[Tensor, Tensor | None]:
        names = self.names
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, self.eager)
        scaling = getattr(self, names.scale) * self.temperature
        dropout = getattr(self, names.dropout) if self.training else 0.0
        attended, weights = attend(self, q, k, v, mask, scaling=scaling, dropout=dropout, **options)
        attended = attended.flatten(2)  # (B, L, H·D)
        return (attended if names.out is None else getattr(self, names.out)(attended)), weights

    def projections(self) -> list[Tensor]:
        return [*rows(getattr(self, self.names.query)), *rows(getattr(self, self.names.key))]

    def norms(self) -> list[nn.Module]:
        return []


class _RotaryVision(_RotaryAttention):
    """Positions are asked of `tokens`; a table of the host's own RoPE is ignored."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, position_embeddings: Any = None, **options
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = self._heads(hidden_states)
        q, k = self.turn(q, k)
        return self._attend(q, k, v, attention_mask, **options)


class _RotaryText(_RotaryAttention):
    """Positions are the `position_ids` that each layer is called with; a table of the host's own RoPE is ignored."""

    sliding_window: int | None = None

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        position_ids: Tensor | None = None,
        **options,
    ) -> tuple[Tensor, Tensor | None]:
        if position_ids is None:
            raise InputError(f"{type(self).__name__} was called without position_ids: call the whole model.")
        q, k, v = self._heads(hidden_states)
        q, k = self.turn(*self._normed(q, k), _positions(position_ids))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        options |= {"position_ids": position_ids, "sliding_window": self.sliding_window}
        return self._attend(q, k, v, attention_mask, **options)

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k


def _positions(position_ids: Tensor) -> Tensor:
    """(1, L) as (L, 1), shared by the batch, and (B, L) as (B, L, 1)."""
    return position_ids.squeeze(0).unsqueeze(-1) if position_ids.shape[0] == 1 else position_ids.unsqueeze(-1)


class RotaryCLIPAttention(_RotaryVision, clip.CLIPAttention):
    """`CLIPAttention` with an encoding."""

    names = _Names(out="out_proj", scale="scale", dropout="dropout")
    eager = staticmethod(clip.eager_attention_forward)


class RotarySiglipAttention(_RotaryVision, siglip.SiglipAttention):
    """`SiglipAttention` with an encoding."""

    names = _Names(out="out_proj", scale="scale", dropout="dropout")
    eager = staticmethod(siglip.eager_attention_forward)


class RotaryViTAttention(_RotaryVision, vit.ViTAttention):
    """`ViTAttention` with an encoding."""

    eager = staticmethod(vit.eager_attention_forward)


_DINOV2_NAMES = _Names("query", "key", "value", out=None, head_dim="attention_head_size", dropout="dropout_prob")


class RotaryDinov2SelfAttention(_RotaryVision, dinov2.Dinov2SelfAttention):
    """`Dinov2SelfAttention` with an encoding."""

    names = _DINOV2_NAMES
    eager = staticmethod(dinov2.eager_attention_forward)


class RotaryDinov2WithRegistersSelfAttention(_RotaryVision, registers.Dinov2WithRegistersSelfAttention):
    """`Dinov2WithRegistersSelfAttention` with an encoding."""

    names = _DINOV2_NAMES
    eager = staticmethod(registers.eager_attention_forward)


class RotaryDINOv3ViTAttention(_RotaryVision, dinov3.DINOv3ViTAttention):
    """`DINOv3ViTAttention` with an encoding in place of the table it is called with."""

    names = _Names(dropout="dropout")
    eager = staticmethod(dinov3.eager_attention_forward)


class RotaryLlamaAttention(_RotaryText, llama.LlamaAttention):
    """`LlamaAttention` with an encoding in place of the table it is called with."""

    eager = staticmethod(llama.eager_attention_forward)


class RotaryMistralAttention(_RotaryText, mistral.MistralAttention):
    """`MistralAttention` with an encoding in place of the table it is called with."""

    eager = staticmethod(mistral.eager_attention_forward)

    @property
    def sliding_window(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(self.config, "sliding_window", None)


class RotaryQwen2Attention(_RotaryText, qwen2.Qwen2Attention):
    """`Qwen2Attention` with an encoding in place of the table it is called with."""

    eager = staticmethod(qwen2.eager_attention_forward)


class RotaryQwen3Attention(_RotaryText, qwen3.Qwen3Attention):
    """`Qwen3Attention` with an encoding, behind its norms, in place of the table it is called with."""

    eager = staticmethod(qwen3.eager_attention_forward)

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)

    def norms(self) -> list[nn.Module]:
        return [self.q_norm, self.k_norm]


class RotaryConv2d(nn.Conv2d):
    """The convolution that makes patches of an image: it alone sees the real grid, and tells it."""

    tokens: Tokens
    canvas: Canvas
    num_prefix_tokens: int

    def forward(self, x: Tensor) -> Tensor:
        patches = super().forward(x)  # (B, C, rows, columns)
        self.tokens.tell(self._positions(patches))
        return self.tokens.pin(patches)

    def _positions(self, patches: Tensor) -> Tensor:
        return self.canvas.positions(patches.shape[-2:], self.num_prefix_tokens, patches)


class RotaryDINOv3Conv2d(RotaryConv2d):
    """The same for DINOv3, which in training shifts, stretches and rescales its coordinates at random, all alike."""

    config: Any

    def _positions(self, patches: Tensor) -> Tensor:
        positions = super()._positions(patches)
        if not self.training:
            return positions
        prefix, coordinates = positions[: self.num_prefix_tokens], positions[self.num_prefix_tokens :]
        moved = dinov3.augment_patches_center_coordinates(
            coordinates,
            shift=self.config.pos_embed_shift,
            jitter=self.config.pos_embed_jitter,
            rescale=self.config.pos_embed_rescale,
        )
        return torch.cat((prefix, moved))


class RotaryDINOv3ViTRopePositionEmbedding(dinov3.DINOv3ViTRopePositionEmbedding):
    """DINOv3's RoPE, for layers that keep it, at the coordinates that the others have: it draws none of its own."""

    config: Any
    tokens: Tokens
    num_prefix_tokens: int

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        size = self.config.patch_size
        num_patches = (pixel_values.shape[-2] // size) * (pixel_values.shape[-1] // size)
        positions = self.tokens.ask(self.num_prefix_tokens + num_patches)[self.num_prefix_tokens :]
        phases = 2 * math.pi * positions.unsqueeze(-1) * self.inv_freq  # (L, 2, D/4)
        phases = phases.flatten(1).repeat(1, 2)
        return phases.cos().to(pixel_values.dtype), phases.sin().to(pixel_values.dtype)


ATTENTIONS: dict[type, type[_RotaryAttention]] = {
    clip.CLIPAttention: RotaryCLIPAttention,
    siglip.SiglipAttention: RotarySiglipAttention,
    vit.ViTAttention: RotaryViTAttention,
    dinov2.Dinov2SelfAttention: RotaryDinov2SelfAttention,
    registers.Dinov2WithRegistersSelfAttention: RotaryDinov2WithRegistersSelfAttention,
    dinov3.DINOv3ViTAttention: RotaryDINOv3ViTAttention,
    llama.LlamaAttention: RotaryLlamaAttention,
    mistral.MistralAttention: RotaryMistralAttention,
    qwen2.Qwen2Attention: RotaryQwen2Attention,
    qwen3.Qwen3Attention: RotaryQwen3Attention,
}


@dataclass(frozen=True)
class _Tower:
    """Where a vision transformer has what matters here, as dotted paths."""

    patches: str
    ape: str | None = None
    class_token: bool = True


_PROJECTED = _Tower("embeddings.patch_embeddings.projection", "embeddings.position_embeddings")
_DINOV3 = _Tower("embeddings.patch_embeddings")
TOWERS: dict[type, _Tower] = {
    clip.CLIPVisionModel: _Tower("embeddings.patch_embedding", "embeddings.position_embedding.weight"),
    siglip.SiglipVisionModel: _Tower("embeddings.patch_embedding", "embeddings.position_embedding.weight", False),
    vit.ViTModel: _PROJECTED,
    dinov2.Dinov2Model: _PROJECTED,
    dinov2.Dinov2Backbone: _PROJECTED,
    registers.Dinov2WithRegistersModel: _PROJECTED,
    registers.Dinov2WithRegistersBackbone: _PROJECTED,
    dinov3.DINOv3ViTModel: _DINOV3,
    dinov3.DINOv3ViTBackbone: _DINOV3,
}
TEXT = (llama.LlamaModel, mistral.MistralModel, qwen2.Qwen2Model, qwen3.Qwen3Model)


class Transformers(Host):
    """Vision towers and language models of transformers, wherever they are in a model."""

    kinds = MappingProxyType({kind: kind for kind in (*TOWERS, *TEXT)})

    def sites(self, name: str, trunk: Any) -> list[Site]:
        text = isinstance(trunk, TEXT)
        frequencies = _text_frequencies(trunk.rotary_emb) if text else _vision_frequencies(trunk)
        prefix = f"{name}." if name else ""
        found = [
            _site(f"{prefix}{n}", m, 1 if text else 2, frequencies)
            for n, m in trunk.named_modules()
            if type(m) in ATTENTIONS
        ]
        if not found:
            raise ConfigurationError(f"{type(trunk).__name__}: its attention layers are none of transformers' own.")
        return found

    def surroundings(self, trunk: Any, tokens: Tokens, *, keep_ape: bool, prefix: str, whole: bool) -> list[Swap]:
        if not isinstance(trunk, TEXT):
            return _vision_surroundings(trunk, TOWERS[type(trunk)], tokens, keep_ape, prefix)
        temperature = trunk.rotary_emb.attention_scaling**2
        attentions = [m for m in trunk.modules() if type(m) in ATTENTIONS]
        return [Swap(m, type(m), {"temperature": temperature}) for m in attentions if temperature != 1]


HOST = Transformers()


def _site(name: str, attention: Any, num_axes: int, frequencies: Tensor | None) -> Site:
    into = ATTENTIONS[type(attention)]
    head_dim = getattr(attention, into.names.head_dim)
    if frequencies is not None and 2 * frequencies.shape[-1] != head_dim:
        raise ConfigurationError(
            f"{name}: its RoPE turns {2 * frequencies.shape[-1]} of {head_dim} features, and an encoding would turn all: "
            "comrope does not attach to a partial RoPE."
        )
    return Site(
        name=name,
        attention=attention,
        into=into,
        num_heads=getattr(attention, into.names.key).out_features // head_dim,
        head_dim=head_dim,
        num_axes=num_axes,
        query_weight=getattr(attention, into.names.query).weight,
        frequencies=frequencies,
        order=None if frequencies is None else half_layout(head_dim),
    )


def _text_frequencies(rope: Any) -> Tensor:
    """ω (1, 1, D/2) of a language model, radians per token; scaled ones, as of Llama 3 and YaRN, included."""
    if "dynamic" in rope.rope_type or rope.rope_type == "longrope":
        raise ConfigurationError(
            f"rope_type={rope.rope_type!r} changes its frequencies with the length of the text, and the learned frequencies of "
            "an encoding are the same for all lengths: set another rope_type in the configuration (default, linear, llama3, "
            "yarn)."
        )
    return rope.inv_freq.view(1, 1, -1)


def _vision_frequencies(trunk: Any) -> Tensor | None:
    """ω (2, 1, D/2) of DINOv3, radians per unit of its coordinates in [−1, 1]: rows first, then columns. None for others."""
    if TOWERS[type(trunk)] is not _DINOV3:
        return None
    bands = 2 * math.pi * trunk.rope_embeddings.inv_freq.double()  # (D/4,)
    return torch.block_diag(bands, bands).unsqueeze(1)


def _vision_surroundings(trunk: Any, tower: _Tower, tokens: Tokens, keep_ape: bool, prefix: str) -> list[Swap]:
    conv = attrgetter(tower.patches)(trunk)
    count = tower.class_token + getattr(trunk.config, "num_register_tokens", 0)
    sets: dict[str, Any] = {"tokens": tokens, "num_prefix_tokens": count}
    if tower is _DINOV3:
        telling = sets | {"canvas": Canvas("centred", "origin"), "config": trunk.config}
        return [
            Swap(conv, RotaryDINOv3Conv2d, telling),
            Swap(trunk.rope_embeddings, RotaryDINOv3ViTRopePositionEmbedding, sets),
        ]
    swaps = [Swap(conv, RotaryConv2d, sets | {"canvas": Canvas(prefix=prefix)})]
    if not keep_ape and tower.ape is not None:
        path, _, attribute = tower.ape.rpartition(".")
        owner = attrgetter(path)(trunk)
        # The embeddings add it whatever it is: zeros are what they can do without.
        zeros = nn.Parameter(torch.zeros_like(getattr(owner, attribute)), requires_grad=False)
        swaps.append(Swap(owner, type(owner), {attribute: zeros}))
    return swaps
