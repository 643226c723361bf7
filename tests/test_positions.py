"""Where tokens are: grids, sequences, perturbation (Eq. 11) and offset (Eq. 12)."""

import itertools
import math

import pytest
import torch

from comrope import positions
from comrope.errors import InputError

CANVASES = [(5,), (2, 3), (4, 1), (2, 3, 5), (3, 2, 1, 4)]


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("shape", CANVASES, ids=str)
def test_grid_counts_like_nested_loops(shape, relative, centre):
    expected = [
        [(i + 0.5 * centre) / (n if relative else 1) for i, n in zip(index, shape, strict=True)]
        for index in itertools.product(*(range(n) for n in shape))
    ]
    found = positions.grid(shape, relative=relative, centre=centre, dtype=torch.float64)
    assert found.shape == (math.prod(shape), len(shape))
    assert (found - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-15


def test_rows_come_before_columns():
    assert positions.grid((2, 4)).tolist() == [
        [0.25, 0.125], [0.25, 0.375], [0.25, 0.625], [0.25, 0.875],
        [0.75, 0.125], [0.75, 0.375], [0.75, 0.625], [0.75, 0.875],
    ]  # fmt: skip
    image = positions.grid((2, 4)).view(2, 4, 2)
    assert (image[..., 0].diff(dim=0) > 0).all()
    assert (image[..., 1].diff(dim=1) > 0).all()


def test_equal_counts_of_other_shapes_are_other_grids():
    assert not torch.equal(positions.grid((7, 28)), positions.grid((14, 14)))


@pytest.mark.parametrize("shape", CANVASES, ids=str)
def test_prefix_tokens_sit_in_the_middle_whatever_the_unit(shape):
    patches = positions.grid(shape)
    with_prefix = positions.grid(shape, num_prefix_tokens=3)
    assert torch.equal(with_prefix[3:], patches)
    assert torch.equal(with_prefix[:3], torch.full((3, len(shape)), 0.5))
    in_patches = positions.grid(shape, relative=False, num_prefix_tokens=2)
    assert torch.equal(in_patches[:2], torch.tensor([[n / 2 for n in shape]] * 2))


def test_extents_keep_the_patch_size_of_another_canvas():
    part, whole = positions.grid((2, 4), extents=(4, 4)), positions.grid((4, 4))
    assert torch.equal(part, whole[:8])
    middle = positions.grid((2, 4), extents=(4, 4), num_prefix_tokens=1)[0]
    assert middle.tolist() == [0.25, 0.5]  # of the part that there is
    assert positions.grid((3,), extents=(1.5,)).flatten().tolist() == pytest.approx([1 / 3, 1, 5 / 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtype_is_what_was_asked_and_rounded_once(dtype):
    found = positions.grid((7, 3), num_prefix_tokens=1, dtype=dtype)
    assert found.dtype == dtype
    assert torch.equal(found, positions.grid((7, 3), num_prefix_tokens=1, dtype=torch.float64).to(dtype))
    assert positions.grid((7, 3)).dtype == torch.float32
    assert positions.sequence(4, dtype=dtype).dtype == dtype


def test_grid_takes_a_shape_of_any_sequence_of_whole_numbers():
    assert torch.equal(positions.grid(torch.zeros(2, 3).shape), positions.grid([2, 3]))
    assert positions.grid((2, 3), device="meta").device.type == "meta"


@pytest.mark.parametrize("shape", [(), (0, 3), (2, -1), (2.0, 3), "ab", None], ids=repr)
def test_shapes_without_patches_are_refused(shape):
    with pytest.raises(InputError, match=r"shape=.*expected a sequence of positive whole numbers.*\(14, 14\)"):
        positions.grid(shape)


@pytest.mark.parametrize("extents", [(3,), (3, 4, 5), (), (0, 4), (-1, 4), (math.inf, 4), (math.nan, 4), 3], ids=repr)
def test_extents_that_do_not_match_are_refused(extents):
    with pytest.raises(InputError, match=r"extents=.*expected 2 positive numbers, one for each axis of shape=\[3, 4\]"):
        positions.grid((3, 4), extents=extents)


def test_extents_without_relative_are_refused():
    with pytest.raises(InputError, match=r"extents= was given with relative=False.*leave one of them out"):
        positions.grid((3, 4), extents=(3, 4), relative=False)


@pytest.mark.parametrize("count", [-1, 1.0, None], ids=repr)
def test_prefix_counts_that_are_none_are_refused(count):
    with pytest.raises(InputError, match=r"num_prefix_tokens=.*expected a whole number, 0 or more"):
        positions.grid((3, 4), num_prefix_tokens=count)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("make", [positions.grid, positions.sequence], ids=["grid", "sequence"])
def test_coarse_dtypes_are_refused(make, dtype):
    with pytest.raises(InputError, match=f"dtype={dtype}: positions need float32 or float64"):
        make((3, 4) if make is positions.grid else 3, dtype=dtype)


def test_sequence_counts_from_its_start():
    assert positions.sequence(4).tolist() == [[0.0], [1.0], [2.0], [3.0]]
    assert positions.sequence(3, start=-1).tolist() == [[-1.0], [0.0], [1.0]]


def test_sequence_stops_where_float32_does():
    assert positions.sequence(2, start=2**24 - 1).flatten().tolist() == [2.0**24 - 1, 2.0**24]
    assert positions.sequence(2, start=-(2**24)).flatten().tolist() == [-(2.0**24), -(2.0**24) + 1]
    for length, start in ((2, 2**24), (1, -(2**24) - 1)):
        with pytest.raises(InputError, match=r"float32 cannot tell neighbours apart.*dtype=torch\.float64"):
            positions.sequence(length, start=start)
    far = positions.sequence(3, start=2**40, dtype=torch.float64)
    assert far.flatten().tolist() == [2.0**40, 2.0**40 + 1, 2.0**40 + 2]


@pytest.mark.parametrize("length", [0, -2, 1.5, None], ids=repr)
def test_sequences_without_tokens_are_refused(length):
    with pytest.raises(InputError, match=r"length=.*expected a whole number of tokens, 1 or more"):
        positions.sequence(length)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PATCH = (1 / 8, 1 / 4, 1 / 2)


@pytest.mark.parametrize("intensity", [0.05, 0.3, 1, 7.0])
def test_perturbed_patches_are_truncated_normal_about_their_centres(intensity):
    centres = positions.grid((8, 4, 2), dtype=torch.float64)
    moved = positions.perturb(centres, PATCH, intensity, batch_size=3000, generator=_generator())
    steps = (moved - centres) / torch.tensor(PATCH, dtype=torch.float64)  # (3000, 64, 3), in patches
    a = 0.5 / intensity
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    variance = intensity**2 * (1 - 2 * a * density / math.erf(a / math.sqrt(2)))
    count = steps[..., 0].numel()  # 192,000 an axis: five standard errors of a mean, and of a standard deviation
    assert steps.abs().max() <= 0.5
    assert steps.mean((0, 1)).abs().max() < 5 * math.sqrt(variance / count)
    assert (steps.std((0, 1)) / math.sqrt(variance) - 1).abs().max() < 5 / math.sqrt(2 * count)
    if intensity >= 1:  # the whole patch is reached
        assert steps.abs().max() > 0.499


def test_perturbation_draws_each_patch_and_axis_by_itself():
    moved = positions.perturb(positions.grid((6, 6)), (1 / 6, 1 / 6), 1.0, batch_size=500, generator=_generator())
    steps = (moved - positions.grid((6, 6))).flatten(1)  # (500, 72)
    correlation = torch.corrcoef(steps.T) - torch.eye(72)
    assert correlation.abs().max() < 0.25  # 5.6 standard errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_perturbation_keeps_shape_and_dtype_and_draws_once_for_a_shared_batch(dtype):
    centres = positions.grid((3, 4), dtype=dtype)
    shared = positions.perturb(centres, (1 / 3, 1 / 4), 1.0)
    assert shared.shape == (12, 2)
    assert shared.dtype == dtype
    each = positions.perturb(centres, (1 / 3, 1 / 4), 1.0, batch_size=5)
    assert each.shape == (5, 12, 2)
    assert each.dtype == dtype
    assert len({tuple(sample.flatten().tolist()) for sample in each}) == 5
    again = positions.perturb(each, (1 / 3, 1 / 4), 0.1, batch_size=5)
    assert again.shape == (5, 12, 2)
    assert len({tuple(step.flatten().tolist()) for step in again - each}) == 5


def test_axes_that_are_off_and_prefix_tokens_stay():
    centres = positions.grid((2, 3, 4), num_prefix_tokens=2)
    moved = positions.perturb(
        centres, (1 / 2, 1 / 3, 1 / 4), 1.0, axes=(False, True, True), num_prefix_tokens=2, batch_size=4
    )
    assert torch.equal(moved[..., 0], centres[:, 0].expand(4, -1))
    assert torch.equal(moved[:, :2], centres[:2].expand(4, -1, -1))
    assert (moved[:, 2:, 1:] != centres[2:, 1:]).all()


def test_perturbation_leaves_what_it_is_given():
    centres = positions.grid((3, 3), num_prefix_tokens=1)
    before = centres.clone()
    positions.perturb(centres, (1 / 3, 1 / 3), 1.0, num_prefix_tokens=1)
    positions.offset(centres, 1.0)
    assert torch.equal(centres, before)


@pytest.mark.parametrize("move", ["perturb", "offset"])
def test_own_generator_is_reproducible_and_leaves_the_global_one_alone(move):
    def moved(generator=None):
        if move == "offset":
            return positions.offset(positions.grid((3, 4)), 1.0, batch_size=2, generator=generator)
        return positions.perturb(positions.grid((3, 4)), (1 / 3, 1 / 4), 1.0, batch_size=2, generator=generator)

    state = torch.get_rng_state()
    first = moved(_generator(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(moved(_generator(3)), first)
    assert not torch.equal(moved(_generator(4)), first)
    torch.manual_seed(3)
    globally = moved()
    assert not torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    assert torch.equal(moved(), globally)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_intensity_zero_moves_nothing_and_draws_nothing(batch_size):
    centres, state = positions.grid((2, 3)), torch.get_rng_state()
    shape = (6, 2) if batch_size is None else (3, 6, 2)
    for still in (
        positions.perturb(centres, (1 / 2, 1 / 3), 0, batch_size=batch_size),
        positions.offset(centres, 0.0, batch_size=batch_size),
    ):
        assert torch.equal(still, centres.expand(shape))
    assert torch.equal(torch.get_rng_state(), state)


def test_offset_shifts_all_tokens_of_an_image_alike():
    centres = positions.grid((3, 4), num_prefix_tokens=1, dtype=torch.float64)
    moved = positions.offset(centres, 0.7, batch_size=20000, generator=_generator())
    shifts = moved - centres
    assert (shifts - shifts[:, :1]).abs().max() < 1e-14  # prefix token and patches together
    shift = shifts[:, 0]
    assert shift.mean(0).abs().max() < 5 * 0.7 / math.sqrt(20000)
    assert (shift.std(0) / 0.7 - 1).abs().max() < 5 / math.sqrt(2 * 20000)
    assert torch.corrcoef(shift.T)[0, 1].abs() < 5 / math.sqrt(20000)
    fourth = (shift / 0.7).pow(4).mean(0)  # 3 for a normal
    assert (fourth - 3).abs().max() < 5 * math.sqrt(96 / 20000)


def test_offset_of_shared_positions_is_one_shift():
    centres = positions.grid((3, 4))
    shifts = positions.offset(centres, 1.0) - centres
    assert shifts.shape == (12, 2)
    assert (shifts - shifts[0]).abs().max() < 1e-6
    assert shifts[0].abs().min() > 1e-3
    each = positions.offset(positions.offset(centres, 1.0, batch_size=3), 1.0)
    assert each.shape == (3, 12, 2)
    assert len({tuple(sample[0].tolist()) for sample in each}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"intensity": -1}, r"intensity=-1: expected a finite number, 0 or more \(in patches\)"),
        ({"intensity": math.nan}, r"intensity=nan: expected a finite number"),
        ({"intensity": "1"}, r"intensity='1': expected a finite number"),
        ({"patch_size": (1, 1, 1)}, r"patch_size=\(1, 1, 1\): expected 2 positive numbers"),
        ({"patch_size": (1, 0)}, r"patch_size=\(1, 0\): expected 2 positive numbers"),
        ({"patch_size": 1.0}, r"patch_size=1\.0: expected 2 positive numbers"),
        ({"axes": (True,)}, r"axes=\(True,\): expected 2 truth values"),
        ({"positions": torch.zeros(3)}, r"positions: got \(3,\), expected a tensor \(L, N\) or \(B, L, N\)"),
        ({"positions": [[0.0, 0.0]]}, r"positions: got list, expected a tensor"),
        ({"positions": torch.zeros(3, 2).bfloat16()}, r"dtype=torch\.bfloat16: positions need float32 or float64"),
        ({"positions": torch.zeros(4, 3, 2), "batch_size": 2}, r"batch_size=2, but the positions are already for 4"),
        ({"num_prefix_tokens": -1}, r"num_prefix_tokens=-1: expected a whole number, 0 or more"),
    ],
)
def test_perturbations_that_make_no_sense_are_refused(settings, message):
    fitting = {"positions": torch.zeros(3, 2), "patch_size": (1, 1), "intensity": 1.0}
    with pytest.raises(InputError, match=message):
        positions.perturb(**(fitting | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"intensity": -0.1}, r"intensity=-0\.1: expected a finite number, 0 or more \(in units of the positions\)"),
        ({"intensity": math.inf}, r"intensity=inf: expected a finite number"),
        ({"positions": torch.zeros(2, 2, 2, 2)}, r"positions: got \(2, 2, 2, 2\), expected a tensor"),
        ({"positions": torch.zeros(3, 2, dtype=torch.int64)}, r"dtype=torch\.int64: positions need float32"),
        ({"positions": torch.zeros(4, 3, 2), "batch_size": 5}, r"batch_size=5, but the positions are already for 4"),
    ],
)
def test_offsets_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        positions.offset(**({"positions": torch.zeros(3, 2), "intensity": 1.0} | settings))
