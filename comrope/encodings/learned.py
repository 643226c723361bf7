"""Encodings with learned angles: how they start, and how they are set to given angles."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from comrope._linalg import orthonormalise
from comrope._values import FARTHEST, described, is_floating, shape_of
from comrope.encodings.arguments import check_directions, check_positive, check_rope, check_std
from comrope.encodings.base import Encoding
from comrope.errors import ConfigurationError, InputError


class LearnedEncoding(Encoding):
    """An encoding with learned angles.

    Args:
        init: the initial angles. "normal" draws parameters with standard deviation `std`, so that elements of the
            skew-symmetric matrices have √2·std. "identity" starts at zero angles: attention is unchanged, and gradients are
            exact and not zero. "rope" starts as vanilla RoPE with `base` and `max_frequency`, plane p on axis p mod N.
        std: for "normal"; 1 by default, as in the paper's released code.
        base: for "rope"; 10000 by default.
        max_frequency: for "rope": the largest frequency, in radians per unit of position; 1 by default. Relative positions
            extend over 1 unit: there max_frequency=14 on a grid of 14 × 14 is RoPE on patch indices.
        directions: for "rope", of encodings that can rotate neighbouring planes along different directions: "axes" or "spread",
            see `Rope`; "axes" by default.

    Subclasses call `_configure_init` in their constructor, and define `reset_parameters` and `_set_spectrum`. One with a random
    start of its own names the settings of that start in `normal_settings`.
    """

    normal_settings: ClassVar[Mapping[str, float]] = {"std": 1.0}
    """The settings that init="normal" takes, of `std`, `base` and `max_frequency`, with their defaults."""

    def _configure_init(
        self,
        init: str,
        std: float | None,
        base: float | None,
        max_frequency: float | None,
        directions: str | None = None,
    ) -> None:
        """Checks the arguments and stores them as attributes, with defaults for None."""
        of_rope = {"base": 10000.0, "max_frequency": 1.0, "directions": "axes"}
        starts: dict[str, Mapping] = {"normal": self.normal_settings, "identity": {}, "rope": of_rope}
        if not isinstance(init, str) or init not in starts:
            raise ConfigurationError(f"init={init!r}: expected 'normal', 'identity' or 'rope'.")
        given = {"std": std, "base": base, "max_frequency": max_frequency, "directions": directions}
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in given.items():
            if name not in starts[init]:
                owners = [f", or init={each!r}" for each, settings in starts.items() if name in settings]
                raise ConfigurationError(
                    f"{name}={value!r} has no use with init={init!r}: leave it out{''.join(owners)}."
                )
        settings = {"std": 1.0, **of_rope, **starts[init], **given}
        self.init = init
        self.std: float = check_std(settings["std"])
        self.directions: str = check_directions(settings["directions"])
        self.base: float
        self.max_frequency: float
        self.base, self.max_frequency = check_positive(base=settings["base"], max_frequency=settings["max_frequency"])
        if init == "rope":
            check_rope(self.base, self.max_frequency, self.head_dim, self.num_axes)

    @abstractmethod
    def reset_parameters(self) -> None:
        """Sets the parameters to a new start as `init` says, drawing from torch's default random generator."""

    @torch.no_grad()
    def set_spectrum(self, basis: Tensor | None, frequencies: Tensor) -> None:
        """Sets the parameters to the angles of a commuting encoding: `pe.set_spectrum(*other.spectrum())`.

        Args:
            basis: Q, (H, m, b, b), orthogonal; None for the identity.
            frequencies: ω, (N, H, m, b/2), radians per unit of position.
        Raises:
            InputError: wrong shapes, values that are not finite, or a basis that is not orthogonal.
            ConfigurationError: angles that this encoding cannot represent. After either error the parameters are unchanged.
        """
        b = self.block_size
        blocks = (self.num_heads, self.num_blocks)
        shapes = {"basis": (*blocks, b, b), "frequencies": (self.num_axes, *blocks, b // 2)}
        for (name, shape), value in zip(shapes.items(), (basis, frequencies), strict=True):
            if not isinstance(value, Tensor) and not (value is None and name == "basis"):
                raise InputError(f"{name}: got {type(value).__name__}, expected a tensor {shape}.")
            if value is not None and (value.is_nested or value.shape != shape):
                raise InputError(f"{name}: got {shape_of(value)}, expected {shape}.")
            if value is not None and (not is_floating(value) or value.is_meta):
                raise InputError(
                    f"{name}: got {described(value)}; expected floating-point numbers of 16 bits or more in a dense tensor."
                )
            if value is not None and not (value.abs() <= FARTHEST).all():
                raise InputError(
                    f"{name}: some values are NaN or infinite, or beyond {FARTHEST:g}: expected finite ones."
                )
        eye = torch.eye(b, dtype=torch.float64, device=self.device)
        basis = eye.repeat(*blocks, 1, 1) if basis is None else basis.to(self.device, torch.float64)
        defect = (basis.mT @ basis - eye).abs().max().item()
        if not defect < 1e-4:
            raise InputError(f"basis: QᵀQ is {defect:.1e} away from the identity, expected an orthogonal matrix.")
        self._set_spectrum(orthonormalise(basis), frequencies.to(self.device, torch.float64))

    def _set_spectrum(self, basis: Tensor, frequencies: Tensor) -> None:
        """Sets the parameters to a checked float64 spectrum; ConfigurationError if the encoding cannot represent it.

        The default is for encodings that cannot represent any.
        """
        raise ConfigurationError(
            f"{type(self).__name__} has no spectrum to be set: its angle matrices need not commute."
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, init={self.init!r}"

    def _block_parameter(self, *leading: int) -> nn.Parameter:
        """Returns an uninitialised parameter of shape (*leading, H, m, b, b)."""
        shape = (*leading, self.num_heads, self.num_blocks, self.block_size, self.block_size)
        return nn.Parameter(torch.empty(shape, **self.factory_kwargs))

    def _frequency_parameter(self) -> nn.Parameter:
        """Returns an uninitialised parameter of shape (N, H, m, b/2)."""
        shape = (self.num_axes, self.num_heads, self.num_blocks, self.block_size // 2)
        return nn.Parameter(torch.empty(shape, **self.factory_kwargs))

    def _reset_frequencies(self, frequencies: Tensor) -> None:
        """Sets free frequencies to a new start as `init` says."""
        if self.init == "normal":
            frequencies.normal_(0, math.sqrt(2) * self.std)
        elif self.init == "identity":
            frequencies.zero_()
        else:
            frequencies.copy_(self._rope_frequencies(self.base, self.max_frequency, self._directions(self.directions)))
