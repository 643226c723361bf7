"""Frequency scaling: transformers' and FiTv2's numbers on vanilla RoPE, and laws for any frequencies."""

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import comrope
from comrope import scaling
from comrope.errors import ConfigurationError, InputError
from comrope.scaling import METHODS, Scaling
from tests.helpers import draw

LENGTH, HEAD_DIM, BASE = 512, 64, 10000.0


def published(length: int = LENGTH, **rope) -> tuple[Tensor, float]:
    """transformers' frequencies and attention factor."""
    rope = {"rope_theta": BASE, "factor": 4.0, "original_max_position_embeddings": length, **rope}
    sizes = {"hidden_size": HEAD_DIM, "num_attention_heads": 1, "head_dim": HEAD_DIM}
    config = LlamaConfig(**sizes, max_position_embeddings=length, rope_parameters=rope)
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", seq_len=4 * length)


def vanilla(num_axes: int = 1, **settings) -> Tensor:
    """Returns vanilla RoPE's frequencies, (N, 1, D/2), of radians per token."""
    settings = {"base": BASE} | settings
    pe = comrope.encoding("rope", num_heads=1, head_dim=HEAD_DIM, num_axes=num_axes, **settings)
    return pe.spectrum().frequencies.flatten(2)


# dynamic scaling by factor 1 stretches by the length at hand over the trained one, which is s = 4 here
PUBLISHED = {
    "linear": {"rope_type": "linear"},
    "ntk": {"rope_type": "dynamic", "factor": 1.0},
    "ntk-by-parts": {"rope_type": "yarn", "truncate": False},
    "yarn": {"rope_type": "yarn", "truncate": False},
}


@pytest.mark.parametrize("length", [64, 512, 32768])
@pytest.mark.parametrize("method", PUBLISHED)
def test_one_axis_is_transformers(method, length):
    theirs, factor = published(length, **PUBLISHED[method])
    ours = Scaling.between(method, length, 4 * length, "index")
    torch.testing.assert_close(ours.apply(vanilla()).flatten().float(), theirs, rtol=2e-6, atol=0)
    assert ours.gain == pytest.approx(factor**2 if method == "yarn" else 1)


TRAINED, SHAPE = (16, 16), (64, 24)


def fit(method: str, trained: int, size: int) -> Tensor:
    """FiTv2's frequencies of one axis (its VisionNTK and VisionYaRN), with half of the head: (D/4,).

    Their code rounds the ends of YaRN's ramp to whole planes, which is left out here.
    """
    d, s = HEAD_DIM // 2, max(1, size / trained)
    j = torch.arange(0, d, 2, dtype=torch.float64)
    plain = BASE ** -(j / d)
    if method == "linear":
        return plain / s
    if method == "ntk":
        return (BASE * s ** (d / (d - 2))) ** -(j / d)

    def plane(rotations: float) -> float:
        return d * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(BASE))

    low, high = max(plane(32), 0), plane(1)
    kept = 1 - ((j / 2 - low) / (high - low)).clamp(0, 1)
    return plain * kept + plain / s * (1 - kept)


@pytest.mark.parametrize("unit", ["index", "relative"])
@pytest.mark.parametrize("method", ["linear", "ntk", "ntk-by-parts", "yarn"])
def test_two_axes_are_fitv2(method, unit):
    frequencies = vanilla(2)
    relative = unit == "relative"
    pitches = [torch.tensor([1 / n if relative else 1 for n in sizes]).view(2, 1, 1) for sizes in (TRAINED, SHAPE)]
    found = Scaling.between(method, TRAINED, SHAPE, unit)
    per_token = found.apply(frequencies / pitches[0].double()) * pitches[1].double()
    for axis, (trained, size) in enumerate(zip(TRAINED, SHAPE, strict=True)):
        own = per_token[axis].flatten()[axis::2]
        torch.testing.assert_close(own, fit(method, trained, size), rtol=1e-7, atol=0)
    assert found.gain == pytest.approx((0.1 * math.log(4) + 1) ** 2 if method == "yarn" else 1)  # of the larger factor


@pytest.mark.parametrize(
    ("base", "trained", "length", "plane"), [(10000, 13, 25, 2), (256, 33, 66, 4)], ids=["CogVideoX", "HunyuanVideo"]
)
def test_riflex_slows_the_plane_that_was_published(base, trained, length, plane):
    """k and the number of latent frames as in the commands of the paper's repository; 16 features are of time."""
    speeds = base ** -(torch.arange(0, 16, 2, dtype=torch.float64) / 16).view(1, 8)
    found = Scaling.between("riflex", trained, length, "index").apply(speeds)
    assert (found != speeds).nonzero().tolist() == [[0, plane - 1]]
    assert found[0, plane - 1].item() == pytest.approx(2 * math.pi / length)  # Eq. 8


