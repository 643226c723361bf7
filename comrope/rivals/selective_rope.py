"""Selective RoPE: angles that accumulate along the sequence, by as much as each token says."""

from typing import Any

import torch
from torch import Tensor, nn

from comrope._planes import full_precision
from comrope.encodings import TokenEncoding, register
from comrope.encodings.arguments import check_flag, check_positive, check_rotation_dtype, check_sizes
from comrope.errors import ConfigurationError
from comrope.rivals._frequencies import geometric_speeds
from comrope.rotation import Rotation


@register(
    "selective-rope",
    label="Selective RoPE",
    about="angles that accumulate along the sequence, by as much as each token says",
)
class SelectiveRoPE(TokenEncoding):
    """Selective RoPE: plane f of token t rotates by ω_f Σ_{τ≤t} φ_τf, where steps φ are computed from the tokens.

    φ = gate ∘ (SiLU(conv(W₂W₁x)) + exp(bias)): x are the tokens, whose part for each head has length 1, conv is causal and
    of each plane alone, gate = σ(W₃x + c) is one number for each head. ω_f = ω_max·base^(−2f/D) is fixed. Source: arXiv
    2511.17388 (ICLR 2026), timurcarstensen/selective-rope. It claims lower perplexity of gated linear attention, and
    copying and state tracking that RoPE cannot learn. No spectrum, and nothing to fold: scores depend on what the tokens
    between two say. It is causal, and made for text: the values of the positions do not enter, only the order of the tokens,
    which for images is row by row.

    init="normal" is the published setting for language models: gate and SiLU, no bias, weights as torch's layers draw them.
    init="rope" is RoPE, from which a model with RoPE can be fine-tuned: W₂ = 0, bias 0, so that every step is 1, and no
    gate.

    The code has a state for decoding, which is not here: no key cache. It has heads of queries; here queries that share a
    key head share its angles. Planes are neighbouring features here, f and f + D/2 there.

    Args:
        init: "normal" or "rope".
        rank: of W₂W₁. The code's default is 16; its runs have 32.
        kernel_size: tokens that conv sees.
        gate: whether there is a gate; if None, with init="normal".
        bias: whether there is a bias; if None, with init="rope".
        base: ratio of the fastest to (nearly) the slowest speed.
        max_frequency: ω_max, in radians per step of 1.
        sizes: as for `TokenEncoding`.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        *,
        init: str = "normal",
        rank: int = 16,
        kernel_size: int = 4,
        gate: bool | None = None,
        bias: bool | None = None,
        base: float = 500000.0,
        max_frequency: float = 1.0,
        **sizes: Any,
    ):
        super().__init__(num_heads, head_dim, num_axes, **sizes)
        if init not in ("normal", "rope"):
            raise ConfigurationError(f"init={init!r}: selective-rope starts as 'normal' or 'rope'.")
        check_sizes(rank=rank, kernel_size=kernel_size)
        if self.width % num_heads:
            raise ConfigurationError(
                f"width={self.width} with num_heads={num_heads}: each head has its part of a token, so num_heads must divide "
                "width."
            )
        gate, bias = (init == "normal" if gate is None else gate), (init == "rope" if bias is None else bias)
        check_flag(gate=gate, bias=bias)
        if init == "rope" and (gate or not bias):
            raise ConfigurationError("init='rope' is with bias=True and gate=False: leave these settings out.")
        self.init = init
        self.base: float
        self.max_frequency: float
        self.base, self.max_frequency = check_positive(base=base, max_frequency=max_frequency)
        num_planes = num_heads * head_dim // 2
        kwargs = self.factory_kwargs
        self.down: nn.Linear = nn.Linear(self.width, rank, bias=False, **kwargs)
        self.up: nn.Linear = nn.Linear(rank, num_planes, bias=False, **kwargs)
        self.conv: nn.Conv1d = nn.Conv1d(num_planes, num_planes, kernel_size, groups=num_planes, bias=False, **kwargs)
        self.gate: nn.Linear | None = nn.Linear(self.width, num_heads, **kwargs) if gate else None
        self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(num_heads, head_dim // 2, **kwargs)) if bias else None
        if init == "rope":
            nn.init.zeros_(self.up.weight)

    def rotation(
        self,
        positions: Tensor,
        key_positions: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        tokens: Tensor | None = None,
    ) -> Rotation:
        check_rotation_dtype(dtype)
        positions = self._check_positions(positions, "positions")
        tokens = self.check_tokens(tokens, positions)
        with full_precision(tokens.device):
            phases = self.steps(tokens.to(self.dtype)).double().cumsum(1)  # (B, L, H, D/2)
        speeds = geometric_speeds(self.max_frequency, self.base, self.head_dim // 2).to(tokens.device)
        phases = phases * speeds
        return Rotation.at((phases, phases), dtype)

    def steps(self, tokens: Tensor) -> Tensor:
        """Returns φ, (B, L, H, D/2), for tokens (B, L, width)."""
        parts = nn.functional.normalize(tokens.unflatten(-1, (self.num_heads, -1)), dim=-1).flatten(-2)
        proposed = nn.functional.pad(self.up(self.down(parts)).mT, (self.conv.kernel_size[0] - 1, 0))
        steps = nn.functional.silu(self.conv(proposed)).mT.unflatten(-1, (self.num_heads, -1))
        steps = steps if self.bias is None else steps + self.bias.exp()
        return steps if self.gate is None else steps * self.gate(parts).sigmoid().unsqueeze(-1)
