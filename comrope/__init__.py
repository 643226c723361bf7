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
from comrope.encodings import freeze as freeze
from comrope.hosts import attach as attach
from comrope.hosts import detach as detach
from comrope.hosts import export_timm as export_timm
from comrope.hosts import fold as fold
from comrope.hosts import param_groups as param_groups
from comrope.hosts.files import load as load
from comrope.hosts.files import save as save
from comrope.hosts.official import load_official as load_official

__version__ = "0.1.0"
