"""Rotary encodings of others, in the terms of this library: `comrope.encoding("golden-gate", …)`, and so on.

Importing this package registers all of them, by `comrope.register` alone. Each class says what its equation is, where it is
from, what it claims, and where it differs from the released code. `published_speed` of a class is |ω| of its fastest planes in
radians per patch or token, on the grid that the publication trains with. It is the default of `max_frequency`, and so for
positions that count patches; on relative positions, `max_frequency=published_speed * patches` is the same along an axis.

>>> import comrope
>>> kind = comrope.rivals.GoldenGateRoPE
>>> pe = comrope.encoding("golden-gate", num_heads=2, head_dim=16, num_axes=2, max_frequency=kind.published_speed * 14)
>>> comrope.check(pe).holds
True
"""

from comrope.rivals import convert as convert
from comrope.rivals.dinov3_rope import DINOv3RoPE as DINOv3RoPE
from comrope.rivals.geope import GeoPE as GeoPE
from comrope.rivals.golden_gate import GoldenGateRoPE as GoldenGateRoPE
from comrope.rivals.grape_m import MultiplicativeGRAPE as MultiplicativeGRAPE
from comrope.rivals.harope import HARoPE as HARoPE
from comrope.rivals.m_rope import MRoPE as MRoPE
from comrope.rivals.mochi_rope import MochiRoPE as MochiRoPE
from comrope.rivals.nd_rope import NDRoPE as NDRoPE
from comrope.rivals.p_rope import ProportionalRoPE as ProportionalRoPE
from comrope.rivals.partial_rope import PartialRoPE as PartialRoPE
from comrope.rivals.rope_vit import RoPEViTAxial as RoPEViTAxial
from comrope.rivals.rope_vit import RoPEViTMixed as RoPEViTMixed
from comrope.rivals.selective_rope import SelectiveRoPE as SelectiveRoPE
from comrope.rivals.spherical_rope import SphericalRoPE as SphericalRoPE
from comrope.rivals.spiral_rope import SpiralRoPE as SpiralRoPE
from comrope.rivals.video_rope import VideoRoPE as VideoRoPE
