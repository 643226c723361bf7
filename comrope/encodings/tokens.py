"""Encodings that rotate each token by what the tokens say, such as Selective RoPE, besides by where they are."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from comrope._values import is_floating, shape_of
from comrope.encodings.arguments import check_sizes
from comrope.encodings.base import Encoding
from comrope.errors import InputError


class TokenEncoding(Encoding):
    """An encoding whose rotation depends on the tokens from which queries and keys are projected.

    It is called as pe(q, k, positions, tokens=tokens). There are no angle matrices, no spectrum, and nothing to fold, and an
    attached model refuses a key cache that holds earlier tokens. Subclasses define `rotation`.

    Args:
        width: the number of features of a token; num_heads · head_dim if None. `attach` takes it from the model.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        block_size: int = 2,
        *,
        width: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)
        width = num_heads * head_dim if width is None else width
        check_sizes(width=width)
        self.width = width

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        positions: Tensor,
        key_positions: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns rotated queries and keys.

        Args:
            q: (B, H·g, L, D).
            k: (B, H, L, D), of the same tokens.
            positions: (L, N) or (B, L, N).
            key_positions: must be None: queries and keys are of the same tokens.
            tokens: (B, L, width), what queries and keys are projected from.
        """
        if key_positions is not None:
            raise InputError(
                f"key_positions were given, but {type(self).__name__} rotates queries and keys of the same tokens: leave "
                "them out."
            )
        positions = self._check_inputs(q, "q", positions, "positions")
        self._check_inputs(k, "k", positions, "positions")
        tokens = self.check_tokens(tokens, positions)
        dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.float32)
        return self.rotation(positions, dtype=dtype, tokens=tokens).rotate(q, k)

    @abstractmethod
    def rotation(
        self,
        positions: Tensor,
        key_positions: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        tokens: Tensor | None = None,
    ) -> Any:
        """Returns the rotation of `tokens` (B, L, width) at their positions, with methods rotate, queries and keys."""

    def check_tokens(self, tokens: Tensor | None, positions: Tensor) -> Tensor:
        """Returns the tokens; InputError unless they are (B, L, width), for the L tokens of `positions`."""
        fits = isinstance(tokens, Tensor) and tokens.ndim == 3 and is_floating(tokens)
        if tokens is None or not fits or tokens.shape[1:] != (positions.shape[-2], self.width):
            raise InputError(
                f"tokens: got {shape_of(tokens)}; expected floating-point numbers (B, {positions.shape[-2]}, {self.width}), "
                "what queries and keys are projected from."
            )
        return tokens
