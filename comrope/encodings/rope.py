"""The plain ones: no encoding, vanilla RoPE with fixed frequencies, RoPE-Mixed with learned ones. Basis: the identity."""

import torch
from torch import Tensor

from comrope.encodings.arguments import check_rope, check_turning_dtype
from comrope.encodings.base import Encoding, LearnedEncoding, SpectralEncoding
from comrope.errors import ConfigurationError
from comrope.rotation import Spectrum


class _Unturned:
    """The rotation that is none."""

    def turn(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    def queries(self, q: Tensor) -> Tensor:
        return q

    def keys(self, k: Tensor) -> Tensor:
        return k


class NoEncoding(Encoding):
    """No positions at all: A_i = 0 and R(x) = I. Queries and keys come back as they are.

    `block_size` only shapes `angle_matrices()` and `spectrum()`.
    """

    def __init__(self, num_heads, head_dim, num_axes, block_size: int = 2, *, device=None, dtype=None):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)

    def rotation(self, positions, key_positions=None, *, dtype=torch.float32):
        check_turning_dtype(dtype)
        self._check_positions(positions, "positions")
        if key_positions is not None:
            self._check_positions(key_positions, "key_positions")
        return _Unturned()

    def angle_matrices(self) -> Tensor:
        b = self.block_size
        return torch.zeros(self.num_axes, self.num_heads, self.num_blocks, b, b, device=self.device, dtype=self.dtype)

    def spectrum(self) -> Spectrum:
        eye = torch.eye(self.block_size, device=self.device, dtype=torch.float64)
        basis = eye.repeat(self.num_heads, self.num_blocks, 1, 1)
        return Spectrum(basis, basis.new_zeros(self.num_axes, self.num_heads, self.num_blocks, self.block_size // 2))


class Rope(SpectralEncoding):
    """Vanilla RoPE, axial: plane p turns with axis p mod N at ω_max·base^(−2N·(p div N)/D) radians per unit. Nothing to learn.

    The paper has base 10000 and ω_max = 1 for relative positions in [0, 1] too, where no plane turns by more than one radian
    a canvas. With max_frequency=14 on a grid of 14 × 14 it is the RoPE that counts patches. `block_size` only groups the
    planes in `angle_matrices()` and `spectrum()`.
    """

    def __init__(
        self,
        num_heads,
        head_dim,
        num_axes,
        block_size: int = 2,
        *,
        base: float = 10000.0,
        max_frequency: float = 1.0,
        device=None,
        dtype=None,
    ):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)
        self.base, self.max_frequency = check_rope(base, max_frequency, head_dim, num_axes)

    def _ingredients(self):
        return (self._rope_frequencies(self.base, self.max_frequency).transpose(0, 1),)

    @classmethod
    def _spectrum_of(cls, frequencies):
        return None, frequencies.transpose(0, 1)


class RopeMixed(LearnedEncoding, SpectralEncoding):
    """RoPE-Mixed: every plane turns with all axes, at learned frequencies ω (N, H, m, b/2). LD with block size 2.

    `block_size` only groups the planes.
    """

    def __init__(
        self,
        num_heads,
        head_dim,
        num_axes,
        block_size: int = 2,
        *,
        init: str = "normal",
        std: float | None = None,
        base: float | None = None,
        max_frequency: float | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)
        self._configure_init(init, std, base, max_frequency)
        self.frequencies = self._frequencies()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self._reset_frequencies(self.frequencies)

    def _ingredients(self):
        return (self.frequencies.transpose(0, 1),)

    @classmethod
    def _spectrum_of(cls, frequencies):
        return None, frequencies.transpose(0, 1)

    def _set_spectrum(self, basis, frequencies):
        eye = torch.eye(self.block_size, dtype=basis.dtype, device=basis.device)
        if (basis - eye).abs().max() > 1e-6:
            raise ConfigurationError("RoPE-Mixed has no basis but the identity: use comrope-mt, which holds any.")
        self.frequencies.copy_(frequencies)
