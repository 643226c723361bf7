"""APE: a code book sampled at continuous positions, compared with interpolation by hand."""

import itertools

import pytest
import torch

import comrope
from comrope.errors import ConfigurationError, InputError
from tests.helpers import assert_close, build, draw

GRIDS = [(5,), (3, 5), (2, 3, 4)]
WIDTH = 32  # two heads of 16 features, the default of `build`


def _ape(grid, **settings):
    return build("ape", num_axes=len(grid), grid=grid, **settings)


def _interpolate(book, position):
    """Returns the code at one position: linear between the cell centres (i + ½)/n of each axis, constant beyond them."""
    grid = book.shape[1:]
    corners = []
    for x, n in zip(position.tolist(), grid, strict=True):
        index = min(max(x * n - 0.5, 0.0), n - 1.0)
        lower = min(int(index), n - 1)
        upper = min(lower + 1, n - 1)
        corners.append(((lower, 1 - (index - lower)), (upper, index - lower)))
    code = torch.zeros(book.shape[0], dtype=book.dtype)
    for choice in itertools.product(*corners):
        weight = 1.0
        for _, share in choice:
            weight *= share
        code += weight * book[(slice(None), *(index for index, _ in choice))]
    return code


def _by_hand(pe, positions):
    rows = positions.reshape(-1, positions.shape[-1])
    with torch.no_grad():
        return torch.stack([_interpolate(pe.code_book, row) for row in rows]).view(*positions.shape[:-1], -1)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_codes_at_cell_centres_are_the_entries(grid):
    pe = _ape(grid)
    codes = pe.codes(comrope.positions.grid(grid, dtype=torch.float64))
    assert_close(codes, pe.code_book.flatten(1).T, 1e-14)


def test_entries_are_indexed_by_row_and_column():
    pe = _ape((2, 4))
    codes = pe.codes(comrope.positions.grid((2, 4), dtype=torch.float64)).view(2, 4, WIDTH)
    for row, column in itertools.product(range(2), range(4)):
        assert_close(codes[row, column], pe.code_book[:, row, column], 1e-14)


