"""ComRoPE and its relatives: rotary position encodings with learned angle matrices that commute.

>>> import comrope
>>> pe = comrope.encoding("comrope-ld", num_heads=12, head_dim=64, num_axes=2, block_size=8)
>>> x = comrope.positions.grid((14, 14))
>>> comrope.check(pe).holds
True
"""

from comrope import errors as errors
from comrope import positions as positions
from comrope import reference as reference
from comrope.checks import check as check
from comrope.encodings import encoding as encoding

__version__ = "0.1.0"
