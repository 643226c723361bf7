"""`rescale`: scales the frequencies of encodings, by themselves or in a model, for more tokens than trained with."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast, overload

from torch import nn

from comrope.encodings import Encoding
from comrope.encodings.fixed import FixedEncoding, constant, replace_encodings
from comrope.errors import ConfigurationError, InputError
from comrope.hosts._attachment import AttachedBackbone, Attachment, Model
from comrope.hosts._custom_model import CustomBackbone
from comrope.hosts._saved_settings import write_to_config
from comrope.scaling import UNITS, Scaling

Pitch = Sequence[tuple[float, float]]
Method = str | Sequence[str]
Sizes = int | Sequence[int]
Span = tuple[float, float]


@overload
def rescale(
    module: Encoding,
    method: Method,
    *,
    trained: Sizes | None = None,
    shape: Sizes | None = None,
    unit: str | None = None,
    span: Span | None = None,
    gain: float | str | None = None,
) -> Encoding: ...
@overload
def rescale(
    module: Model,
    method: Method,
    *,
    trained: Sizes | None = None,
    shape: Sizes | None = None,
    unit: str | None = None,
    span: Span | None = None,
    gain: float | str | None = None,
) -> Model: ...
def rescale(
    module: nn.Module,
    method: Method,
    *,
    trained: Sizes | None = None,
    shape: Sizes | None = None,
    unit: str | None = None,
    span: Span | None = None,
    gain: float | str | None = None,
) -> nn.Module:
    """Scales the frequencies of a model's encodings, in place, for images, videos or texts larger than trained.

    Learned angles become constants, as by `freeze`, and so do those of `rope`. The frequencies of before are kept: another call
    starts from them again, and method="none" restores them. It may come before or after `fold`, and `save` keeps it.
    The equations are in `comrope.scaling`.

    Args:
        module: a model that `attach` has returned, folded or not; any other model with encodings in it; or an encoding.
        method: one of `comrope.scaling.METHODS`, or one for each axis, of which "none" keeps the axis as it is. "none" alone
            undoes all scaling, and takes no other argument.
        trained: the tokens along each axis in training, such as (14, 14); a number for text. Encodings of positions with
            another number of axes keep their frequencies.
        shape: the tokens along each axis that are to be read.
        unit: of positions: "relative" if a canvas is [0, 1] whatever its size, "index" if neighbouring tokens are 1 apart. None
            for that of the attached model; to be given for an encoding by itself, and where positions are the user's own.
        span: for "ntk", the slowest and the fastest speed between which planes are scaled, in radians per token. None takes, in
            each layer and on each axis, those of the planes that rotate most along it.
        gain: the factor of attention scores, or "yarn" or "entropy" for that of the method. None for that of `method`.
    Returns:
        The model. For an encoding, a `FixedEncoding`, such as `FixedSpectrum`: a new one, or itself if it is one.
    Raises:
        ConfigurationError: an unknown method, sizes that do not fit, or no unit where it is not known.
        InputError: there is no rotary encoding, none of so many axes, or one on the meta device.
        NoSpectrumError: there is an encoding that has no frequencies, such as LieRE. After any error the model is unchanged.
    Examples:
        >>> import comrope
        >>> pe = comrope.encoding("comrope-ld", num_heads=2, head_dim=16, num_axes=2)
        >>> pe = comrope.rescale(pe, "yarn", trained=(14, 14), shape=(28, 28), unit="relative")
        >>> round(pe.gain, 3)
        1.143
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"module: got {type(module).__name__}, expected a model with encodings in it, or an encoding.")
    found = [m for m in module.modules() if isinstance(m, Encoding)]
    if not found:
        raise InputError(f"{type(module).__name__} holds no rotary encoding: attach one first.")
    if isinstance(method, str) and method == "none":
        if any(given is not None for given in (trained, shape, unit, span, gain)):
            raise ConfigurationError("method='none' undoes all scaling, and takes no other argument: leave it out.")
        for fixed in (encoding for encoding in found if isinstance(encoding, FixedEncoding)):
            fixed.set_scaling(None)
    else:
        if unit is not None and (not isinstance(unit, str) or unit not in UNITS):
            raise ConfigurationError(
                f"unit={unit!r}: expected one of {', '.join(UNITS)}, or None for that of the model."
            )
        if trained is None or shape is None:
            raise ConfigurationError(
                f"method={method!r} wants trained= and shape=, the tokens along each axis in training and to be read."
            )
        make = partial(Scaling.between, method, trained, shape, span=span, gain=gain)
        scalings = _scalings(module, found, unit, make)
        constants = {encoding: constant(encoding) for encoding in found}
        for encoding, scaling in scalings.items():
            constants[encoding].set_scaling(scaling)
        replace_encodings(module, constants)
        module = constants[module] if isinstance(module, Encoding) else module
    for attached_model in (m for m in module.modules() if "_comrope" in vars(m)):
        write_to_config(attached_model)
    return module


def _scalings(
    module: nn.Module, encodings: Sequence[Encoding], unit: str | None, make: Callable[[str | Pitch], Scaling]
) -> dict[Encoding, Scaling]:
    """Returns the scaling of each encoding that has as many axes, given a function from the unit of positions to a scaling."""
    wanted = make(unit or UNITS[0])  # but for the unit
    fitting = [encoding for encoding in encodings if encoding.num_axes == len(wanted.trained)]
    if not fitting:
        raise InputError(
            f"trained={wanted.trained} has {len(wanted.trained)} axes, and the encodings of this {type(module).__name__} have "
            f"{encodings[0].num_axes}: give one number of tokens for each."
        )
    if unit is not None:
        return dict.fromkeys(fitting, wanted)
    backbones = _backbones(module)
    pitches = {encoding: _pitch(backbones.get(encoding), wanted) for encoding in fitting}
    if None in pitches.values():
        raise ConfigurationError(
            f"unit: expected one of {', '.join(UNITS)}, as it is not known what the positions here are: 'relative' if they are "
            "those of comrope.positions.grid, 'index' for those of comrope.positions.sequence."
        )
    return {encoding: make(pitch) for encoding, pitch in pitches.items() if pitch is not None}


def _backbones(module: nn.Module) -> dict[Encoding, AttachedBackbone]:
    """Returns the attached backbone that each encoding is in."""
    attachments: list[Attachment] = [vars(m)["_comrope"] for m in module.modules() if "_comrope" in vars(m)]
    return {
        cast(Any, layer.attention).encoding: attached
        for attachment in attachments
        for attached in attachment.backbones
        for layer in attached.layers
    }


def _pitch(attached: AttachedBackbone | None, scaling: Scaling) -> Pitch | None:
    """Returns how far apart neighbouring tokens are on each axis, before and after; None if only the user knows."""
    if attached is None or isinstance(attached.backbone, CustomBackbone):
        return None
    calls: list[Any] = [hook.call for hook in attached.hooks]
    grids = [call.coordinate_grid for call in calls if hasattr(call, "coordinate_grid")]
    if not grids:  # position ids, counted in tokens
        return [(1.0, 1.0)] * len(scaling.trained)
    return list(zip(grids[0].pitch(scaling.trained), grids[0].pitch(scaling.shape), strict=True))
