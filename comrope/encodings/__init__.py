"""Encodings by name: `comrope.encoding("comrope-ld", num_heads=12, head_dim=64, num_axes=2)`."""

import difflib
import inspect
from typing import Any, Literal, overload

from torch import nn

from comrope.encodings.ape import AbsoluteEncoding as AbsoluteEncoding
from comrope.encodings.base import Encoding as Encoding
from comrope.encodings.commuting import ComRoPEAP as ComRoPEAP
from comrope.encodings.commuting import ComRoPELD as ComRoPELD
from comrope.encodings.commuting import ComRoPEMT as ComRoPEMT
from comrope.encodings.commuting import String as String
from comrope.encodings.fixed import FixedFrequencies as FixedFrequencies
from comrope.encodings.fixed import FixedSpectrum as FixedSpectrum
from comrope.encodings.fixed import freeze as freeze
from comrope.encodings.learned import LearnedEncoding as LearnedEncoding
from comrope.encodings.liere import LieRE as LieRE
from comrope.encodings.rope import NoEncoding as NoEncoding
from comrope.encodings.rope import Rope as Rope
from comrope.encodings.rope import RopeMixed as RopeMixed
from comrope.encodings.spectral import SpectralEncoding as SpectralEncoding
from comrope.encodings.spectral import rotations as rotations
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

RotaryName = Literal["none", "rope", "rope-mixed", "string", "liere", "comrope-ap", "comrope-ld", "comrope-mt"]
"""The names of the encodings that rotate queries and keys, which type checkers tell from `ape`."""


@overload
def encoding(name: Literal["ape"], **settings: Any) -> AbsoluteEncoding: ...
@overload
def encoding(name: RotaryName, **settings: Any) -> Encoding: ...
@overload
def encoding(name: str, **settings: Any) -> nn.Module: ...
def encoding(name: str, **settings: Any) -> nn.Module:
    """Returns the encoding called `name`.

    Args:
        name: one of `none`, `ape`, `rope`, `rope-mixed`, `string`, `liere`, `comrope-ap`, `comrope-ld`, `comrope-mt`.
        **settings: arguments of the encoding's class. All classes require `num_heads`, `head_dim` and `num_axes`. All but `ape`
            take `block_size`; `ape` requires `grid`. Encodings with learned angles take `init`: "normal" (with `std`),
            "identity" (zero angles) or "rope" (vanilla RoPE's rotation, with `base` and `max_frequency`; an error if the
            encoding cannot represent it). Further arguments are in the docstring of each class.
    Returns:
        An `Encoding`, called as pe(q, k, positions), or for `ape` an `AbsoluteEncoding`, called as pe(tokens, positions).
    Raises:
        ConfigurationError: an unknown name or setting, a missing setting, or values that do not fit together.

    Examples:
        >>> import torch, comrope
        >>> pe = comrope.encoding("comrope-ld", num_heads=2, head_dim=16, num_axes=2, block_size=8)
        >>> q, k = torch.randn(2, 1, 2, 9, 16)
        >>> [tuple(t.shape) for t in pe(q, k, comrope.positions.grid((3, 3)))]
        [(1, 2, 9, 16), (1, 2, 9, 16)]
    """
    kind = kind_of(name)
    accepted = _accepted_settings(kind)
    for setting in settings:
        if setting not in accepted:
            remedy = _did_you_mean(setting, accepted).replace(".", ": leave it out.")
            raise ConfigurationError(
                f"{name} has no use for {setting}={settings[setting]!r}{remedy} It takes {', '.join(accepted)}."
            )
    missing = [s for s, required in accepted.items() if required and s not in settings]
    if missing:
        raise ConfigurationError(f"{name} needs {', '.join(f'{s}=' for s in missing)} as well.")
    return kind(**settings)


def kind_of(name: str) -> type[nn.Module]:
    """Returns the class of an encoding. For an unknown name, ConfigurationError suggests the nearest known one."""
    if not isinstance(name, str) or name not in ENCODINGS:
        raise ConfigurationError(
            f"there is no encoding {name!r}{_did_you_mean(name, ENCODINGS)} Known: {', '.join(ENCODINGS)}."
        )
    return ENCODINGS[name]


def _accepted_settings(kind: type) -> dict[str, bool]:
    """Returns the arguments of a class, its own and those it passes on as **keywords, and whether each is required."""
    accepted: dict[str, bool] = {}
    for ancestor in kind.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        parameters = inspect.signature(vars(ancestor)["__init__"]).parameters.values()
        for p in parameters:
            if p.name != "self" and p.kind is not p.VAR_KEYWORD:
                accepted.setdefault(p.name, p.default is p.empty)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return accepted


def _did_you_mean(word: str, known) -> str:
    """Returns ": did you mean …?" with the known word nearest to `word`, or "." if none is near."""
    lower = str(word).lower()
    close = difflib.get_close_matches(lower, list(known), n=1, cutoff=0.5)
    close = close or [k for k in known if lower in k.split("-") or k in lower]
    return f": did you mean {close[0]!r}?" if close else "."
