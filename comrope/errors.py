"""The few errors comrope raises. Each message says what came, what was expected and what to do."""

from typing import NoReturn


class ComropeError(Exception):
    """Base of every error raised on purpose by comrope."""


class ConfigurationError(ComropeError, ValueError):
    """An encoding, recipe or command was asked for with settings that do not fit together."""


class InputError(ComropeError, ValueError):
    """A tensor handed to comrope has the wrong shape, dtype or values."""


class NoSpectrumError(ComropeError, TypeError):
    """The angle matrices do not commute, so no common basis and no frequencies exist (LieRE)."""


class SecondDerivativeError(ComropeError, RuntimeError):
    """A second derivative was asked of the spectral engine, which has exact first derivatives only."""


def refuse_second_derivative() -> NoReturn:
    """Raises SecondDerivativeError. Without it a second derivative would be silently wrong, or silently zero."""
    raise SecondDerivativeError(
        "a second derivative was asked of comrope's rotation, whose derivative is exact to first order only. Use "
        "comrope.reference.rotate(q, k, pe.angle_matrices(), positions), which can be differentiated twice."
    )


class DataError(ComropeError, ValueError):
    """A data set or result file is missing, incomplete or damaged."""
