"""The encoding that a law is tested on, and the numbers that all laws draw and compare."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from comrope.encodings import Encoding, TokenEncoding, encoding

JITTER = 0.2
"""Standard deviation of the noise that is added to parameters, so that no law holds only at the start."""
NUM_TOKENS = 6


@dataclass(frozen=True)
class Subject:
    """An encoding under test: its name and settings, from which it is made anew for each law."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self, seed: int = 0, **changes: Any) -> Encoding:
        """Returns the encoding, in float64 and eval mode, with noise added to its parameters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = encoding(self.name, **({"dtype": torch.float64} | self.settings | changes))
            assert isinstance(made, Encoding)
            with torch.no_grad():
                for parameter in made.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=JITTER)
        return made.eval()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(pe: Encoding, batch: int = 2, group: int = 1) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Returns queries, keys, positions (L, N), and further arguments."""
    q = draw(batch, group * pe.num_heads, NUM_TOKENS, pe.head_dim, seed=1)
    k = draw(batch, pe.num_heads, NUM_TOKENS, pe.head_dim, seed=2)
    more = {"tokens": draw(batch, NUM_TOKENS, pe.width, seed=4)} if isinstance(pe, TokenEncoding) else {}
    return q, k, draw(NUM_TOKENS, pe.num_axes, seed=3), more


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT


def close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    error = (found.double() - expected.double()).abs().max().item()
    size = max(1.0, expected.double().abs().max().item())
    assert error <= tolerance * size, (
        f"{what} differ by {error:.1e} on values up to {size:.1e}; allowed {tolerance:.0e}"
    )
