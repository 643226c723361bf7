"""M-RoPE of Qwen2-VL and interleaved M-RoPE of Qwen3-VL: the planes of 1-D RoPE, dealt to time, rows and columns."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from comrope._values import is_whole
from comrope.encodings import FixedFrequencies, register
from comrope.encodings.arguments import check_positive
from comrope.errors import ConfigurationError
from comrope.rivals._frequencies import geometric_speeds


@register("m-rope", label="M-RoPE", about="the planes of 1-D RoPE, each along one of time, row and column")
class MRoPE(FixedFrequencies):
    """M-RoPE: plane i rotates at ω_i = ω_max·base^(−2i/D), as in 1-D RoPE, along one of (t, row, column).

    Sources: arXiv 2409.12191 (Qwen2-VL), 2510.23095 (Multimodal-RoPEs), `Qwen2VL` and `Qwen3VL` of transformers. It claims
    that text at (p, p, p) has exactly 1-D RoPE, so that a language model takes images; interleaved is claimed better than
    chunked. A spectrum. Nothing is learned or random.

    With two axes, (row, column), planes of time do not rotate, as at t = 0; with one, positions p stand for (p, p, p).
    Which position ids a model gives its tokens is no part of the encoding: vision starts at the p after the text, (p +
    frame, p + row, p + column), and text goes on at the largest id plus 1.

    Args:
        layout: "chunked": the fastest planes are those of t, the slowest those of the columns. "interleaved": planes 1, 4, 7, …
            are those of rows and 2, 5, 8, … those of columns, as many as the sections say; the others those of t.
        sections: planes of t, rows and columns, which sum to D/2. If None, the shares of the publications: 16 : 24 : 24, or
            24 : 20 : 20 for "interleaved".
        base: 10⁶ as in Qwen2-VL; checkpoints of Qwen3-VL have 5·10⁶.
        max_frequency: ω_max, in radians per unit of position.
        sizes: as for `FixedFrequencies`.
    """

    published_speed: ClassVar[float] = 1.0

    def __init__(
        self,
        *,
        layout: str = "chunked",
        sections: Sequence[int] | None = None,
        base: float = 1e6,
        max_frequency: float = published_speed,
        **sizes: Any,
    ):
        super().__init__(**sizes)
        if self.num_axes > 3:
            raise ConfigurationError(f"num_axes={self.num_axes}: M-RoPE has (t, row, column), (row, column) or 1.")
        base, max_frequency = check_positive(base=base, max_frequency=max_frequency)
        num_planes = self.head_dim // 2
        axis = plane_axes(num_planes, layout, sections)
        speeds = geometric_speeds(max_frequency, base, num_planes)
        of_video = speeds * torch.nn.functional.one_hot(axis, 3).T  # (3, D/2)
        self.set_frequencies(of_video.sum(0, keepdim=True) if self.num_axes == 1 else of_video[-self.num_axes :])


def plane_axes(num_planes: int, layout: str = "chunked", sections: Sequence[int] | None = None) -> Tensor:
    """Returns the axis of each plane in M-RoPE, (D/2,): 0 for t, 1 for rows, 2 for columns. Arguments as for `MRoPE`."""
    if layout not in ("chunked", "interleaved"):
        raise ConfigurationError(f"layout={layout!r}: expected 'chunked' or 'interleaved'.")
    if sections is None:
        side = 3 * num_planes // 8 if layout == "chunked" else 5 * num_planes // 16
        sections = (num_planes - 2 * side, side, side)
    whole = isinstance(sections, Sequence) and len(sections) == 3 and all(is_whole(n) for n in sections)
    if not whole or sum(sections) != num_planes:
        raise ConfigurationError(
            f"sections={sections!r}: expected three whole numbers, planes of t, rows and columns, with the sum {num_planes}, "
            "half of head_dim."
        )
    if layout == "chunked":
        return torch.arange(3, device="cpu").repeat_interleave(torch.tensor(sections, device="cpu"))
    axis = torch.zeros(num_planes, dtype=torch.long, device="cpu")
    for i in (1, 2):
        axis[i : 3 * sections[i] : 3] = i
    if [int((axis == i).sum()) for i in range(3)] != list(sections):
        raise ConfigurationError(
            f"sections={tuple(sections)}: every third of {num_planes} planes are fewer than the sections of rows or columns: "
            "give t more, or layout='chunked'."
        )
    return axis
