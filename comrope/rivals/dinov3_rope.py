"""The RoPE of DINOv3: axial RoPE, with coordinates that are augmented in training."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from comrope._values import is_number
from comrope.encodings import FixedFrequencies, register
from comrope.encodings.arguments import check_even_planes, check_positive
from comrope.errors import ConfigurationError
from comrope.rivals._frequencies import along_axes, geometric_speeds


@register(
    "dinov3-rope",
    label="DINOv3's RoPE",
    about="fixed axial frequencies on coordinates that training shifts, stretches and rescales at random",
)
class DINOv3RoPE(FixedFrequencies):
    """The RoPE of DINOv3: axial, on coordinates relative to the image, which training augments.

    The first half of the planes rotates along rows and the second along columns, at ω_j = ω_max·base^(−4j/D); N axes in the
    same way. Source: arXiv 2508.10104, facebookresearch/dinov3. It claims that rescaling makes a model robust to resolution,
    scale and aspect ratio. A spectrum. Nothing is learned.

    In training mode every forward pass draws x ↦ r·j∘(x + s), from torch's default generator on the device of the positions: s
    uniform in [−shift, shift] and j log-uniform in [1/jitter, jitter], both for each axis, and r log-uniform in [1/rescale,
    rescale]. All layers of a model get the same draw, unless their tables together have more than 2²⁴ numbers: then each draws
    its own. Class tokens move with the patches here, and stay where they are in DINOv3. So a shift, which changes no difference
    of positions, here changes no score.

    DINOv3 puts patch centres in [−1, 1], each axis by its own size, and has ω = 2π/period, periods 1 to (nearly) 100. That is
    max_frequency=4π on relative positions; the default is the same on 14 × 14 patches.

    Args:
        base: ratio of the longest to the shortest period.
        max_frequency: ω_max, in radians per unit of position.
        min_frequency: if given, speeds go from the fastest to this one, both included, and `base` is not used.
        shift: the largest shift in training, in units of position; 0 for none.
        jitter: the largest factor on single axes in training, 1 or more; 1 for none.
        rescale: the largest factor on all axes in training; 1 for none. DINOv3's 7B model trains with 2, and nothing else.
        sizes: as for `FixedFrequencies`.
    """

    published_speed: ClassVar[float] = 4 * math.pi / 14

    def __init__(
        self,
        *,
        base: float = 100.0,
        max_frequency: float = published_speed,
        min_frequency: float | None = None,
        shift: float = 0.0,
        jitter: float = 1.0,
        rescale: float = 1.0,
        **sizes: Any,
    ):
        super().__init__(**sizes)
        base, max_frequency = check_positive(base=base, max_frequency=max_frequency)
        count = check_even_planes("axial RoPE", self.head_dim, self.num_axes)
        if min_frequency is not None:
            (min_frequency,) = check_positive(min_frequency=min_frequency)
            base = (max_frequency / min_frequency) ** (count / max(count - 1, 1))
        for name, value, least in (("shift", shift, 0), ("jitter", jitter, 1), ("rescale", rescale, 1)):
            if not is_number(value, least):
                raise ConfigurationError(
                    f"{name}={value!r}: expected a finite number, {least} or more; {least} is none."
                )
        self.shift: float = float(shift)
        self.jitter: float = float(jitter)
        self.rescale: float = float(rescale)
        self.set_frequencies(along_axes(geometric_speeds(max_frequency, base, count), self.num_axes))

    def positions_used(self, *positions: Tensor) -> tuple[Tensor, ...]:
        if not self.training or (self.shift, self.jitter, self.rescale) == (0, 1, 1):
            return positions

        def uniform(bound: float, count: int) -> Tensor:
            return torch.empty(count, dtype=torch.float64, device=positions[0].device).uniform_(-bound, bound)

        moved = uniform(self.shift, self.num_axes)
        scale = (uniform(math.log(self.jitter), self.num_axes) + uniform(math.log(self.rescale), 1)).exp()
        return tuple(scale * (each.double() + moved) for each in positions)
