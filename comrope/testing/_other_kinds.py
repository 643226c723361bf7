"""Laws of encodings without a spectrum: what they refuse, and what holds for them instead."""

from collections.abc import Callable
from typing import Any

from comrope import reference
from comrope.encodings import TokenEncoding, freeze
from comrope.errors import NoSpectrumError
from comrope.testing._subject import Subject, close, draw, inputs, scores


def _has_no_spectrum(subject: Subject) -> None:
    _refuses(subject, lambda pe: pe.spectrum())


def _has_nothing_to_fold(subject: Subject) -> None:
    _refuses(subject, lambda pe: pe.folded())
    pe = subject.make()
    if any(True for _ in pe.parameters()):
        _refuses(subject, freeze)
    else:
        assert freeze(pe) is pe, "freeze changes an encoding without parameters"


def _has_no_angle_matrices(subject: Subject) -> None:
    _refuses(subject, lambda pe: pe.angle_matrices())


def _refuses(subject: Subject, call: Callable[[Any], Any]) -> None:
    try:
        call(subject.make())
    except NoSpectrumError:
        return
    raise AssertionError("there is no NoSpectrumError")


def _rotates_by_its_matrices(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, _ = inputs(pe)
    matrices = pe.rotation_matrices(x)
    for found, expected in zip(pe(q, k, x), (reference.apply(matrices, each) for each in (q, k)), strict=True):
        close(found, expected, 1e-12, "rotated tokens")


def _depends_on_the_tokens(subject: Subject) -> None:
    pe = subject.make()
    q, k, x, more = inputs(pe)
    assert isinstance(pe, TokenEncoding)
    other = {"tokens": draw(*more["tokens"].shape, seed=9)}
    change = (scores(*pe(q, k, x, **other)) - scores(*pe(q, k, x, **more))).abs().max().item()
    assert change > 1e-6, "other tokens change nothing"


MAPPED = (_has_no_spectrum,)
DENSE = (_has_no_spectrum, _has_nothing_to_fold, _rotates_by_its_matrices)
OF_TOKENS = (_has_no_angle_matrices, _has_no_spectrum, _has_nothing_to_fold, _depends_on_the_tokens)
