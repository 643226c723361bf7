"""Drawn encodings, tokens, positions and ways of calling, against scores and gradients in 400-bit arithmetic.

What is promised. A call returns queries and keys rotated, up to one orthogonal change of basis that is the same constant for
all calls: Q₀ᵀR(x)q with Q₀ = Q in value and without a gradient. So it does not matter which call a token went through, and
a rotated token that is detached is a constant vector. Losses here are linear in the scores, Σ weight·score.

How far results may be off stands in errors.py.
"""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.helpers import DECOMPOSED
from tests.properties.cases import NEAR, Case, cases
from tests.properties.errors import errors, results
from tests.properties.ways import WAYS

pytestmark = pytest.mark.slow

NUM_EXAMPLES = 12
"""Of each test: a few tenths of a second each, nearly all of it in the oracle."""

FAMILIES = {
    "one matrix a block": DECOMPOSED,
    "learned basis": ("comrope-mt", "string"),
    "others": ("rope", "rope-mixed", "liere", "none"),
}
PRECISIONS = {
    "float64": (torch.float64,),
    "float32": (torch.float32,),
    "half": (torch.bfloat16, torch.float16),
    "any": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
}
GROUPS = [
    *[pytest.param(DECOMPOSED, p, id=p) for p in ("float64", "float32", "half")],
    *[pytest.param((name,), "any", id=name) for name in ("comrope-mt", "string", "rope-mixed", "liere")],
    pytest.param(("rope", "none"), "any", id="rope or none"),
]
"""Families and precisions that are drawn together."""
ALLOWED = {torch.float64: 30.0, torch.float32: 10.0, torch.bfloat16: 2.0, torch.float16: 2.0}
"""Units of error, by the dtype of the tokens. Half precision is rounded in and out alone, the others at each operation."""

# No shrinking: the examples are small as they are, and it would take minutes.
drawn = settings(
    max_examples=NUM_EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)


def _assert_within(allowed: float, found: dict[str, float]) -> None:
    wrong = {name: f"{error:.3g}" for name, error in found.items() if not error <= allowed}
    assert not wrong, f"errors in units, {allowed:g} allowed: {wrong}"


# Every way of calling meets the same cases, because of the seed, and so the oracle works each of them out once.
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("names, precision", GROUPS)
@seed(0)
@drawn
@given(data=st.data())
def test_scores_and_gradients(names, precision, way, data):
    case = data.draw(cases(names, PRECISIONS[precision]))
    _assert_within(ALLOWED[case.dtype], errors(case, way))


def _assert_close(relative: float, case: Case, way: str) -> None:
    """Each error is at most `relative` times the largest entry, and the rounding that terms leave that cancel."""
    actual, exact, unit = results(case, way)
    for name in actual:
        allowed = relative * exact[name].abs().max() + ALLOWED[case.dtype] * unit[name]
        error = (actual[name].double() - exact[name]).abs()
        assert (error <= allowed).all(), f"{name}: error up to {error.max():.2e}, allowed {allowed.max():.2e}"


@pytest.mark.parametrize("names", FAMILIES.values(), ids=FAMILIES)
@drawn
@given(data=st.data())
def test_gradients_of_one_call_near_the_origin(names, data):
    _assert_close(1e-9, data.draw(cases(names, PRECISIONS["float64"], NEAR)), "one")


@pytest.mark.parametrize("way", WAYS)
@seed(0)
@drawn
@given(data=st.data())
def test_nearly_equal_frequencies_far_out(way, data):
    """In float64, at positions up to 10⁴."""
    kinds = ("near", "opposite", "small", "equal", "zero")
    names = FAMILIES["one matrix a block"]
    case = data.draw(cases(names, PRECISIONS["float64"], ("ten thousand",), kinds, (4, 8)))
    _assert_close(1e-6, case, way)


@pytest.mark.parametrize("way", WAYS)
@seed(0)
@drawn
@given(data=st.data())
def test_small_angles_in_half_precision(way, data):
    names = FAMILIES["one matrix a block"]
    case = data.draw(cases(names, PRECISIONS["half"], ("near",), block_sizes=(4,), scales=(-2.0, -1.0, -3.0)))
    _assert_within(ALLOWED[case.dtype], errors(case, way))
