"""Learned angle matrices that commute: the paper's ComRoPE-AP and -LD, STRING, and ComRoPE-MT, which contains all others."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from comrope._linalg import (
    block_diagonalise,
    cayley,
    decompose,
    orthonormalise,
    plane_frequencies,
    plane_generators,
    skew,
)
from comrope.encodings.arguments import check_flag
from comrope.encodings.learned import LearnedEncoding
from comrope.encodings.spectral import SpectralEncoding
from comrope.errors import ConfigurationError
from comrope.rotation import Generator, Rotation


class _ScaledSkewEncoding(LearnedEncoding, SpectralEncoding):
    """Base class of AP and LD: B_ij = s_ij S_j with S_j = P_j − P_jᵀ, so that R(x) = exp(τS) in each block.

    τ = Σ_i s_i x_i is the scalar position along the block. AP and LD differ in the scale s only. The basis and frequencies
    come from decomposing S. Parameter: `base_matrices` P, (H, m, b, b).
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        block_size: int = 8,
        *,
        init: str = "normal",
        std: float | None = None,
        base: float | None = None,
        max_frequency: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)
        self._configure_init(init, std, base, max_frequency)
        if init == "rope" and num_axes > 1 and block_size > 2:
            raise ConfigurationError(
                f"init='rope' with block_size={block_size} and num_axes={num_axes}: neighbouring planes of vanilla RoPE rotate "
                "with different axes, which one block of AP or LD cannot do. Use block_size=2, or comrope-mt, which can."
            )
        self.base_matrices: nn.Parameter = self._block_parameter()

    @abstractmethod
    def _scale(self) -> Tensor:
        """Returns s, (N, H or 1, m)."""

    def _skew_matrix(self) -> Tensor:
        """Returns S = P − Pᵀ, (H, m, b, b), in float64: large positions would amplify the rounding of float32."""
        return skew(self.base_matrices.double())

    def _axis_mask(self) -> Tensor:
        """Returns a mask (N, 1, m) that is 1 if block j belongs to axis i, which is j ≡ i (mod N), else 0."""
        eye = torch.eye(self.num_axes, dtype=self.dtype, device=self.device)
        return eye.repeat(1, self.num_blocks // self.num_axes).unsqueeze(1)

    def _reset_base_matrices(self) -> None:
        if self.init == "normal":
            self.base_matrices.normal_(0, self.std)
        elif self.init == "identity":
            self.base_matrices.zero_()
        else:
            frequencies = self._rope_frequencies(self.base, self.max_frequency).sum(0)  # of each plane, on its one axis
            self.base_matrices.copy_(plane_generators(frequencies) / 2)

    def _set_spectrum(self, basis, frequencies):
        scale = self._fit_scale(frequencies)  # (N, H or 1, m)
        s = scale.double().unsqueeze(-1)
        mu = (frequencies * s).sum(0) / (s**2).sum(0)  # (H, m, h): sᵀω / sᵀs
        error = (frequencies - s * mu).abs().max()
        if error > 1e-6 * frequencies.abs().max():
            raise ConfigurationError(
                f"{type(self).__name__} does not hold these angles: in one block its planes rotate alike with all axes, up to "
                f"scale, which misses by {error:.1e} radians per unit with these frequencies. Use block_size=2, or "
                "comrope-mt, which holds all that commute."
            )
        self.base_matrices.copy_(basis @ plane_generators(mu) @ basis.mT / 2)
        self._set_scale(scale)

    @abstractmethod
    def _fit_scale(self, frequencies: Tensor) -> Tensor:
        """Returns the scale s that fits frequencies (N, H, m, h) best."""

    def _set_scale(self, scale: Tensor) -> None:
        """Stores the scale, if it is a parameter."""

    def angle_matrices(self) -> Tensor:
        return (self._scale().double()[..., None, None] * self._skew_matrix()).to(self.dtype)

    def spectrum_inputs(self) -> tuple[Tensor, ...]:
        scale = self._scale().expand(-1, self.num_heads, -1)  # (N, H, m)
        return self._skew_matrix(), scale.double().transpose(0, 1)

    @classmethod
    def spectrum_from(cls, *inputs: Tensor) -> tuple[Tensor | None, Tensor]:
        matrix, scale = inputs
        basis, generator = block_diagonalise(matrix)
        return basis, scale.transpose(0, 1).unsqueeze(-1) * plane_frequencies(generator)

    @classmethod
    def _rotation_from(cls, inputs, positions, key_positions, dtype):
        matrix, scale = inputs
        tau = key_tau = torch.einsum("...ln,hnm->...lhm", positions.double(), scale)  # (B or none, L, H, m)
        if key_positions is not positions:
            key_tau = torch.einsum("...ln,hnm->...lhm", key_positions.double(), scale)
        basis, generator = block_diagonalise(matrix)
        frequencies = plane_frequencies(generator)
        phases = key_phases = (tau.unsqueeze(-1) * frequencies).flatten(-2)
        if key_tau is not tau:
            key_phases = (key_tau.unsqueeze(-1) * frequencies).flatten(-2)
        gradient_path = None if basis is None else Generator(generator, (tau.detach(), key_tau.detach()))
        return Rotation.at((phases, key_phases), dtype, basis, gradient_path)


class ComRoPEAP(_ScaledSkewEncoding):
    """ComRoPE-AP, axial partition (paper, Eq. 8): B_ij = P_j − P_jᵀ where j ≡ i (mod N), else 0.

    The number of blocks D/b must be a multiple of N. Parameter: `base_matrices` P, (H, m, b, b).
    """

    def __init__(self, num_heads: int, head_dim: int, num_axes: int, block_size: int = 8, **keywords: Any):
        super().__init__(num_heads, head_dim, num_axes, block_size, **keywords)
        if self.num_blocks % num_axes:
            fitting = [b for b in range(2, head_dim + 1, 2) if head_dim % (b * num_axes) == 0]
            remedy = (
                f"Use block_size in {fitting}" if fitting else f"Use a head_dim that is a multiple of {2 * num_axes}"
            )
            raise ConfigurationError(
                f"comrope-ap shares {self.num_blocks} blocks (head_dim={head_dim} / block_size={block_size}) out among "
                f"{num_axes} axes, which does not come out even. {remedy}, or comrope-ld, which has no such rule."
            )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self._reset_base_matrices()

    def _scale(self) -> Tensor:
        return self._axis_mask()

    def _fit_scale(self, frequencies):
        return self._scale()


class ComRoPELD(_ScaledSkewEncoding):
    """ComRoPE-LD, linearly dependent (paper, Eq. 10): B_ij = θ_ij (P_j − P_jᵀ), θ per axis, head and block.

    Parameters: `base_matrices` P, (H, m, b, b), and `axis_scale` θ, (N, H, m), which starts standard normal.
    """

    def __init__(self, num_heads: int, head_dim: int, num_axes: int, block_size: int = 8, **keywords: Any):
        super().__init__(num_heads, head_dim, num_axes, block_size, **keywords)
        self.axis_scale: nn.Parameter = nn.Parameter(
            torch.empty(num_axes, num_heads, self.num_blocks, **self.factory_kwargs)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self._reset_base_matrices()
        if self.init == "rope":
            self.axis_scale.copy_(self._axis_mask().expand_as(self.axis_scale))
        else:
            self.axis_scale.normal_()

    def _scale(self) -> Tensor:
        return self.axis_scale

    def _fit_scale(self, frequencies):
        # θ is the direction of the frequencies of the fastest plane. A block of zero frequencies keeps its θ.
        plane = frequencies.norm(dim=0).argmax(-1, keepdim=True)  # (H, m, 1)
        largest = frequencies.gather(-1, plane.expand(self.num_axes, -1, -1, -1)).squeeze(-1)  # (N, H, m)
        size = largest.norm(dim=0)
        return torch.where(size > 0, largest / size, self.axis_scale.double())

    def _set_scale(self, scale):
        self.axis_scale.copy_(scale)


class ComRoPEMT(LearnedEncoding, SpectralEncoding):
    """ComRoPE-MT, maximal torus: a free orthogonal basis and free frequencies in each head and block.

    Skew-symmetric matrices commute if and only if one orthogonal basis brings all of them to 2 × 2 diagonal blocks. So MT
    contains every commuting encoding: `set_spectrum` reaches AP, LD, STRING, RoPE-Mixed and RoPE. The basis is
    Q = Q₀ · Cayley(G − Gᵀ) with a constant Q₀ and G = 0 initially, so that training can start from any Q.

    Parameters: `basis_generator` G, (H, m, b, b), and `frequencies` ω, (N, H, m, b/2). Buffer: `initial_basis` Q₀.
    init="normal" sets Q₀ and ω to the spectrum of a random LD.
    """

    initial_basis: Tensor

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        block_size: int = 8,
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
        self.basis_generator: nn.Parameter = self._block_parameter()
        self.frequencies: nn.Parameter = self._frequency_parameter()
        self.register_buffer("initial_basis", torch.empty_like(self.basis_generator))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.basis_generator.zero_()
        if self.init == "rope":
            self.initial_basis.copy_(torch.eye(self.block_size, device=self.device))
            self._reset_frequencies(self.frequencies)
        elif not self.initial_basis.is_meta:
            basis, frequencies = decompose(skew(torch.randn_like(self.initial_basis) * (self.std or 1.0)))
            scale = torch.randn_like(self.frequencies[..., :1])
            self.initial_basis.copy_(basis)
            self.frequencies.copy_(frequencies * scale * (self.init == "normal" and self.std > 0))

    def _set_spectrum(self, basis, frequencies):
        self.basis_generator.zero_()
        self.initial_basis.copy_(basis)
        self.frequencies.copy_(frequencies)

    def spectrum_inputs(self) -> tuple[Tensor, ...]:
        return self.initial_basis, self.basis_generator, self.frequencies.transpose(0, 1)

    @classmethod
    def spectrum_from(cls, *inputs: Tensor) -> tuple[Tensor | None, Tensor]:
        initial_basis, generator, frequencies = inputs
        return orthonormalise(initial_basis) @ cayley(skew(generator.double())), frequencies.transpose(0, 1)


class String(LearnedEncoding, SpectralEncoding):
    """Cayley-STRING (arXiv 2502.02562): RoPE in the learned basis Q = (I − S)(I + S)⁻¹, S = G − Gᵀ.

    By default a block is a whole head (block_size=head_dim).

    Args:
        learn_frequencies: True learns ω too, as in the paper. False keeps ω constant, and requires init="rope".

    Parameters: `basis_generator` G, (H, m, b, b), and `frequencies` ω, (N, H, m, b/2), without a gradient if
    not learned.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        block_size: int | None = None,
        *,
        init: str = "normal",
        std: float | None = None,
        base: float | None = None,
        max_frequency: float | None = None,
        directions: str | None = None,
        learn_frequencies: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        block_size = head_dim if block_size is None else block_size
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)
        self._configure_init(init, std, base, max_frequency, directions)
        check_flag(learn_frequencies=learn_frequencies)
        if not learn_frequencies and init != "rope":
            raise ConfigurationError(f"learn_frequencies=False with init={init!r}: fixed frequencies want init='rope'.")
        self.basis_generator: nn.Parameter = self._block_parameter()
        self.frequencies: nn.Parameter = self._frequency_parameter()
        self.frequencies.requires_grad_(learn_frequencies)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.init == "normal":
            self.basis_generator.normal_(0, self.std)
        else:
            self.basis_generator.zero_()
        self._reset_frequencies(self.frequencies)

    def spectrum_inputs(self) -> tuple[Tensor, ...]:
        return self.basis_generator, self.frequencies.transpose(0, 1)

    @classmethod
    def spectrum_from(cls, *inputs: Tensor) -> tuple[Tensor | None, Tensor]:
        generator, frequencies = inputs
        return cayley(skew(generator.double())), frequencies.transpose(0, 1)

    def _set_spectrum(self, basis, frequencies):
        eye = torch.eye(self.block_size, dtype=basis.dtype, device=basis.device)
        generator, failed = torch.linalg.solve_ex(eye + basis, eye - basis)  # the Cayley transform is its own inverse
        if failed.any() or (cayley(generator) - basis).abs().max() > 1e-6:
            raise ConfigurationError(
                "STRING's basis is a Cayley transform, which is no half turn and no mirror in any direction, and this one is. "
                "Use comrope-mt, which holds all that commute."
            )
        self.basis_generator.copy_(generator / 2)
        self.frequencies.copy_(frequencies)
