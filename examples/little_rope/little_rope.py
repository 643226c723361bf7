"""A rotary encoding of one's own: planes rotate at RoPE's speeds, and learn along which direction of the image."""

import math

import torch
from torch import Tensor, nn

import comrope
from comrope.encodings import SpectralEncoding


@comrope.register("compass-rope", label="Compass RoPE", about="RoPE's speeds, along directions that are learned")
class CompassRope(SpectralEncoding):
    """ω_p = s_p (cos α_p, sin α_p): speeds s_p fall from `max_frequency` by `base`, angles α_p are learned. For two axes.

    Parameter: `angles` α, (H, D/2), drawn evenly over the half circle.
    """

    def __init__(self, *, max_frequency: float = 1.0, base: float = 100.0, **sizes):
        super().__init__(**sizes)
        if self.num_axes != 2:
            raise comrope.errors.ConfigurationError(f"num_axes={self.num_axes}: compass-rope has directions in 2 axes.")
        self.max_frequency, self.base = max_frequency, base
        directions = torch.rand(self.num_heads, self.head_dim // 2, **self.factory_kwargs)
        self.angles = nn.Parameter(math.pi * directions)

    def spectrum_inputs(self) -> tuple[Tensor, ...]:
        """Returns tensors with the heads first, all that the spectrum is computed from."""
        powers = torch.linspace(0, 1, self.head_dim // 2, dtype=torch.float64, device=self.device)
        speeds = self.max_frequency * self.base**-powers
        shape = (self.num_heads, self.num_blocks, self.block_size // 2)
        return self.angles.double().view(shape), speeds.view(1, *shape[1:]).expand(shape)

    @classmethod
    def spectrum_from(cls, *inputs: Tensor) -> tuple[None, Tensor]:
        """Returns no basis, and the frequencies (2, H, m, b/2)."""
        angles, speeds = inputs
        return None, torch.stack((speeds * angles.cos(), speeds * angles.sin()))
