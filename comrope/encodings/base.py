"""What every rotary encoding is: sizes, checked input, and three ways to look at its angles.

Parameters stay in float32 or float64 whatever the model is cast to, and nothing is cached: what follows from them is
worked out in each call.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from comrope import reference
from comrope._linalg import orthonormal, plane_generators, project_basis_gradient
from comrope._values import FARTHEST, described, is_floating, shape_of
from comrope.encodings.arguments import (
    check_parameter_dtype,
    check_positions,
    check_rope,
    check_sizes,
    check_std,
    check_turning_dtype,
)
from comrope.errors import ConfigurationError, InputError
from comrope.rotation import Rotation, Spectrum, compute_dtype

MOST_RADIANS = 1e9
"""That `matrix_exp` is asked for."""


class PreciseModule(nn.Module):
    """A module whose own tensors stay float32 or float64 when the model around it is cast to something coarser."""

    _dtypes: ClassVar = (torch.float32, torch.float64)
    """Casts to these are followed; any other leaves its tensors as they are."""
    _anchor: Tensor | None = None
    """Empty, and no part of the state: says where a module without parameters lives."""

    @property
    def device(self) -> torch.device:
        """Where the angles are."""
        return self._home().device

    @property
    def dtype(self) -> torch.dtype:
        """Of the angles: float32 or float64."""
        return self._home().dtype

    def _home(self) -> Tensor:
        parameter = next(self.parameters(), self._anchor)
        assert parameter is not None
        return parameter

    def _apply(self, fn, recurse=True):
        def precise(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.is_floating_point() and moved.dtype not in self._dtypes:
                return tensor.to(moved.device)
            return moved

        super()._apply(precise, recurse)
        if self._anchor is not None:
            self._anchor = precise(self._anchor)
        return self


class Encoding(PreciseModule, ABC):
    """A rotary encoding: R(x) = exp(Σ_i x_i A_i), A_i block-diagonal and skew-symmetric (paper, Eq. 3).

    Args:
        num_heads: H, heads that have angles of their own: the key/value heads. Queries may have a multiple of it
            (grouped-query attention): each group shares the rotation of its key head, or the RoPE equation would break.
        head_dim: D, features of a head.
        num_axes: N, coordinates of a position.
        block_size: b, the size of the diagonal blocks; even, and a divisor of head_dim. There are m = D/b blocks.
        device, dtype: of the parameters; dtype float32 or float64.
    Raises:
        ConfigurationError: sizes that do not fit together.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        block_size: int,
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
        self.num_blocks = head_dim // block_size
        self._factory = {"device": device, "dtype": dtype}
        anchor = torch.empty(0, **self._factory)
        self._anchor = torch.empty_like(anchor, device="cpu") if anchor.is_meta else anchor

    def forward(
        self, q: Tensor, k: Tensor, positions: Tensor, key_positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys turned by their positions: ⟨q'_i, k'_j⟩ = ⟨R(x_i)q_i, R(x_j)k_j⟩.

        Args:
            q: (B, H·g, L, D).
            k: (B, H, L, D).
            positions: (L, N), shared by the batch, or (B, L, N); float32, float64 or integers.
            key_positions: of the keys, where they differ from the queries' (cross-attention, part of a sequence).
        Returns:
            q and k, shapes and dtypes unchanged. Only inner products between them mean something: the commuting
            encodings leave out the basis change that queries and keys share.
        Raises:
            InputError: shapes that do not fit, positions that are NaN, infinite or of too low precision.
        """
        positions = self._check(q, "q", positions, "positions")
        if key_positions is None:
            key_positions = self._check(k, "k", positions, "positions")
        else:
            key_positions = self._check(k, "k", key_positions, "key_positions")
        if k.shape[1] != self.num_heads:
            raise InputError(f"k has {k.shape[1]} heads, but this encoding has num_heads={self.num_heads} key heads.")
        dtype = torch.promote_types(compute_dtype(q), k.dtype)
        return self.rotation(positions, key_positions, dtype=dtype).turn(q, k)

    @abstractmethod
    def rotation(
        self, positions: Tensor, key_positions: Tensor | None = None, *, dtype: torch.dtype = torch.float32
    ) -> Any:
        """What `forward` works out before it turns q and k: `.turn(q, k)`, or `.queries(q)` and `.keys(k)` one by one."""

    @abstractmethod
    def angle_matrices(self) -> Tensor:
        """B_ij: (N, H, m, b, b), skew-symmetric, radians per unit of position; differentiable in the parameters."""

    @abstractmethod
    def spectrum(self) -> Spectrum:
        """Basis (H, m, b, b) and frequencies (N, H, m, b/2), float64 values; NoSpectrumError where none exists."""

    def rotation_matrices(self, positions: Tensor) -> Tensor:
        """Dense R(x), (..., L, H, m, b, b), by matrix_exp in float64: for looking and testing, not for speed.

        Raises:
            InputError: positions that are none, or so far out that something turns by more than 1e9 radians, where matrix_exp
                is right to 1e-5 no more. `rotation` is.
        """
        positions, angles = self._check_positions(positions, "positions"), self.angle_matrices().double()
        found = reference.rotation_matrices(angles, positions)
        sizes = torch.linalg.matrix_norm(angles).flatten(1).amax(1)  # of each axis, an upper bound
        if not found.is_meta and (positions.double().abs() @ sizes > MOST_RADIANS).any():
            raise InputError(
                f"positions: some turn by more than {MOST_RADIANS:g} radians, where matrix_exp is not right any more: expected "
                "nearer ones, or use rotation(positions), which is right anywhere."
            )
        return found.to(self.dtype)

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, head_dim={self.head_dim}, num_axes={self.num_axes}, "
            f"block_size={self.block_size}"
        )

    def _check(self, x: Tensor, name: str, positions: Tensor, positions_name: str) -> Tensor:
        positions = self._check_positions(positions, positions_name)
        given = isinstance(x, Tensor) and not x.is_nested
        if not given or x.ndim != 4 or x.shape[1] % self.num_heads or x.shape[3] != self.head_dim:
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
        positions = check_positions(positions, name, self.num_axes)
        own = next((p.device for p in self.parameters()), positions.device)
        if positions.device != own:
            raise InputError(f"{name} are on {positions.device} and the angles on {own}: move all to one.")
        return positions

    def _rope_frequencies(self, base: float, max_frequency: float) -> Tensor:
        """Vanilla RoPE's ω (paper, section 3) in radians per unit, (N, H, m, b/2), float64.

        Plane p turns with axis p mod N only, at the (p div N)-th of the frequencies ω_max·base^(−2N·j/D), j = 0 … D/2N − 1.
        """
        planes = torch.arange(self.head_dim // (2 * self.num_axes), dtype=torch.float64, device=self.device)
        on_axis = max_frequency * base ** (-2 * self.num_axes * planes / self.head_dim)  # (D/2N,)
        eye = torch.eye(self.num_axes, dtype=torch.float64, device=self.device)
        frequencies = torch.einsum("j,ni->nji", on_axis, eye).reshape(self.num_axes, 1, self.num_blocks, -1)
        return frequencies.expand(-1, self.num_heads, -1, -1)


class SpectralEncoding(Encoding):
    """An encoding whose angle matrices commute: one basis, and frequencies on each axis."""

    @abstractmethod
    def _ingredients(self) -> tuple[Tensor, ...]:
        """What the spectrum is made of, heads first, so that those of several layers can be put together."""

    @classmethod
    @abstractmethod
    def _spectrum_of(cls, *ingredients: Tensor) -> tuple[Tensor | None, Tensor]:
        """Basis, or None for the identity, and frequencies (N, H, m, b/2). Differentiable, but for a decomposed basis."""

    def _spectrum(self) -> tuple[Tensor | None, Tensor]:
        return self._spectrum_of(*self._ingredients())

    def spectrum(self) -> Spectrum:
        with torch.no_grad():
            basis, frequencies = self._spectrum()
            if basis is None:
                eye = torch.eye(self.block_size, device=frequencies.device)
                basis = eye.repeat(self.num_heads, self.num_blocks, 1, 1)
            return Spectrum(*(t.to(torch.float64, copy=True) for t in (basis, frequencies)))

    def angle_matrices(self) -> Tensor:
        basis, frequencies = self._spectrum()
        generators = plane_generators(frequencies.double())
        return (generators if basis is None else basis @ generators @ basis.mT).to(self.dtype)

    def rotation(
        self, positions: Tensor, key_positions: Tensor | None = None, *, dtype: torch.dtype = torch.float32
    ) -> Rotation:
        """What `forward` works out before it turns q and k, for callers that hold the projections too.

        pe(q, k, x) is pe.rotation(x).turn(q, k). An attention layer can move the basis into its weights instead:

            rotation = pe.rotation(x)
            q, k = (F.linear(tokens, rotation.into_basis(w)) for w in (w_q, w_k))
            q, k = rotation.turn(heads(q), heads(k), in_basis=True)

        Args:
            positions, key_positions: as for `forward`.
            dtype: in which tokens will be turned: float32, or float64 for float64 queries and keys.
        """
        return rotations([self], positions, key_positions, dtype=dtype)[0]

    @classmethod
    def _rotation_of(
        cls, ingredients: tuple[Tensor, ...], positions: Tensor, key_positions: Tensor, dtype: torch.dtype
    ) -> Rotation:
        basis, frequencies = cls._spectrum_of(*ingredients)
        if basis is not None and basis.requires_grad:
            basis = project_basis_gradient(basis, frequencies.detach())
        frequencies = frequencies.to(positions.device, torch.float64).flatten(2)  # (N, H, D/2)
        phases = key_phases = torch.einsum("...ln,nhp->...lhp", positions.double(), frequencies)
        if key_positions is not positions:
            key_phases = torch.einsum("...ln,nhp->...lhp", key_positions.double(), frequencies)
        return Rotation.at((phases, key_phases), dtype, basis)


def rotations(
    encodings: Sequence[SpectralEncoding],
    positions: Tensor,
    key_positions: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> list[Rotation]:
    """`SpectralEncoding.rotation` of every layer of a model, worked out together where they are of a kind.

    The small operators of decompositions, phases and tables then run once and not once a layer.

    Args:
        encodings: of the layers, in order.
        positions, key_positions: as for `Encoding.forward`, the same in all layers.
        dtype: in which tokens will be turned: float32, or float64 for float64 queries and keys.
    """
    if not isinstance(encodings, Sequence) or not all(isinstance(pe, SpectralEncoding) for pe in encodings):
        raise InputError(f"encodings: got {encodings!r}, expected a list of encodings that commute.")
    check_turning_dtype(dtype)
    kinds: dict[tuple, list[int]] = {}
    for i, pe in enumerate(encodings):
        kind = (type(pe), pe.head_dim, pe.num_axes, pe.block_size, pe.device, pe.dtype)
        kinds.setdefault(kind, []).append(i)
    found: dict[int, Rotation] = {}
    for layers in kinds.values():
        first = encodings[layers[0]]
        x = first._check_positions(positions, "positions")
        y = x if key_positions is None else first._check_positions(key_positions, "key_positions")
        together = tuple(torch.cat(each) for each in zip(*(encodings[i]._ingredients() for i in layers), strict=True))
        parts = first._rotation_of(together, x, y, dtype).split([encodings[i].num_heads for i in layers])
        found.update(zip(layers, parts, strict=True))
    return [found[i] for i in range(len(encodings))]


class LearnedEncoding(Encoding):
    """An encoding with parameters, and how they start.

    Args:
        init: "normal" draws parameters with standard deviation `std` (1, as released for the paper), so that elements of
            the skew-symmetric matrices have √2·std. "identity" starts at zero angles: attention as it was, with gradients
            that are true and not zero. "rope" starts as vanilla RoPE with `base` and `max_frequency`: plane p on axis p mod N.
        std: for "normal"; 1 by default.
        base: for "rope"; 10000 by default.
        max_frequency: for "rope": of its fastest planes, in radians per unit of position; 1 by default. On relative positions
            so many radians a canvas: 14 on a grid of 14 × 14 is RoPE that counts patches.
    """

    def _configure_init(self, init: str, std: float | None, base: float | None, max_frequency: float | None) -> None:
        if not isinstance(init, str) or init not in ("normal", "identity", "rope"):
            raise ConfigurationError(f"init={init!r}: expected 'normal', 'identity' or 'rope'.")
        given = (("std", std, "normal"), ("base", base, "rope"), ("max_frequency", max_frequency, "rope"))
        for name, value, owner in given:
            if value is not None and init != owner:
                raise ConfigurationError(
                    f"{name}={value!r} has no use with init={init!r}: leave it out, or init={owner!r}."
                )
        self.init = init
        self.std = 1.0 if std is None else check_std(std)
        self.base = 10000.0 if base is None else base
        self.max_frequency = 1.0 if max_frequency is None else max_frequency
        if init == "rope":
            self.base, self.max_frequency = check_rope(self.base, self.max_frequency, self.head_dim, self.num_axes)

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draws the parameters anew, as `init` says, from torch's random generator."""

    @torch.no_grad()
    def set_spectrum(self, basis: Tensor | None, frequencies: Tensor) -> None:
        """Goes to the angles of a commuting encoding: `pe.set_spectrum(*other.spectrum())`.

        Args:
            basis: Q, (H, m, b, b), orthogonal; None for the identity.
            frequencies: ω, (N, H, m, b/2), radians per unit of position.
        Raises:
            InputError: other shapes, values that are not finite, or a basis that is not orthogonal.
            ConfigurationError: angles that this family does not hold. Nothing has changed then, in either case.
        """
        b = self.block_size
        blocks = (self.num_heads, self.num_blocks)
        expected = {"basis": (*blocks, b, b), "frequencies": (self.num_axes, *blocks, b // 2)}
        for (name, own), came in zip(expected.items(), (basis, frequencies), strict=True):
            if not isinstance(came, Tensor) and not (came is None and name == "basis"):
                raise InputError(f"{name}: got {type(came).__name__}, expected a tensor {own}.")
            if came is not None and (came.is_nested or came.shape != own):
                raise InputError(f"{name}: got {shape_of(came)}, expected {own}.")
            if came is not None and (not is_floating(came) or came.is_meta):
                raise InputError(
                    f"{name}: got {described(came)}; expected floating-point numbers of 16 bits or more in a dense tensor."
                )
            if came is not None and not (came.abs() <= FARTHEST).all():
                raise InputError(
                    f"{name}: some values are NaN or infinite, or beyond {FARTHEST:g}: expected finite ones."
                )
        eye = torch.eye(b, dtype=torch.float64, device=self.device)
        basis = eye.repeat(*blocks, 1, 1) if basis is None else basis.to(self.device, torch.float64)
        defect = (basis.mT @ basis - eye).abs().max().item()
        if not defect < 1e-4:
            raise InputError(f"basis: QᵀQ is {defect:.1e} away from the identity, expected an orthogonal matrix.")
        self._set_spectrum(orthonormal(basis), frequencies.to(self.device, torch.float64))

    def _set_spectrum(self, basis: Tensor, frequencies: Tensor) -> None:
        """Sets the parameters, from float64; ConfigurationError where the family does not hold the angles."""
        raise ConfigurationError(
            f"{type(self).__name__} has no spectrum to be set: its angle matrices need not commute."
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, init={self.init!r}"

    def _blocks(self, *leading: int) -> nn.Parameter:
        shape = (*leading, self.num_heads, self.num_blocks, self.block_size, self.block_size)
        return nn.Parameter(torch.empty(shape, **self._factory))

    def _frequencies(self) -> nn.Parameter:
        shape = (self.num_axes, self.num_heads, self.num_blocks, self.block_size // 2)
        return nn.Parameter(torch.empty(shape, **self._factory))

    def _reset_frequencies(self, frequencies: Tensor) -> None:
        if self.init == "normal":
            frequencies.normal_(0, math.sqrt(2) * self.std)
        elif self.init == "identity":
            frequencies.zero_()
        else:
            frequencies.copy_(self._rope_frequencies(self.base, self.max_frequency))
