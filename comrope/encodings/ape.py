"""APE: a learned absolute position encoding, added to the tokens. It is not a rotation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comrope._values import is_floating, is_whole, shape_of
from comrope.encodings.arguments import MAX_FEATURES, check_parameter_dtype, check_positions, check_sizes, check_std
from comrope.encodings.base import PreciseModule
from comrope.errors import ConfigurationError, InputError


class AbsoluteEncoding(PreciseModule):
    """A learned code for each cell of a grid over [0, 1]ᴺ, N ≤ 3, interpolated linearly at the positions of tokens.

    Of n cells along an axis, cell i has its centre at (i + ½)/n, where `comrope.positions.grid` puts patches. Between centres
    codes are interpolated (bilinearly in 2D); beyond the outermost centres they are constant.

    Args:
        num_heads: the tokens' width is num_heads · head_dim.
        head_dim: likewise.
        num_axes: N, which is 1, 2 or 3.
        grid: the number of cells along each axis, such as (14, 14).
        std: the initial standard deviation of the codes.

    Parameter: `code_book`, (width, *grid).
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        *,
        grid: Sequence[int],
        std: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_sizes(num_heads=num_heads, head_dim=head_dim)
        dtype = check_parameter_dtype(dtype)
        grid = tuple(grid) if isinstance(grid, Sequence) else (grid,)
        if not is_whole(num_axes, 1, 3):
            raise ConfigurationError(
                f"num_axes={num_axes!r}: the code book of ape is sampled in 1, 2 or 3 axes; use one of these."
            )
        if len(grid) != num_axes or not all(is_whole(n, 1, MAX_FEATURES) for n in grid):
            raise ConfigurationError(
                f"grid={grid!r}: expected {num_axes} positive whole numbers, entries along each axis, up to {MAX_FEATURES}."
            )
        self.num_axes = num_axes
        self.grid = grid
        self.std: float = check_std(std)
        self.code_book: nn.Parameter = nn.Parameter(
            torch.empty(num_heads * head_dim, *grid, device=device, dtype=dtype)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws a new code book from torch's default random generator."""
        self.code_book.normal_(0, self.std)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Returns the tokens plus the codes of their positions.

        Args:
            tokens: (B, L, width).
            positions: (L, N) or (B, L, N), relative: the image extends over [0, 1].
        Returns:
            (B, L, width), in the tokens' dtype.
        """
        positions = check_positions(positions, "positions", self.num_axes)
        width = self.code_book.shape[0]
        fits = (
            isinstance(tokens, Tensor)
            and not tokens.is_nested
            and tokens.ndim == 3
            and tokens.shape[-1] == width
            and tokens.shape[1] == positions.shape[-2]
        )
        if not fits or (positions.ndim == 3 and positions.shape[0] != tokens.shape[0]):
            raise InputError(
                f"tokens: got {shape_of(tokens)} with positions {tuple(positions.shape)}, expected (B, L, {width}) and "
                "positions (L, N) or (B, L, N) for the same L tokens and B samples."
            )
        if not is_floating(tokens):
            raise InputError(f"tokens: got {tokens.dtype}, expected a floating-point tensor of 16 bits or more, dense.")
        if tokens.device != self.device:
            raise InputError(f"tokens are on {tokens.device} and the code book on {self.device}: move both to one.")
        return tokens + self.codes(positions).to(tokens.dtype)

    if TYPE_CHECKING:  # torch says only that a module can be called

        def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor: ...

    def codes(self, positions: Tensor) -> Tensor:
        """Returns the codes at `positions`: (L, width) or (B, L, width)."""
        positions = check_positions(positions, "positions", self.num_axes)
        if positions.device != self.device:
            raise InputError(
                f"positions are on {positions.device} and the code book on {self.device}: move both to one."
            )
        if positions.numel() == 0:
            return self.code_book.new_zeros(*positions.shape[:-1], self.code_book.shape[0])
        samples = positions if positions.ndim == 3 else positions.unsqueeze(0)  # (B or 1, L, N)
        book = self.code_book.unsqueeze(0)  # (1, width, *grid)
        if self.num_axes == 1:
            book = book.unsqueeze(2)  # one row
            samples = torch.cat((torch.full_like(samples, 0.5), samples), dim=-1)
        # grid_sample takes coordinates from the last axis to the first, (column, row), in [-1, 1]; align_corners=False puts
        # entries at the centres of cells.
        samples = (2 * samples.flip(-1) - 1).to(book.dtype).reshape(1, *([1] * (book.ndim - 3)), -1, book.ndim - 2)
        codes = F.grid_sample(book, samples, mode="bilinear", padding_mode="border", align_corners=False)
        return codes.flatten(1).view(book.shape[1], -1).T.reshape(*positions.shape[:-1], -1)

    def extra_repr(self) -> str:
        return f"width={self.code_book.shape[0]}, grid={self.grid}"
