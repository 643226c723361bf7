"""Tiny models of torch itself, and one as a user may write it."""

import torch
from torch import Tensor, nn

from tests.hosts.zoo.entry import NUM_TOKENS, ZOO, Entry, main_output, normal, seeded


class OwnAttention(nn.Module):
    """Attention as a user may write it: fused queries, keys and values, [q|k|v], and torch's attention function."""

    def __init__(self, width: int = 32, heads: int = 2):
        super().__init__()
        self.heads, self.inputs, self.outputs = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.outputs(x.transpose(1, 2).flatten(2))


class OwnModel(nn.Module):
    """Two residual layers of a norm and OwnAttention, on tokens with a learned position embedding."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(NUM_TOKENS, 32))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.layers = nn.ModuleList(OwnAttention() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return x


def _encoder(**overrides) -> nn.Module:
    layer = {"d_model": 32, "nhead": 2, "dim_feedforward": 64, "batch_first": True} | overrides
    return seeded(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), num_layers=2))


ZOO["torch encoder"] = Entry(
    "torch encoder", "torch", _encoder, lambda: {"src": normal(2, NUM_TOKENS, 32)}, main_output
)
ZOO["torch own"] = Entry(
    "torch own", "torch", lambda: seeded(OwnModel), lambda: {"x": normal(2, NUM_TOKENS, 32)}, main_output
)
