"""Encodings without a basis: none at all, vanilla RoPE with fixed frequencies, and RoPE-Mixed with learned ones."""

import torch
from torch import Tensor, nn

from comrope.encodings.arguments import check_directions, check_rope, check_rotation_dtype
from comrope.encodings.base import Encoding
from comrope.encodings.learned import LearnedEncoding
from comrope.encodings.spectral import SpectralEncoding
from comrope.errors import ConfigurationError
from comrope.rotation import Spectrum


class _IdentityRotation:
    """A rotation that returns queries and keys unchanged."""

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    def queries(self, q: Tensor) -> Tensor:
        return q

    def keys(self, k: Tensor) -> Tensor:
        return k


class NoEncoding(Encoding):
    """No positions at all: A_i = 0 and R(x) = I. Queries and keys are returned unchanged.

    `block_size` only shapes `angle_matrices()` and `spectrum()`.
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
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)

    def rotation(
        self, positions: Tensor, key_positions: Tensor | None = None, *, dtype: torch.dtype = torch.float32
    ) -> _IdentityRotation:
        check_rotation_dtype(dtype)
        self._check_positions(positions, "positions")
        if key_positions is not None:
            self._check_positions(key_positions, "key_positions")
        return _IdentityRotation()

    def angle_matrices(self) -> Tensor:
        b = self.block_size
        return torch.zeros(self.num_axes, self.num_heads, self.num_blocks, b, b, device=self.device, dtype=self.dtype)

    def spectrum(self) -> Spectrum:
        eye = torch.eye(self.block_size, device=self.device, dtype=torch.float64)
        basis = eye.repeat(self.num_heads, self.num_blocks, 1, 1)
        return Spectrum(basis, basis.new_zeros(self.num_axes, self.num_heads, self.num_blocks, self.block_size // 2))


class Rope(SpectralEncoding):
    """Vanilla RoPE: plane p rotates with axis p mod N only, at ω_max·base^(−2N·(p div N)/D) radians per unit.

    Nothing is learned. The paper uses base 10000 and ω_max = 1, also for relative positions in [0, 1], where no plane rotates
    by more than one radian over the image. max_frequency=14 on a grid of 14 × 14 is RoPE on patch indices. `block_size` only
    groups the planes in `angle_matrices()` and `spectrum()`.

    Args:
        base: ratio that the frequencies fall by from the first plane to (nearly) the last.
        max_frequency: ω_max, in radians per unit of position.
        directions: "axes", as above (axial RoPE), or "spread": each plane of each head rotates at the same speed |ω| along a
            direction of its own, evenly spread over the sphere. With one axis they are the same.
    """

    base: float
    max_frequency: float

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        block_size: int = 2,
        *,
        base: float = 10000.0,
        max_frequency: float = 1.0,
        directions: str = "axes",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)
        self.base, self.max_frequency = check_rope(base, max_frequency, head_dim, num_axes)
        self.directions: str = check_directions(directions)
        self._unit = self._directions(directions)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self._unit is not None:  # stays float64, as all constants
            self._unit = self._directions(self.directions)
        return self

    def spectrum_inputs(self) -> tuple[Tensor, ...]:
        return (self._rope_frequencies(self.base, self.max_frequency, self._unit).transpose(0, 1),)

    @classmethod
    def spectrum_from(cls, *inputs: Tensor) -> tuple[Tensor | None, Tensor]:
        return None, inputs[0].transpose(0, 1)


class RopeMixed(LearnedEncoding, SpectralEncoding):
    """RoPE-Mixed: every plane rotates with all axes, at learned frequencies. It is equivalent to LD with block size 2.

    Parameter: `frequencies` ω, (N, H, m, b/2). `block_size` only groups the planes.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        block_size: int = 2,
        *,
        init: str = "normal",
        std: float | None = None,
        base: float | None = None,
        max_frequency: float | None = None,
        directions: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)
        self._configure_init(init, std, base, max_frequency, directions)
        self.frequencies: nn.Parameter = self._frequency_parameter()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self._reset_frequencies(self.frequencies)

    def spectrum_inputs(self) -> tuple[Tensor, ...]:
        return (self.frequencies.transpose(0, 1),)

    @classmethod
    def spectrum_from(cls, *inputs: Tensor) -> tuple[Tensor | None, Tensor]:
        return None, inputs[0].transpose(0, 1)

    def _set_spectrum(self, basis, frequencies):
        eye = torch.eye(self.block_size, dtype=basis.dtype, device=basis.device)
        if (basis - eye).abs().max() > 1e-6:
            raise ConfigurationError("RoPE-Mixed has no basis but the identity: use comrope-mt, which holds any.")
        self.frequencies.copy_(frequencies)
