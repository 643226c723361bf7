"""Encodings whose angle matrices commute: a basis and frequencies give the rotation, of one layer or of all together."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from comrope._linalg import plane_generators, project_basis_gradient
from comrope.encodings.arguments import check_rotation_dtype
from comrope.encodings.base import Encoding
from comrope.errors import InputError
from comrope.rotation import Rotation, Spectrum


class SpectralEncoding(Encoding):
    """An encoding whose angle matrices commute: they have one basis, and frequencies for each axis.

    Subclasses define `spectrum_inputs` and `spectrum_from`, which are two so that the spectra of all layers of a model are
    computed together. One with constant frequencies and no basis derives from `FixedFrequencies` and fills it in its
    constructor; one that learns free frequencies from a start of its own, from `RopeMixed`.
    """

    @property
    def gain(self) -> float:
        """The factor of attention scores: 1, unless `comrope.rescale` has set it on constant angles."""
        return 1.0

    @abstractmethod
    def spectrum_inputs(self) -> tuple[Tensor, ...]:
        """Returns the tensors that `spectrum_from` needs, such as parameters and buffers.

        The first dimension of each must be the heads: `rotations` concatenates the tensors of several layers along it.
        """

    @classmethod
    @abstractmethod
    def spectrum_from(cls, *inputs: Tensor) -> tuple[Tensor | None, Tensor]:
        """Returns the basis Q (H, m, b, b), or None for the identity, and the frequencies (N, H, m, b/2).

        The result must be differentiable in `inputs` and depend on nothing else. `inputs` may be those of several layers, and H
        is then the number of heads of all of them.
        """

    def _spectrum(self) -> tuple[Tensor | None, Tensor]:
        return self.spectrum_from(*self.spectrum_inputs())

    def spectrum(self) -> Spectrum:
        with torch.no_grad():
            basis, frequencies = self._spectrum()
            if basis is None:
                eye = torch.eye(self.block_size, device=frequencies.device)
                basis = eye.repeat(self.num_heads, self.num_blocks, 1, 1)
            return Spectrum(*(t.to(torch.float64, copy=True) for t in (basis, frequencies)))

    def positions_used(self, *positions: Tensor) -> tuple[Tensor, ...]:
        """Returns the positions that queries and keys are rotated at, given theirs, (L, N) or (B, L, N) each.

        They are the same, unless a subclass augments them in training, those of keys as those of queries. All layers of a model
        get what the first one of its class returns.
        """
        return positions

    def angle_matrices(self) -> Tensor:
        basis, frequencies = self._spectrum()
        generators = plane_generators(frequencies.double())
        return (generators if basis is None else basis @ generators @ basis.mT).to(self.dtype)

    def rotation(
        self, positions: Tensor, key_positions: Tensor | None = None, *, dtype: torch.dtype = torch.float32
    ) -> Rotation:
        """Returns what `forward` computes from the positions, for callers that have the projection weights.

        pe(q, k, x) is pe.rotation(x).rotate(q, k). An attention layer can apply the basis to its weights instead of tokens:

            rotation = pe.rotation(x)
            q, k = (F.linear(tokens, rotation.into_basis(w)) for w in (w_q, w_k))
            q, k = rotation.rotate(heads(q), heads(k), in_basis=True)

        Args:
            positions: as for `forward`.
            key_positions: as for `forward`.
            dtype: the dtype in which tokens will be rotated: float32, or float64 for float64 queries and keys.
        """
        return rotations([self], positions, key_positions, dtype=dtype)[0]

    @classmethod
    def _rotation_from(
        cls, inputs: tuple[Tensor, ...], positions: Tensor, key_positions: Tensor, dtype: torch.dtype
    ) -> Rotation:
        """Returns the rotation by the spectrum of `inputs` at checked positions."""
        basis, frequencies = cls.spectrum_from(*inputs)
        if basis is not None and basis.requires_grad:
            basis = project_basis_gradient(basis, frequencies.detach())
        phases = key_phases = plane_phases(frequencies, positions)
        if key_positions is not positions:
            key_phases = plane_phases(frequencies, key_positions)
        return Rotation.at((phases, key_phases), dtype, basis)


def plane_phases(frequencies: Tensor, positions: Tensor) -> Tensor:
    """Returns φ = ωᵀx, (..., L, H, D/2), float64, for frequencies (N, H, m, b/2) and positions (..., L, N)."""
    frequencies = frequencies.to(positions.device, torch.float64).flatten(2)
    return torch.einsum("...ln,nhp->...lhp", positions.double(), frequencies)


def rotations(
    encodings: Sequence[SpectralEncoding],
    positions: Tensor,
    key_positions: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> list[Rotation]:
    """Returns `SpectralEncoding.rotation` of every layer, computed together for all layers of the same class and sizes.

    The small operators of decompositions, phases and tables then run once instead of once per layer.

    Args:
        encodings: the encodings of the layers, in order.
        positions: as for `Encoding.forward`, the same in all layers.
        key_positions: likewise.
        dtype: the dtype in which tokens will be rotated: float32, or float64 for float64 queries and keys.
    Raises:
        InputError: an encoding that does not commute, another dtype, or positions that do not fit.
    Examples:
        >>> import comrope
        >>> layers = [comrope.encoding("comrope-mt", num_heads=2, head_dim=16, num_axes=2) for _ in range(12)]
        >>> len(rotations(layers, comrope.positions.grid((14, 14))))
        12
    """
    if not isinstance(encodings, Sequence) or not all(isinstance(pe, SpectralEncoding) for pe in encodings):
        raise InputError(f"encodings: got {encodings!r}, expected a list of encodings that commute.")
    check_rotation_dtype(dtype)
    groups: dict[tuple, list[int]] = {}
    for i, pe in enumerate(encodings):
        key = (type(pe), pe.head_dim, pe.num_axes, pe.block_size, pe.device, pe.dtype, pe.gain)
        groups.setdefault(key, []).append(i)
    by_layer: dict[int, Rotation] = {}
    for layers in groups.values():
        first = encodings[layers[0]]
        given = [first._check_positions(positions, "positions")]
        if key_positions is not None:
            given.append(first._check_positions(key_positions, "key_positions"))
        used = first.positions_used(*given)
        x, y = used[0], used[-1]
        together = tuple(
            torch.cat(each) for each in zip(*(encodings[i].spectrum_inputs() for i in layers), strict=True)
        )
        rotation = first._rotation_from(together, x, y, dtype).with_gain(first.gain)
        parts = rotation.split([encodings[i].num_heads for i in layers])
        by_layer.update(zip(layers, parts, strict=True))
    return [by_layer[i] for i in range(len(encodings))]
