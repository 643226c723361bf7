"""ComRoPE and its relatives: rotary position encodings with learned angle matrices that commute.

>>> import comrope
>>> pe = comrope.encoding("comrope-ld", num_heads=12, head_dim=64, num_axes=2, block_size=8)
>>> x = comrope.positions.grid((14, 14))
>>> comrope.check(pe).holds
True
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comrope import checks as checks
    from comrope import encodings as encodings
    from comrope import errors as errors
    from comrope import hosts as hosts
    from comrope import positions as positions
    from comrope import reference as reference
    from comrope import rivals as rivals
    from comrope import rotation as rotation
    from comrope import scaling as scaling
    from comrope import testing as testing
    from comrope.checks import check as check
    from comrope.encodings import encoding as encoding
    from comrope.encodings import freeze as freeze
    from comrope.encodings import register as register
    from comrope.explorer import show as show
    from comrope.hosts import attach as attach
    from comrope.hosts import detach as detach
    from comrope.hosts import export_timm as export_timm
    from comrope.hosts import fold as fold
    from comrope.hosts import param_groups as param_groups
    from comrope.hosts import rescale as rescale
    from comrope.hosts.files import load as load
    from comrope.hosts.files import save as save
    from comrope.hosts.official import load_official as load_official

__version__ = "0.2.0.dev0"

__all__ = [
    "attach",
    "check",
    "checks",
    "detach",
    "encoding",
    "encodings",
    "errors",
    "export_timm",
    "fold",
    "freeze",
    "hosts",
    "load",
    "load_official",
    "param_groups",
    "positions",
    "reference",
    "register",
    "rescale",
    "rivals",
    "rotation",
    "save",
    "scaling",
    "show",
    "testing",
]

_FUNCTIONS = {
    **dict.fromkeys(("encoding", "freeze", "register"), "encodings"),
    **dict.fromkeys(("attach", "detach", "export_timm", "fold", "param_groups", "rescale"), "hosts"),
    **dict.fromkeys(("load", "save"), "hosts.files"),
    "check": "checks",
    "load_official": "hosts.official",
    "show": "explorer",
}
"""The module of each public function. Imports are lazy: the command line answers before torch is loaded."""

if not TYPE_CHECKING:  # or any misspelled name would have a type

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'comrope' has no attribute {name!r}")
        module = importlib.import_module(f"comrope.{_FUNCTIONS.get(name, name)}")
        value = getattr(module, name) if name in _FUNCTIONS else module
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
