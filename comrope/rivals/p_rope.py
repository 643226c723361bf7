"""p-RoPE: RoPE without its slowest planes."""

from typing import Any, ClassVar

from comrope._values import is_number
from comrope.encodings import FixedFrequencies, register
from comrope.encodings.arguments import check_even_planes, check_positive
from comrope.errors import ConfigurationError
from comrope.rivals._frequencies import along_axes, geometric_speeds


@register("p-rope", label="p-RoPE", about="RoPE of which the slowest planes do not rotate")
class ProportionalRoPE(FixedFrequencies):
    """p-RoPE: RoPE of which only the fastest planes, a share p, rotate; the others have frequency 0, and carry content alone.

    ω_i = ω_max·base^(−2i/D) for i < pD/2, else 0; N axes have D/2N planes each, one axis after the other, and each loses its
    slowest. p = 1 is RoPE, p = 0 is no encoding. Source: arXiv 2410.06205 (ICLR 2025); "proportional" in transformers, which
    rounds down as here. It claims a slightly lower perplexity at p = 0.75 than RoPE. A spectrum. Nothing is learned or random.
    It is not PRoPE, which encodes cameras.

    Args:
        fraction: p.
        base: ratio of the fastest to (nearly) the slowest speed at p = 1.
        max_frequency: ω_max, in radians per unit of position.
        sizes: as for `FixedFrequencies`.
    """

    published_speed: ClassVar[float] = 1.0

    def __init__(
        self,
        *,
        fraction: float = 0.75,
        base: float = 10000.0,
        max_frequency: float = published_speed,
        **sizes: Any,
    ):
        super().__init__(**sizes)
        if not is_number(fraction, 0, 1):
            raise ConfigurationError(f"fraction={fraction!r}: expected a share of the planes, 0 to 1.")
        base, max_frequency = check_positive(base=base, max_frequency=max_frequency)
        count = check_even_planes("p-RoPE", self.head_dim, self.num_axes)
        speeds = geometric_speeds(max_frequency, base, count)
        speeds[int(fraction * count) :] = 0
        self.set_frequencies(along_axes(speeds, self.num_axes))
