"""VideoRoPE: slow planes for time, and rows and columns that move along with it."""

from typing import Any, ClassVar

import torch

from comrope._values import is_whole
from comrope.encodings import FixedFrequencies, register
from comrope.encodings.arguments import check_positive
from comrope.errors import ConfigurationError
from comrope.rivals._frequencies import geometric_speeds


@register(
    "video-rope",
    label="VideoRoPE",
    about="fixed frequencies: the slowest planes along time, the others along time plus row, or time plus column",
)
class VideoRoPE(FixedFrequencies):
    """VideoRoPE: with τ = δ·frame, the slowest planes rotate by ω_i·τ, the others by ω_i(τ + row) or ω_i(τ + column).

    Source: arXiv 2502.05173 (ICML 2025), Wiselnn570/VideoRoPE. It claims better retrieval from long videos than M-RoPE. A
    spectrum, oblique on (frame, row, column). Nothing is learned or random. ω_i = ω_max·base^(−2i/D), as in 1-D RoPE.

    The code gives tokens the ids (τ, τ + row − centre, τ + column − centre) and each plane one of them: the same angles, up to
    constants that cancel. The paper puts text before and after a video at equal ids, (p, p, p); here all tokens have positions
    of frames. With two axes, (row, column), planes of time do not rotate; with one, positions p stand for (p, p, p).

    Args:
        temporal_planes: the number of planes of time, the slowest; a quarter of all if None, the 16 of 64 of the paper.
        time_scale: δ, rows for each frame.
        base: ratio of the fastest to (nearly) the slowest speed.
        max_frequency: ω_max, in radians per unit of position.
        sizes: as for `FixedFrequencies`.
    """

    published_speed: ClassVar[float] = 1.0

    def __init__(
        self,
        *,
        temporal_planes: int | None = None,
        time_scale: float = 2.0,
        base: float = 1e6,
        max_frequency: float = published_speed,
        **sizes: Any,
    ):
        super().__init__(**sizes)
        num_planes = self.head_dim // 2
        temporal_planes = num_planes // 4 if temporal_planes is None else temporal_planes
        if self.num_axes > 3:
            raise ConfigurationError(
                f"num_axes={self.num_axes}: VideoRoPE has (frame, row, column), (row, column) or 1."
            )
        if not is_whole(temporal_planes, 0, num_planes):
            raise ConfigurationError(
                f"temporal_planes={temporal_planes!r}: expected a whole number, 0 to {num_planes}."
            )
        base, fastest, delta = check_positive(base=base, max_frequency=max_frequency, time_scale=time_scale)
        plane = torch.arange(num_planes, device="cpu")
        spatial = plane < num_planes - temporal_planes
        along_rows, along_columns = spatial & (plane % 2 == 0), spatial & (plane % 2 == 1)
        along_time = torch.ones_like(spatial) if self.num_axes == 3 else ~spatial
        of_video = torch.stack((along_time.double() * delta, along_rows.double(), along_columns.double()))
        used = torch.ones_like(of_video[:1]) if self.num_axes == 1 else of_video[-self.num_axes :]
        self.set_frequencies(geometric_speeds(fastest, base, num_planes) * used)
