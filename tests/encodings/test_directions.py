"""Directions of planes: evenly spread ones, of RoPE and of the starts of learned encodings."""

import copy
import itertools

import pytest
import torch

import comrope
from comrope.encodings.directions import spread_directions
from comrope.errors import ConfigurationError
from tests.helpers import assert_close, build, draw, oracle, scores

SIZES = {"num_heads": 2, "head_dim": 24, "base": 19.0, "max_frequency": 18.0}


def _nearest(directions: torch.Tensor) -> torch.Tensor:
    """Returns each direction's angle to its nearest neighbour, where d and −d are one direction."""
    cosines = (directions @ directions.T).abs().fill_diagonal_(0)
    return cosines.max(1).values.clamp(max=1).acos()


@pytest.mark.parametrize("num_axes", [2, 3, 4])
@pytest.mark.parametrize("count", [12, 96])
def test_directions_are_spread_evenly(count, num_axes):
    found = spread_directions(count, num_axes)
    assert_close(found.norm(dim=1), torch.ones(count, dtype=torch.float64), 1e-12)
    random = [draw(count, num_axes, seed=seed) for seed in range(20)]
    closest = [_nearest(r / r.norm(dim=1, keepdim=True)).min() for r in random]
    assert _nearest(found).min() > max(closest), "random directions are as far apart"
    spread = torch.linalg.eigvalsh(found.T @ found) * num_axes / count  # all 1 where no direction is preferred
    assert spread.min() > 0.6 and spread.max() < 1.4


def test_with_one_axis_there_is_one_direction():
    one = build("rope", **SIZES, num_axes=1, directions="spread").spectrum().frequencies
    assert torch.equal(one, build("rope", **SIZES, num_axes=1).spectrum().frequencies)


@pytest.mark.parametrize("num_axes", [2, 3])
def test_spread_planes_are_as_fast_as_axial_ones(num_axes):
    spread, axial = (build("rope", **SIZES, num_axes=num_axes, directions=d) for d in ("spread", "axes"))
    assert_close(*(pe.spectrum().frequencies.norm(dim=0) for pe in (spread, axial)), 1e-12)
    unit = spread.spectrum().frequencies / spread.spectrum().frequencies.norm(dim=0)
    unit = unit.flatten(1).T
    assert all(abs(a @ b) < 0.9999 for a, b in itertools.combinations(unit, 2)), "two planes share a direction"


@pytest.mark.parametrize("num_axes", [2, 3])
def test_rope_with_spread_directions_keeps_the_laws(num_axes):
    pe = build("rope", **SIZES, num_axes=num_axes, directions="spread")
    assert all(each.holds for each in comrope.check(pe))
    q, k = draw(2, 1, 2, 5, 24)
    positions = draw(5, num_axes)
    found = pe(q, k, positions)
    assert_close(scores(*found), oracle(pe, q, k, positions), 1e-12)


def test_directions_survive_casts_copies_and_the_meta_device():
    pe = build("rope", **SIZES, num_axes=2, directions="spread")
    expected = pe.spectrum().frequencies
    with torch.device("meta"):
        empty = comrope.encoding("rope", **SIZES, num_axes=2, directions="spread")
    for other in (copy.deepcopy(pe), copy.deepcopy(pe).float(), copy.deepcopy(pe).half(), empty.to_empty(device="cpu")):
        assert torch.equal(other.spectrum().frequencies, expected)
    assert not pe.state_dict()


@pytest.mark.parametrize("name", ["rope-mixed", "string", "comrope-mt"])
def test_learned_encodings_start_from_spread_directions(name):
    start = {"block_size": 4, "num_axes": 2, "directions": "spread"}
    pe, rope = build(name, **SIZES, **start, init="rope"), build("rope", **SIZES, **start)
    assert_close(pe.spectrum().frequencies, rope.spectrum().frequencies, 1e-12)
    assert_close(pe.angle_matrices(), rope.angle_matrices(), 1e-12)


@pytest.mark.parametrize("name", ["liere", "comrope-ap", "comrope-ld"])
def test_encodings_that_cannot_have_them_say_so(name):
    with pytest.raises(ConfigurationError, match=f"{name} has no use for directions='spread'"):
        build(name, num_axes=2, init="rope", directions="spread")


def test_unknown_and_useless_directions_are_refused():
    with pytest.raises(ConfigurationError, match="directions='round': expected 'axes' or 'spread'"):
        build("rope", num_axes=2, directions="round")
    with pytest.raises(ConfigurationError, match="directions='spread' has no use with init='normal'"):
        build("rope-mixed", num_axes=2, directions="spread")
