"""The implementations of the rotation that the bench compares: the paper's, plain RoPE of three libraries, and ours."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import comrope
from comrope import reference
from comrope.encodings import Encoding, SpectralEncoding

Rotate = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""Returns rotated q and k, and any further results that take part in the backward."""
BASELINE = "RoPE, transformers"
PUBLISHED = "LD as published, a dense rotation a sample"
SHARED = "LD as published, positions shared"
FEW_TOKENS = 300
"""The paper's algorithm and LieRE are measured below this number of tokens: beyond, they take minutes and gigabytes."""


@dataclass(frozen=True)
class Shape:
    """Queries and keys of one attention layer."""

    name: str
    batch: int
    num_heads: int
    num_tokens: int
    head_dim: int
    num_axes: int

    def positions(self) -> Tensor:
        """Returns positions (L, N), shared by the batch: a sequence if N = 1, else uniform in [0, 1]ᴺ."""
        if self.num_axes == 1:
            return comrope.positions.sequence(self.num_tokens)
        return torch.rand(self.num_tokens, self.num_axes, generator=torch.Generator().manual_seed(0))

    def tokens(self) -> Tensor:
        """Returns random queries, keys or gradients, (B, H, L, D)."""
        return torch.randn(self.batch, self.num_heads, self.num_tokens, self.head_dim)


SHAPES = (
    Shape("ViT-B/16 at 224", 8, 12, 197, 64, 2),
    Shape("ViT-B/16 at 512", 2, 12, 1025, 64, 2),
    Shape("the paper's video model", 2, 8, 1569, 48, 3),
    Shape("language, 1k tokens", 1, 8, 1024, 128, 1),
    Shape("language, 4k tokens", 1, 8, 4096, 128, 1),
    Shape("language, 32k tokens", 1, 8, 32768, 128, 1),
)


def opponents(shape: Shape) -> dict[str, Rotate]:
    """Returns the implementations by name, ready to call with q and k of `shape`, without those that are too slow for it."""
    x = shape.positions()
    found: dict[str, Rotate] = {}
    if shape.num_tokens < FEW_TOKENS:
        found[PUBLISHED] = _published(_encoding("comrope-ld", shape), x, shape.batch)
        found[SHARED] = _shared(_encoding("comrope-ld", shape), x)
        found["LieRE, ours"] = _ours(_encoding("liere", shape), x)
    found.update(_plain_ropes(shape))
    for label, name, settings in (
        ("RoPE, ours", "rope", {}),
        ("RoPE-Mixed, ours", "rope-mixed", {}),
        ("AP, ours", "comrope-ap", {"block_size": 8}),
        ("LD, ours", "comrope-ld", {"block_size": 8}),
        ("LD, ours, all gaps closed", "comrope-ld", {"block_size": 8, "init": "identity"}),
        ("LD, ours, block 2", "comrope-ld", {"block_size": 2}),
        ("LD, ours, one block a head", "comrope-ld", {"block_size": shape.head_dim}),
        ("MT, ours", "comrope-mt", {"block_size": 8}),
    ):
        found[label] = _ours(_encoding(name, shape, **settings), x)
    for kind, name in (("AP", "comrope-ap"), ("LD", "comrope-ld"), ("MT", "comrope-mt")):
        found[f"{kind}, ours, basis in the weights"] = _in_weights(_encoding(name, shape), x)
    if shape.num_tokens < FEW_TOKENS:
        found["RoPE, ours, compiled"] = _compiled(_ours(_encoding("rope", shape), x))
        for kind, name in (("LD", "comrope-ld"), ("MT", "comrope-mt")):
            found[f"{kind}, ours, compiled"] = _compiled(_ours(_encoding(name, shape), x))
            found[f"{kind}, ours, basis in the weights, compiled"] = _compiled(_in_weights(_encoding(name, shape), x))
    return found


def _encoding(name: str, shape: Shape, **settings) -> Encoding:
    torch.manual_seed(0)
    sizes = {"num_heads": shape.num_heads, "head_dim": shape.head_dim, "num_axes": shape.num_axes}
    return comrope.encoding(name, **sizes, **settings)  # pyright: ignore[reportReturnType]


def _ours(pe: Encoding, x: Tensor) -> Rotate:
    return lambda q, k: pe(q, k, x)


def _in_weights(pe: Encoding, x: Tensor) -> Rotate:
    """Returns a rotation whose basis is multiplied into the projection weights (2·H·D, H·D) of q and k.

    The product and its gradient are part of the measurement.
    """
    assert isinstance(pe, SpectralEncoding)
    width = pe.num_heads * pe.head_dim
    weight = torch.randn(2 * width, width).requires_grad_()

    def rotate(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        rotation = pe.rotation(x)
        return (*rotation.rotate(q, k, in_basis=True), rotation.into_basis(weight))

    return rotate


def _compiled(rotate: Rotate) -> Rotate:
    return torch.compile(rotate, dynamic=False)


def _shared(pe: Encoding, x: Tensor) -> Rotate:
    """Returns the same algorithm with one rotation for all samples of the batch."""
    return lambda q, k: reference.rotate(q, k, pe.angle_matrices(), x)


def _published(pe: Encoding, x: Tensor, batch: int) -> Rotate:
    """Returns Algorithm 1 of the paper as released: a dense D × D rotation for each sample, token and head."""
    positions = x.expand(batch, -1, -1)

    def rotate(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        blocks = reference.rotation_matrices(pe.angle_matrices(), positions).transpose(1, 2)  # (B, H, L, m, b, b)
        num_blocks, b = blocks.shape[3:5]
        dense = blocks.new_zeros(*blocks.shape[:3], num_blocks, b, num_blocks, b)
        dense.diagonal(dim1=3, dim2=5).copy_(blocks.movedim(3, -1))
        dense = dense.flatten(3, 4).flatten(4, 5)  # (B, H, L, D, D)
        return (dense @ q.unsqueeze(-1)).squeeze(-1), (dense @ k.unsqueeze(-1)).squeeze(-1)

    return rotate


def _plain_ropes(shape: Shape) -> dict[str, Rotate]:
    """Returns the functions by which other libraries apply RoPE in a layer, with fixed frequencies and precomputed tables."""
    from rotary_embedding_torch import apply_rotary_emb
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    phases = torch.rand(shape.num_tokens, shape.head_dim // 2)
    cos, sin = (t.repeat(1, 2).unsqueeze(0) for t in (phases.cos(), phases.sin()))  # (1, L, D), halves
    pairs = phases.repeat_interleave(2, dim=-1)  # (L, D), interleaved
    table = torch.cat((pairs.sin(), pairs.cos()), dim=-1).expand(shape.num_heads, -1, -1)  # (H, L, 2D), one a head
    compiled = torch.compile(apply_rotary_pos_emb)
    return {
        BASELINE: lambda q, k: apply_rotary_pos_emb(q, k, cos, sin),
        "RoPE, transformers, compiled": lambda q, k: compiled(q, k, cos, sin),
        "RoPE, timm, a table a head": lambda q, k: (apply_rot_embed_cat(q, table), apply_rot_embed_cat(k, table)),
        "RoPE, rotary-embedding-torch": lambda q, k: (apply_rotary_emb(pairs, q), apply_rotary_emb(pairs, k)),
    }
