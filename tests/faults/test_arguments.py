"""Every argument of every public function, with values that make no sense, drawn from a fixed seed.

A try calls a function with arguments that fit, but for one. What comes is either an error of comrope's that says what came and
what was expected; or, where the value makes sense after all, a result of the kind that was asked for, of finite numbers.

Left to others are devices, of which torch itself says what there are, and arguments that are missing or that nobody knows, of
which Python does.
"""

import os

import pytest

from comrope.errors import ComropeError
from tests.faults import encoding_subjects, model_subjects, position_subjects
from tests.faults.values import is_finite, says_what_to_do

pytestmark = pytest.mark.area("arguments of the library")
SUBJECTS = [subject for area in (encoding_subjects, position_subjects, model_subjects) for subject in area.subjects()]


@pytest.fixture(autouse=True, scope="module")
def _elsewhere(tmp_path_factory):
    """Where models are saved by names that were drawn."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.mark.parametrize(("subject", "argument", "name", "make", "fits"), [t for s in SUBJECTS for t in s.tries()])
def test_a_bad_value_is_refused_or_makes_sense(subject, argument, name, make, fits):
    given = subject.fitting()
    given = given | {argument: make(given.get(argument))}
    makes_sense = fits(given[argument])
    try:
        found = subject.call(**given)
    except ComropeError as error:
        assert not makes_sense, f"refused: {error}"
        assert says_what_to_do(error, given, given[argument]), error
        return
    assert makes_sense is not False, f"taken for {found!r}"
    assert subject.holds(found, given)
    assert argument in subject.through or is_finite(found)
