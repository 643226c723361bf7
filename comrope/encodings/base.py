"""The base class of the rotary encodings: sizes, checked input, and three views of the angles.

Parameters stay in float32 or float64 when the model is cast to a lower precision. Nothing is cached: everything is computed
from the parameters in each call.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from comrope import reference
from comrope._values import is_floating, shape_of
from comrope.encodings.arguments import (
    check_parameter_dtype,
    check_positions,
    check_sizes,
)
from comrope.encodings.directions import spread_directions
from comrope.errors import ConfigurationError, InputError, NoSpectrumError
from comrope.rotation import Spectrum, compute_dtype

MAX_RADIANS = 1e9
"""Largest rotation angle for which `rotation_matrices` uses `matrix_exp`."""


class PreciseModule(nn.Module):
    """A module whose tensors stay in float32 or float64 when the model that contains it is cast to a lower precision."""

    _allowed_dtypes: ClassVar = (torch.float32, torch.float64)
    """A cast to any other floating-point dtype leaves the tensors as they are."""
    _anchor: Tensor | None = None
    """An empty tensor, not in the state_dict, that holds the device and dtype of a module without parameters."""

    @property
    def device(self) -> torch.device:
        """The device of the angles."""
        return self._first_tensor().device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the angles: float32 or float64."""
        return self._first_tensor().dtype

    def _first_tensor(self) -> Tensor:
        """Returns a tensor that has the module's device and dtype."""
        parameter = next(self.parameters(), self._anchor)
        assert parameter is not None
        return parameter

    def _apply(self, fn, recurse=True):
        def precise(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.is_floating_point() and moved.dtype not in self._allowed_dtypes:
                return tensor.to(moved.device)
            return moved

        super()._apply(precise, recurse)
        if self._anchor is not None:
            self._anchor = precise(self._anchor)
        return self


class FoldedRope(NamedTuple):
    """Linear maps of queries and keys, and frequencies, with which plain RoPE gives the scores of an encoding."""

    query_map: Tensor
    """A_q, (H, m, b, b)."""
    key_map: Tensor
    """A_k, (H, m, b, b)."""
    frequencies: Tensor
    """ω, (N, H, m, b/2), radians per unit of position."""


class Encoding(PreciseModule, ABC):
    """A rotary encoding: R(x) = exp(Σ_i x_i A_i), A_i block-diagonal and skew-symmetric (paper, Eq. 3).

    There are four kinds, and a class of one's own derives from one of them: `SpectralEncoding`, `MappedEncoding`,
    `DenseEncoding` and `TokenEncoding`. What a kind does not have raises NoSpectrumError.

    Args:
        num_heads: H, the number of key/value heads, each of which has its own angles. Queries may have a multiple of H heads
            (grouped-query attention). A group shares the rotation of its key head; otherwise the RoPE equation would fail.
        head_dim: D, the number of features per head.
        num_axes: N, the number of coordinates of a position.
        block_size: b, the size of the diagonal blocks, an even divisor of head_dim. There are m = D/b blocks.
        device: of the parameters.
        dtype: of the parameters, float32 or float64.
    Raises:
        ConfigurationError: sizes that do not fit together.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        block_size: int = 2,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_sizes(num_heads=num_heads, head_dim=head_dim, num_axes=num_axes, block_size=block_size)
        dtype = check_parameter_dtype(dtype)
        if block_size % 2 or head_dim % block_size:
            fitting = [b for b in range(2, head_dim + 1, 2) if head_dim % b == 0]
            remedy = f"Use one of {fitting}." if fitting else "There is none: head_dim must be even."
            raise ConfigurationError(
                f"block_size={block_size} with head_dim={head_dim}: expected an even divisor of head_dim. {remedy}"
            )
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_axes = num_axes
        self.block_size = block_size
        self.num_blocks: int = head_dim // block_size
        self.factory_kwargs: dict[str, Any] = {"device": device, "dtype": dtype}
        """What tensors of the constructor are made with."""
        anchor = torch.empty(0, **self.factory_kwargs)
        self._anchor = torch.empty_like(anchor, device="cpu") if anchor.is_meta else anchor

    def forward(
        self, q: Tensor, k: Tensor, positions: Tensor, key_positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns rotated queries q' and keys k' with ⟨q'_i, k'_j⟩ = ⟨R(x_i)q_i, R(x_j)k_j⟩.

        Args:
            q: (B, H·g, L, D).
            k: (B, H, L, D).
            positions: (L, N), shared by the batch, or (B, L, N); float32, float64 or integers.
            key_positions: positions of the keys, if they differ from those of the queries (cross-attention, key cache).
        Returns:
            q' and k', with the shapes and dtypes of q and k. Use only inner products between them: commuting encodings leave
            out the basis change that queries and keys share.
        Raises:
            InputError: shapes that do not fit, or positions that are NaN, infinite or of too low precision.
        """
        positions = self._check_inputs(q, "q", positions, "positions")
        if key_positions is None:
            key_positions = self._check_inputs(k, "k", positions, "positions")
        else:
            key_positions = self._check_inputs(k, "k", key_positions, "key_positions")
        if k.shape[1] != self.num_heads:
            raise InputError(f"k has {k.shape[1]} heads, but this encoding has num_heads={self.num_heads} key heads.")
        dtype = torch.promote_types(compute_dtype(q), k.dtype)
        return self.rotation(positions, key_positions, dtype=dtype).rotate(q, k)

    if TYPE_CHECKING:  # torch says only that a module can be called

        def __call__(
            self, q: Tensor, k: Tensor, positions: Tensor, key_positions: Tensor | None = None
        ) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def rotation(
        self, positions: Tensor, key_positions: Tensor | None = None, *, dtype: torch.dtype = torch.float32
    ) -> Any:
        """Returns what `forward` computes from the positions. It has the methods `rotate(q, k)`, `queries(q)` and `keys(k)`."""

    def angle_matrices(self) -> Tensor:
        """Returns B_ij (N, H, m, b, b), skew-symmetric, in radians per unit of position, differentiable in the parameters.

        Raises:
            NoSpectrumError: the rotation depends on the tokens, too.
        """
        raise NoSpectrumError(f"{type(self).__name__} rotates by what the tokens say: it has no angle matrices.")

    def spectrum(self) -> Spectrum:
        """Returns basis (H, m, b, b) and frequencies (N, H, m, b/2), in float64 without gradient.

        Raises:
            NoSpectrumError: there is no basis that queries and keys share, and in which all axes rotate the same planes.
        """
        raise NoSpectrumError(
            f"{type(self).__name__} has no spectrum: no orthogonal basis, common to queries and keys, brings its rotations to "
            "planes. Use comrope-ld, -ap or -mt where you need one."
        )

    def folded(self) -> FoldedRope:
        """Returns the maps of queries and keys, and the frequencies, with which plain RoPE gives the same scores.

        Raises:
            NoSpectrumError: there are none.
        """
        basis, frequencies = self.spectrum()
        return FoldedRope(basis.mT, basis.mT, frequencies)

    def rotation_matrices(self, positions: Tensor) -> Tensor:
        """Returns dense R(x), (..., L, H, m, b, b), by matrix_exp in float64: for inspection and tests, not for speed.

        Raises:
            InputError: invalid positions, or rotations by more than 1e9 radians, where the error of matrix_exp exceeds 1e-5.
                `rotation` has no such limit.
        """
        positions, angles = self._check_positions(positions, "positions"), self.angle_matrices().double()
        matrices = reference.rotation_matrices(angles, positions)
        max_angles = torch.linalg.matrix_norm(angles).flatten(1).amax(1)  # per unit along each axis, an upper bound
        if not matrices.is_meta and (positions.double().abs() @ max_angles > MAX_RADIANS).any():
            raise InputError(
                f"positions: some rotate by more than {MAX_RADIANS:g} radians, where matrix_exp is inexact: expected "
                "nearer ones, or use rotation(positions), which is right anywhere."
            )
        return matrices.to(self.dtype)

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, head_dim={self.head_dim}, num_axes={self.num_axes}, "
            f"block_size={self.block_size}"
        )

    def _check_inputs(self, x: Tensor, name: str, positions: Tensor, positions_name: str) -> Tensor:
        """Returns checked positions, or raises InputError if they or the tokens x do not fit."""
        positions = self._check_positions(positions, positions_name)
        is_tensor = isinstance(x, Tensor) and not x.is_nested
        if not is_tensor or x.ndim != 4 or x.shape[1] % self.num_heads or x.shape[3] != self.head_dim:
            raise InputError(
                f"{name}: got {shape_of(x)}, expected (B, heads, L, D) with heads a multiple of num_heads={self.num_heads} and "
                f"D=head_dim={self.head_dim}. A (B, L, heads, D) tensor wants .transpose(1, 2)."
            )
        if not is_floating(x):
            raise InputError(
                f"{name}: got {x.dtype}, {x.layout}; expected floating-point numbers of 16 bits or more in a dense tensor."
            )
        if x.device != positions.device:
            raise InputError(f"{name} is on {x.device} and {positions_name} on {positions.device}: move all to one.")
        if positions.shape[-2] != x.shape[2]:
            raise InputError(
                f"{positions_name} are for {positions.shape[-2]} tokens, but {name} has {x.shape[2]}: give one row a "
                "token, prefix tokens included: comrope.positions.grid(shape, num_prefix_tokens=…)."
            )
        if positions.ndim == 3 and positions.shape[0] != x.shape[0]:
            raise InputError(f"{positions_name} are for {positions.shape[0]} samples, but {name} has {x.shape[0]}.")
        return positions

    def _check_positions(self, positions: Tensor, name: str) -> Tensor:
        """Returns checked positions, or raises InputError."""
        positions = check_positions(positions, name, self.num_axes)
        own = next((p.device for p in self.parameters()), positions.device)
        if positions.device != own:
            raise InputError(f"{name} are on {positions.device} and the angles on {own}: move all to one.")
        return positions

    def _rope_frequencies(self, base: float, max_frequency: float, directions: Tensor | None = None) -> Tensor:
        """Returns vanilla RoPE's frequencies ω (paper, section 3), (N, H, m, b/2), in radians per unit, float64.

        Plane p rotates at |ω| = ω_max·base^(−2N·j/D), j = p div N, with axis p mod N only, or along `directions` (H, D/2, N).
        """
        num_planes = self.head_dim // 2
        j = torch.arange(num_planes // self.num_axes, dtype=torch.float64, device=self.device)
        speed = max_frequency * base ** (-2 * self.num_axes * j / self.head_dim)
        speed = speed.repeat_interleave(self.num_axes)  # (D/2,)
        if directions is None:
            eye = torch.eye(self.num_axes, dtype=torch.float64, device=self.device)
            directions = eye.repeat(num_planes // self.num_axes, 1).expand(self.num_heads, -1, -1)
        frequencies = (speed.unsqueeze(-1) * directions).permute(2, 0, 1)  # (N, H, D/2)
        return frequencies.reshape(self.num_axes, self.num_heads, self.num_blocks, self.block_size // 2)

    def _directions(self, name: str) -> Tensor | None:
        """Returns the directions called "spread", (H, D/2, N), different in each head; None for "axes"."""
        if name == "axes":
            return None
        num_planes = self.head_dim // 2
        directions = spread_directions(self.num_heads * num_planes, self.num_axes)
        return directions.view(self.num_heads, num_planes, self.num_axes).to(self.device)