@pytest.mark.parametrize("shape", [(40,), (3, 7)], ids=["shared", "per sample"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_codes_are_linear_between_entries_and_constant_outside(grid, shape):
    pe = _ape(grid)
    positions = (
        2 * torch.rand(*shape, len(grid), dtype=torch.float64) - 0.5
    )  # half of the coordinates are outside [0, 1]
    codes = pe.codes(positions)
    assert codes.shape == (*shape, WIDTH)
    assert_close(codes, _by_hand(pe, positions), 1e-13)


def test_codes_outside_are_the_outermost_entries():
    pe = _ape((5,))
    codes = pe.codes(torch.tensor([[-9.0], [0.0], [0.05], [0.1], [0.9], [1.0], [9.0]], dtype=torch.float64))
    assert_close(codes, pe.code_book[:, [0, 0, 0, 0, 4, 4, 4]].T, 1e-13)


def test_another_resolution_samples_the_same_code_book():
    pe = _ape((3, 5))
    finer = comrope.positions.grid((7, 4), dtype=torch.float64)
    assert_close(pe.codes(finer), _by_hand(pe, finer), 1e-13)


@pytest.mark.parametrize("shape", [(6, 2), (3, 6, 2)], ids=["shared", "per sample"])
def test_codes_are_added_to_the_tokens(shape):
    pe = _ape((3, 5))
    tokens, positions = draw(3, 6, WIDTH, seed=1), torch.rand(shape, dtype=torch.float64)
    assert_close(pe(tokens, positions), tokens + _by_hand(pe, positions), 1e-14)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gradients_reach_the_code_book(grid):
    pe = _ape(grid)
    with torch.no_grad():
        pe.code_book.normal_()
    positions = torch.rand(2, 9, len(grid), dtype=torch.float64)
    weight = draw(2, 9, WIDTH, seed=2)
    (ours,) = torch.autograd.grad((pe(torch.zeros_like(weight), positions) * weight).sum(), pe.code_book)
    # The codes are linear in the book: its gradient is the same interpolation, transposed.
    expected = torch.zeros_like(ours)
    one_hot = torch.eye(expected[0].numel(), dtype=torch.float64).view(-1, *grid)
    for row, w in zip(positions.view(-1, len(grid)), weight.view(-1, WIDTH), strict=True):
        expected += w.view(-1, *[1] * len(grid)) * _interpolate(one_hot, row).view(grid)
    assert_close(ours, expected, 1e-12)


def test_the_initial_standard_deviation_is_std():
    for std in (0.02, 0.5):
        pe = build("ape", num_heads=8, head_dim=64, grid=(14, 14), std=std)
        assert pe.code_book.std().item() == pytest.approx(std, rel=0.02)
        assert abs(pe.code_book.mean().item()) < std / 20
    assert torch.equal(build("ape", std=0.0).code_book, torch.zeros(WIDTH, 3, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_tokens_get_codes_sampled_in_full_precision(dtype):
    pe = _ape((3, 5), dtype=torch.float32)
    tokens, positions = draw(2, 15, WIDTH, dtype=dtype), comrope.positions.grid((5, 3))
    added = pe(tokens, positions)
    exact = tokens.double() + _by_hand(pe, positions).double()
    assert added.dtype == dtype
    rounded = tokens + _by_hand(pe, positions).to(dtype)
    assert (added.double() - exact).norm() <= 2 * (rounded.double() - exact).norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pe(tokens, positions), added)
        assert torch.equal(pe.codes(positions), _ape((3, 5), dtype=torch.float32).codes(positions))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_axes": 4, "grid": (2, 2, 2, 2)}, r"num_axes=4: the code book of ape is sampled in 1, 2 or 3 axes"),
        ({"grid": (3,)}, r"grid=\(3,\): expected 2 positive whole numbers"),
        ({"grid": (3, 0)}, r"grid=\(3, 0\): expected 2 positive whole numbers"),
        ({"grid": (3, 2.5)}, r"grid=\(3, 2\.5\): expected 2 positive whole numbers"),
        ({"grid": 3}, r"grid=\(3,\): expected 2 positive whole numbers"),
        ({"num_heads": 0}, r"num_heads=0: expected a whole number, 1 or more"),
        ({"head_dim": -4}, r"head_dim=-4: expected a whole number, 1 or more"),
        ({"std": -1.0}, r"std=-1\.0: expected a finite number, 0 or more"),
        ({"std": float("nan")}, r"std=nan: expected a finite number, 0 or more"),
        ({"dtype": torch.bfloat16}, r"dtype=torch\.bfloat16.*float32 or float64"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_impossible_code_books_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        comrope.encoding("ape", **({"num_heads": 2, "head_dim": 4, "num_axes": 2, "grid": (3, 5)} | settings))


@pytest.mark.parametrize(
    ("tokens", "positions", "message"),
    [
        ((2, 6, 31), (6, 2), r"tokens: got \(2, 6, 31\) with positions \(6, 2\), expected \(B, L, 32\)"),
        ((2, 6), (6, 2), r"tokens: got \(2, 6\) with positions"),
        ((2, 5, 32), (6, 2), r"tokens: got \(2, 5, 32\) with positions \(6, 2\).*for the same L tokens"),
        ((2, 6, 32), (3, 6, 2), r"tokens: got \(2, 6, 32\) with positions \(3, 6, 2\)"),
        ((1, 6, 32), (3, 6, 2), r"tokens: got \(1, 6, 32\) with positions \(3, 6, 2\)"),
        ((2, 6, 32), (6, 3), r"positions: got \(6, 3\).*N=num_axes=2"),
    ],
    ids=str,
)
def test_tokens_and_positions_that_do_not_fit_are_refused(tokens, positions, message):
    with pytest.raises(InputError, match=message):
        _ape((3, 5))(torch.zeros(tokens), torch.zeros(positions))


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.full((6, 2), float("nan")), "positions: some are NaN, infinite or beyond"),
        (torch.zeros(6, 2).bfloat16(), r"positions: got torch\.bfloat16.*float32 or float64"),
        ([[0.0, 0.0]], "positions: got list"),
    ],
    ids=["nan", "bfloat16", "list"],
)
def test_invalid_positions_are_refused(positions, message):
    with pytest.raises(InputError, match=message):
        _ape((3, 5))(torch.zeros(2, 6, WIDTH), positions)


def test_integer_tokens_are_refused_because_codes_would_be_rounded_away():
    with pytest.raises(InputError, match=r"tokens: got torch\.int64, expected a floating-point tensor"):
        _ape((3, 5))(torch.zeros(2, 6, WIDTH, dtype=torch.int64), torch.zeros(6, 2))