def learned(num_axes: int = 2) -> Tensor:
    """Frequencies that rotate with all axes, of all sizes and signs, one of them zero."""
    frequencies = draw(num_axes, 3, 2, 5) * torch.logspace(-3, 1, 5, dtype=torch.float64)
    frequencies[0, 0, 0, 0] = 0
    return frequencies


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(6, 10), (12, 20), (24, 10), (3, 40)])
def test_units_differ_in_how_far_apart_tokens_are_alone(method, shape):
    trained = torch.tensor([6.0, 10.0]).view(2, 1, 1, 1).double()
    size = torch.tensor(shape).view(2, 1, 1, 1)
    counted = Scaling.between(method, (6, 10), shape, "index").apply(learned())
    relative = Scaling.between(method, (6, 10), shape, "relative").apply(learned() * trained)
    if method == "entropy":
        assert torch.equal(counted, learned()) and torch.equal(relative, learned() * trained)
    else:
        torch.testing.assert_close(relative / size, counted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("unit", ["index", "relative"])
@pytest.mark.parametrize("method", METHODS)
def test_an_axis_of_unchanged_size_keeps_its_frequencies(method, unit):
    found = Scaling.between(method, (6, 10), (12, 10), unit).apply(learned())
    assert torch.equal(found[1], learned()[1])
    assert torch.equal(found[0], learned()[0]) == (
        method == "entropy" or (method, unit) in (("linear", "relative"), ("extrapolate", "index"))
    )


@pytest.mark.parametrize("method", METHODS)
def test_planes_are_scaled_one_by_one_with_their_sign_and_slow_ones_most(method):
    settings = {"unit": "index", "span": (1e-4, 1.0)}
    planes = torch.tensor([[3.0, 1.0, 0.3, -0.01, 1e-5, 1e-9, 0.0]], dtype=torch.float64)
    scaled = Scaling.between(method, 64, 512, **settings).apply(planes)
    assert torch.equal(Scaling.between(method, 64, 512, **settings).apply(planes.flip(1)).flip(1), scaled)
    assert torch.equal(scaled.sign(), planes.sign())
    ratio = (scaled / planes)[0, :-1]
    if method == "riflex":
        assert ratio[:3].tolist() == [1, 1, 1] and ratio[4:].tolist() == [1, 1]
        assert scaled[0, 3].item() == -0.01  # a period of 628 is longer than what is read
        assert Scaling.between(method, 64, 1024, "index").apply(planes)[0, 3].item() == -2 * math.pi / 1024
    elif method in ("extrapolate", "entropy"):
        assert ratio.tolist() == [1] * 6
    else:
        assert (ratio.diff() <= 1e-12).all() and ratio[-1].item() == pytest.approx(1 / 8)
        assert ratio[:2].tolist() == ([0.125, 0.125] if method == "linear" else [1, 1])


def test_ntk_measures_speeds_on_the_planes_that_rotate_most_along_an_axis():
    """So a plane that learning has tilted by a hair does not decide about all others."""
    axial = vanilla(2)
    tilted = torch.where(axial == 0, 1e-9, axial)
    plain, tilted = (Scaling.between("ntk", (16, 16), (64, 64), "index").apply(w) for w in (axial, tilted))
    assert torch.equal(torch.where(axial == 0, 0.0, tilted), plain)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("frequencies", [torch.zeros(1, 4), torch.full((1, 4), 0.3), torch.tensor([[0.0, 0.3]])])
def test_planes_that_stand_still_or_are_all_alike(method, frequencies):
    found = Scaling.between(method, 8, 64, "index").apply(frequencies.double())
    assert found.isfinite().all()
    assert torch.equal(found == 0, frequencies == 0)


def test_a_method_for_each_axis():
    frequencies = learned(3)
    sizes = ((4, 8, 8), (8, 16, 16), "relative")
    found = Scaling.between(("riflex", "none", "yarn"), *sizes)
    for axis, method in enumerate(("riflex", "entropy", "yarn")):
        assert torch.equal(found.apply(frequencies)[axis], Scaling.between(method, *sizes).apply(frequencies)[axis])
    assert found.gain == scaling.temperature([2.0])


def test_factors_of_scores():
    sizes = ((7, 7), (14, 28), "relative")
    assert Scaling.between("entropy", *sizes).gain == pytest.approx(math.sqrt(math.log(392) / math.log(49)))
    assert Scaling.between("ntk", *sizes, gain="entropy").gain == Scaling.between("entropy", *sizes).gain
    assert Scaling.between("linear", *sizes, gain="yarn").gain == Scaling.between("yarn", *sizes).gain
    assert Scaling.between("yarn", *sizes, gain=1).gain == 1
    assert scaling.temperature([0.5]) == 1 and scaling.entropy((1, 1), (2, 2)) == 1


WRONG = {
    "an unknown method": (("longrope", 4, 8, "index"), {}, r"method='longrope'.*expected one of extrapolate, linear"),
    "methods of other axes": ((("ntk", "ntk"), 4, 8, "index"), {}, "as many axes"),
    "a number": ((3, 4, 8, "index"), {}, "method=3"),
    "no tokens": (("ntk", (4, 0), (8, 8), "index"), {}, r"trained=\(4, 0\)"),
    "half a token": (("ntk", (4, 4), (8.5, 8), "index"), {}, r"shape=\(8.5, 8\)"),
    "sizes of other axes": (("ntk", (4, 4), (8, 8, 8), "index"), {}, "as many axes"),
    "an unknown unit": (("ntk", 4, 8, "pixels"), {}, "unit='pixels': expected one of relative, index"),
    "a span that is none": (("ntk", 4, 8, "index"), {"span": (1.0, 0.1)}, "the slowest and the fastest speed"),
    "an unknown gain": (("ntk", 4, 8, "index"), {"gain": "hot"}, "gain='hot'"),
    "no gain": (("ntk", 4, 8, "index"), {"gain": 0}, "gain=0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_scaling_is_refused(case):
    arguments, settings, message = WRONG[case]
    with pytest.raises(ConfigurationError, match=message):
        Scaling.between(*arguments, **settings)


def test_frequencies_of_other_axes_are_refused():
    with pytest.raises(InputError, match=r"got \(3, 1, 2\), expected \(N, …\) with N=2"):
        Scaling.between("ntk", (4, 4), (8, 8), "index").apply(torch.ones(3, 1, 2))
