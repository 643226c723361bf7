"""The few errors comrope raises. Each message says what came, what was expected and what to do."""


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


class DataError(ComropeError, ValueError):
    """A data set or result file is missing, incomplete or damaged."""


class DivergedError(ComropeError, ArithmeticError):
    """A training's loss is no number any more."""


class WorkerError(ComropeError, RuntimeError):
    """A process that worked for this one is gone."""
