"""Encodings by name: `comrope.encoding("comrope-ld", num_heads=12, head_dim=64, num_axes=2)`."""

from typing import Any, Literal, overload

from torch import nn

from comrope.encodings.ape import AbsoluteEncoding as AbsoluteEncoding
from comrope.encodings.base import Encoding as Encoding
from comrope.encodings.base import FoldedRope as FoldedRope
from comrope.encodings.commuting import ComRoPEAP as ComRoPEAP
from comrope.encodings.commuting import ComRoPELD as ComRoPELD
from comrope.encodings.commuting import ComRoPEMT as ComRoPEMT
from comrope.encodings.commuting import String as String
from comrope.encodings.dense import DenseEncoding as DenseEncoding
from comrope.encodings.fixed import FixedEncoding as FixedEncoding
from comrope.encodings.fixed import FixedFrequencies as FixedFrequencies
from comrope.encodings.fixed import FixedMaps as FixedMaps
from comrope.encodings.fixed import FixedSpectrum as FixedSpectrum
from comrope.encodings.fixed import freeze as freeze
from comrope.encodings.learned import LearnedEncoding as LearnedEncoding
from comrope.encodings.liere import LieRE as LieRE
from comrope.encodings.mapped import MappedEncoding as MappedEncoding
from comrope.encodings.registry import ENCODINGS as ENCODINGS
from comrope.encodings.registry import accepted_settings, did_you_mean
from comrope.encodings.registry import kind_of as kind_of
from comrope.encodings.registry import known_encodings as known_encodings
from comrope.encodings.registry import name_of as name_of
from comrope.encodings.registry import register as register
from comrope.encodings.registry import registration as registration
from comrope.encodings.rope import NoEncoding as NoEncoding
from comrope.encodings.rope import Rope as Rope
from comrope.encodings.rope import RopeMixed as RopeMixed
from comrope.encodings.spectral import SpectralEncoding as SpectralEncoding
from comrope.encodings.spectral import rotations as rotations
from comrope.encodings.tokens import TokenEncoding as TokenEncoding
from comrope.errors import ConfigurationError

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
    accepted = accepted_settings(kind)
    for setting in settings:
        if setting not in accepted:
            remedy = did_you_mean(setting, accepted).replace(".", ": leave it out.")
            raise ConfigurationError(
                f"{name} has no use for {setting}={settings[setting]!r}{remedy} It takes {', '.join(accepted)}."
            )
    missing = [s for s, required in accepted.items() if required and s not in settings]
    if missing:
        raise ConfigurationError(f"{name} needs {', '.join(f'{s}=' for s in missing)} as well.")
    return kind(**settings)
