"""Exports a trained model to plain transformers, as RoPE with different frequencies in each head.

An exported model needs the classes `HeadwiseAttention` and `HeadwiseLlamaForCausalLM`, and nothing else of comrope.
They import torch and transformers only.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, eager_attention_forward, rotate_half

import comrope


class HeadwiseAttention(LlamaAttention):
    """`LlamaAttention` that rotates each head by its own frequencies `inv_freq`, (key heads, D/2), in radians per token.

    `inv_freq` stays float64 when the model is cast to another dtype, since far positions multiply its rounding errors.
    """

    inv_freq: Tensor

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        self.register_buffer("inv_freq", torch.zeros(config.num_key_value_heads, self.head_dim // 2).double())

    def _apply(self, fn, recurse=True):
        def precise(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if tensor is self.inv_freq and moved.dtype != torch.float64 else moved

        return super()._apply(precise, recurse)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states,
        position_embeddings=None,
        attention_mask=None,
        past_key_values=None,
        *,
        position_ids,
        **options,
    ):
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in projections)
        phases = position_ids[:, None, :, None].double() * self.inv_freq[:, None]  # (B, H, L, D/2)
        q, k = _rotated(q, phases.repeat_interleave(self.num_key_value_groups, 1)), _rotated(k, phases)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        config: Any = self.config
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        found, weights = attend(self, q, k, v, attention_mask, scaling=self.scaling, dropout=dropout, **options)
        return self.o_proj(found.flatten(2)), weights


class HeadwiseLlamaForCausalLM(LlamaForCausalLM):
    """`LlamaForCausalLM` with `HeadwiseAttention`; transformers' saving, loading and generation work as usual."""

    def __init__(self, config):
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = HeadwiseAttention(config, index)
        self.post_init()


def _rotated(x: Tensor, phases: Tensor) -> Tensor:
    """Returns x (B, H, L, D) rotated by phases (B, H, L, D/2), with transformers' layout of planes."""
    cos, sin = (table.repeat(1, 1, 1, 2).to(x.dtype) for table in (phases.cos(), phases.sin()))
    return x * cos + rotate_half(x) * sin


@torch.no_grad()
def export(model: LlamaForCausalLM) -> HeadwiseLlamaForCausalLM:
    """Returns the same model without comrope: the basis is folded into the weights, the frequencies are in `inv_freq`.

    Args:
        model: a model with an encoding attached, folded or not. It is not changed.
    Raises:
        ConfigurationError: nothing is attached.
        NoSpectrumError: the encoding does not commute (LieRE).
    """
    folded: Any = comrope.fold(copy.deepcopy(model))
    found: Any = HeadwiseLlamaForCausalLM(model.config)
    found.to(model.device, model.dtype)
    state = {name: tensor for name, tensor in folded.state_dict().items() if ".encoding." not in name}
    rope_factor = folded.model.rotary_emb.attention_scaling  # a factor of queries and of keys, from YaRN for example
    for index, layer in enumerate(folded.model.layers):
        attention, prefix = layer.self_attn, f"model.layers.{index}.self_attn"
        for name in ("q_proj", "k_proj"):  # from interleaved planes to transformers' layout in halves
            rows = state[f"{prefix}.{name}.weight"].unflatten(0, (-1, attention.head_dim // 2, 2))
            state[f"{prefix}.{name}.weight"] = rows.transpose(1, 2).flatten(0, 2)
        temperature = rope_factor**2 * attention.scaling * attention.head_dim**0.5 * attention.encoding.gain
        state[f"{prefix}.q_proj.weight"] = state[f"{prefix}.q_proj.weight"] * temperature
        state[f"{prefix}.inv_freq"] = attention.encoding.spectrum().frequencies[0].flatten(1)
    found.load_state_dict(state)
    return found.train(model.training)
