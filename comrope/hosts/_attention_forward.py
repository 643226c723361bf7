"""Replacement forwards for attention layers in which no module outputs queries or keys.

There are two kinds: layers that multiply by the weight of a projection themselves and call torch's
`scaled_dot_product_attention`, and `torch.nn.MultiheadAttention`, whose forward is reimplemented here from its
documentation.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from comrope.errors import InputError


class SDPAForward:
    """The forward of the layer's class, with the queries and keys given to `scaled_dot_product_attention` rotated."""

    def __init__(self, layer: Any):
        self.layer = layer

    def __call__(self, *args, **kwargs) -> Any:
        attention, intercepted = self.layer.attention, InterceptSDPA(self.layer.rotate_queries_and_keys)
        with intercepted:
            output = type(attention).forward(attention, *args, **kwargs)
        if intercepted.count != 1:
            raise InputError(
                f"{self.layer.name} called scaled_dot_product_attention {intercepted.count} times, and once when its encoding "
                "was attached: switch its fused attention on (timm: attention.fused_attn = True)."
            )
        return output


class InterceptSDPA(TorchFunctionMode):
    """Applies `change` to the queries and keys of every call of `scaled_dot_product_attention`."""

    def __init__(self, change: Any):
        super().__init__()
        self.change, self.count = change, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.count += 1
            given = dict(zip(("query", "key"), args, strict=False)) | kwargs
            q, k = self.change(given.pop("query"), given.pop("key"))
            kwargs = {name: value for name, value in given.items() if name in kwargs}
            return func(q, k, *args[2:], **kwargs)
        return func(*args, **kwargs)


class MultiheadForward:
    """The forward of `torch.nn.MultiheadAttention` for self-attention, with queries and keys rotated."""

    def __init__(self, layer: Any):
        self.layer = layer

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        mha = self.layer.attention
        if key is not query or value is not query:
            raise InputError(
                f"{self.layer.name} has an encoding for self-attention, and got other keys or values than queries."
            )
        batched = query.ndim == 3
        x = query if batched else query.unsqueeze(1 - int(mha.batch_first))
        x = x if mha.batch_first else x.transpose(0, 1)  # (B, L, E)
        projected = F.linear(x, mha.in_proj_weight, mha.in_proj_bias)
        q, k, v = (t.unflatten(-1, (mha.num_heads, -1)).transpose(1, 2) for t in projected.chunk(3, dim=-1))
        q, k = self.layer.rotate_queries_and_keys(q, k)
        mask = _additive_mask(q, attn_mask, key_padding_mask)
        dropout, weights = mha.dropout if mha.training else 0.0, None
        if need_weights:
            scores = q @ k.mT * q.shape[-1] ** -0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout)
            attended = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out = mha.out_proj(attended.transpose(1, 2).flatten(2))
        out = out if mha.batch_first else out.transpose(0, 1)
        if not batched:
            return out.squeeze(1 - int(mha.batch_first)), None if weights is None else weights.squeeze(0)
        return out, weights


def _additive_mask(q: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
    """Returns what is added to the scores (B, H, L, L). True in a mask of `MultiheadAttention` forbids attention."""

    def added(mask: Tensor) -> Tensor:
        return (
            torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else mask
        )

    total = None
    if attn_mask is not None:
        total = added(attn_mask)
        total = total.view(-1, q.shape[1], *total.shape[1:]) if total.ndim == 3 else total
    if key_padding_mask is not None:
        padding = added(key_padding_mask).view(-1, 1, 1, q.shape[2])
        total = padding if total is None else total + padding
    return total


def is_multihead(module: nn.Module) -> bool:
    """Returns whether a module is torch's own attention, without the options that an encoding cannot handle."""
    return (
        isinstance(module, nn.MultiheadAttention)
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
    )
