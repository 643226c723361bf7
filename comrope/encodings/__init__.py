"""Encodings by name: `comrope.encoding("comrope-ld", num_heads=12, head_dim=64, num_axes=2)`."""

import difflib
import inspect

from torch import nn

from comrope.encodings.ape import AbsoluteEncoding
from comrope.encodings.base import Encoding as Encoding
from comrope.encodings.base import LearnedEncoding as LearnedEncoding
from comrope.encodings.base import SpectralEncoding as SpectralEncoding
from comrope.encodings.base import rotations as rotations
from comrope.encodings.commuting import ComRoPEAP, ComRoPELD, ComRoPEMT, String
from comrope.encodings.fixed import FixedFrequencies as FixedFrequencies
from comrope.encodings.fixed import FixedSpectrum as FixedSpectrum
from comrope.encodings.fixed import freeze as freeze
from comrope.encodings.liere import LieRE
from comrope.encodings.rope import NoEncoding, Rope, RopeMixed
from comrope.errors import ConfigurationError

ENCODINGS: dict[str, type[nn.Module]] = {
    "none": NoEncoding,
    "ape": AbsoluteEncoding,
    "rope": Rope,
    "rope-mixed": RopeMixed,
    "string": String,
    "liere": LieRE,
    "comrope-ap": ComRoPEAP,
    "comrope-ld": ComRoPELD,
    "comrope-mt": ComRoPEMT,
}


def encoding(name: str, **settings) -> nn.Module:
    """Builds an encoding.

    Args:
        name: one of `none`, `ape`, `rope`, `rope-mixed`, `string`, `liere`, `comrope-ap`, `comrope-ld`, `comrope-mt`.
        settings: `num_heads`, `head_dim` and `num_axes` always; `block_size` for all but `ape`, which takes `grid`; `init`
            for those that learn angles: "normal" (with `std`), "identity" (zero angles) or "rope" (vanilla RoPE's rotation,
            with `base` and `max_frequency`; refused where a family does not hold it). What else a class takes is in its
            docstring.
    Returns:
        An `Encoding`, called as pe(q, k, positions), or for `ape` an `AbsoluteEncoding`, called as pe(tokens, positions).
    Raises:
        ConfigurationError: an unknown name or setting (with the nearest known one), a missing or unfitting one.

    >>> import torch, comrope
    >>> pe = comrope.encoding("comrope-ld", num_heads=2, head_dim=16, num_axes=2, block_size=8)
    >>> q, k = torch.randn(2, 1, 2, 9, 16)
    >>> [tuple(t.shape) for t in pe(q, k, comrope.positions.grid((3, 3)))]
    [(1, 2, 9, 16), (1, 2, 9, 16)]
    """
    kind = kind_of(name)
    accepted = _settings_of(kind)
    for setting in settings:
        if setting not in accepted:
            remedy = _nearest(setting, accepted).replace(".", ": leave it out.")
            raise ConfigurationError(
                f"{name} has no use for {setting}={settings[setting]!r}{remedy} It takes {', '.join(accepted)}."
            )
    missing = [s for s, required in accepted.items() if required and s not in settings]
    if missing:
        raise ConfigurationError(f"{name} needs {', '.join(f'{s}=' for s in missing)} as well.")
    return kind(**settings)


def kind_of(name: str) -> type[nn.Module]:
    """The class of an encoding; ConfigurationError, with the nearest name that is known, where there is none."""
    if not isinstance(name, str) or name not in ENCODINGS:
        raise ConfigurationError(
            f"there is no encoding {name!r}{_nearest(name, ENCODINGS)} Known: {', '.join(ENCODINGS)}."
        )
    return ENCODINGS[name]


def _settings_of(kind: type) -> dict[str, bool]:
    """Keyword arguments of a class, own and inherited through **keywords, and whether each is required."""
    found: dict[str, bool] = {}
    for ancestor in kind.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        parameters = inspect.signature(vars(ancestor)["__init__"]).parameters.values()
        for p in parameters:
            if p.name != "self" and p.kind is not p.VAR_KEYWORD:
                found.setdefault(p.name, p.default is p.empty)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _nearest(word: str, known) -> str:
    lower = str(word).lower()
    close = difflib.get_close_matches(lower, list(known), n=1, cutoff=0.5)
    close = close or [k for k in known if lower in k.split("-") or k in lower]
    return f": did you mean {close[0]!r}?" if close else "."
