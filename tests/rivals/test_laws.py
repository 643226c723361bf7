"""Every rival: the laws of its kind, its speed, and what it refuses."""

import pytest
import torch

import comrope
from comrope.encodings import LearnedEncoding, kind_of, known_encodings, registration
from comrope.errors import ConfigurationError
from comrope.testing import laws
from tests.helpers import assert_close
from tests.rivals.cases import AXES, DENSE, SETTINGS, make

CASES = [
    *((name, {"num_axes": axes}) for name, each in AXES.items() for axes in each),
    *((name, {"num_axes": 2 if 2 in AXES[name] else 1, "head_dim": 16} | more) for name, more in SETTINGS.items()),
    ("mochi-rope", {"num_axes": 3, "head_dim": 16}),  # planes that three axes cannot share out evenly
    ("geope", {"num_axes": 2, "head_dim": 20}),  # two features beside the triples
    ("rope-vit-mixed", {"num_axes": 2, "init": "rope"}),
]


def test_these_are_all():
    assert set(AXES) == {n for n, kind in known_encodings().items() if kind.__module__.startswith("comrope.rivals.")}


@pytest.mark.parametrize(
    "name, settings", CASES, ids=lambda each: each if isinstance(each, str) else "-".join(map(str, each.values()))
)
def test_the_laws_of_its_kind_hold(name, settings):
    for law in laws.of(name, **settings):
        law()


@pytest.mark.parametrize("name", AXES)
def test_check_says_whether_the_rope_equation_holds(name):
    pe = make(name)
    with torch.no_grad():
        for parameter in pe.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    (found,) = comrope.check(pe)
    if name == "selective-rope":
        assert not found.applies
    elif name in DENSE:
        assert found.commutator > 1e-3 and found.equation > 1e-2 and found.offset_drift > 1e-2
    else:
        assert found.holds


@pytest.mark.parametrize("name", AXES)
def test_it_has_a_label_and_one_line_for_readers(name):
    found = registration(name)
    assert found is not None and found.label != name
    assert 20 < len(found.about) < 130 and found.about[-1] != "."


@pytest.mark.parametrize("name", [name for name in AXES if name != "selective-rope"])
def test_max_frequency_is_the_speed_of_the_fastest_planes_and_scales_all_of_them(name):
    """Its default is published for positions that count patches: so `patches` times it is the same on relative positions."""
    published, patches = kind_of(name).published_speed, 14
    sizes = {"head_dim": 48, "num_axes": 3 if name == "m-rope" else 2}  # of M-RoPE, the planes of time are the fastest
    slow, fast = make(name, **sizes), make(name, **sizes, max_frequency=patches * published)
    assert_close(fast.angle_matrices(), patches * slow.angle_matrices(), 1e-6)
    if name in DENSE:
        speed = torch.linalg.matrix_norm(slow.angle_matrices(), ord=2).max()
    else:
        speed = slow.folded().frequencies.norm(dim=0).max()
    # GeoPE takes the mean of the rotation vectors of two axes.
    assert speed.item() == pytest.approx(published / 2 if name == "geope" else published)


REFUSED = [
    ("golden-gate", {"zero_fraction": 1.5}, r"zero_fraction=1\.5: expected a share of the planes, 0 to 1"),
    ("golden-gate", {"min_frequency": 0.0}, r"min_frequency=0\.0: expected a finite number above 0"),
    ("nd-rope", {"head_dim": 4}, r"head_dim=4 with num_axes=2: nD-RoPE needs 6 or more"),
    ("spiral-rope", {"num_axes": 3}, r"num_axes=3: spiral-rope has two; use golden-gate or nd-rope"),
    ("spiral-rope", {"num_directions": 3}, r"num_directions=3 with head_dim=16.*Use one of \[2, 4\]"),
    ("spiral-rope", {"head_dim": 12}, r"num_directions=3 with head_dim=12.*head_dim must be a multiple of 8"),
    ("mochi-rope", {"std": 0.1}, r"std=0\.1 has no use with init='normal': leave it out\."),
    ("rope-vit-mixed", {"std": 0.1}, r"std=0\.1 has no use with init='normal': leave it out\."),
    ("rope-vit-mixed", {"directions": "spread"}, r"directions='spread' has no use.*leave it out, or init='rope'\."),
    ("rope-vit-mixed", {"init": "identity", "base": 3}, r"base=3 has no use.*, or init='normal', or init='rope'\."),
    ("rope-vit-mixed", {"num_axes": 3}, r"head_dim=16 with num_axes=3.*head_dim must be a multiple of 6"),
    ("rope-vit-axial", {"num_axes": 3}, r"axial RoPE gives each axis the same number of planes"),
    ("dinov3-rope", {"jitter": 0.5}, r"jitter=0\.5: expected a finite number, 1 or more; 1 is none"),
    ("dinov3-rope", {"shift": -1}, r"shift=-1: expected a finite number, 0 or more"),
    ("m-rope", {"num_axes": 4}, r"num_axes=4: M-RoPE has \(t, row, column\)"),
    ("m-rope", {"layout": "mixed"}, r"layout='mixed': expected 'chunked' or 'interleaved'"),
    ("m-rope", {"sections": (2, 2, 2)}, r"sections=\(2, 2, 2\).*with the sum 8"),
    (
        "m-rope",
        {"sections": (2, 3, 3), "layout": "interleaved"},
        r"every third of 8 planes are fewer.*layout='chunked'",
    ),
    ("video-rope", {"temporal_planes": 9}, r"temporal_planes=9: expected a whole number, 0 to 8"),
    ("video-rope", {"num_axes": 4}, r"num_axes=4: VideoRoPE has"),
    ("partial-rope", {"fraction": 0.3, "head_dim": 20}, r"the rotated part, 0\.3 of 20.*must be a multiple of 4"),
    ("partial-rope", {"fraction": 2}, r"fraction=2: expected a share of the features"),
    ("p-rope", {"fraction": "half"}, r"fraction='half': expected a share of the planes"),
    ("harope", {"same_map": 1}, r"same_map=1: expected True or False"),
    ("harope", {"head_dim": 6}, r"head_dim=6 with num_axes=2: axial RoPE"),
    ("grape-m", {"head_dim": 6}, r"head_dim=6 with num_axes=2: GRAPE-M"),
    ("spherical-rope", {"num_axes": 1}, r"num_axes=1, head_dim=16: spherical-rope has two axes.*geope"),
    ("geope", {"num_axes": 4}, r"num_axes=4, head_dim=16: geope.*Use liere"),
    ("selective-rope", {"init": "identity"}, r"init='identity': selective-rope starts as 'normal' or 'rope'"),
    ("selective-rope", {"init": "rope", "gate": True}, r"init='rope' is with bias=True and gate=False"),
    ("selective-rope", {"width": 33}, r"width=33 with num_heads=2.*num_heads must divide width"),
    ("selective-rope", {"rank": 0}, r"rank=0: expected a whole number, 1 or more"),
    ("selective-rope", {"block_size": 3}, r"block_size=3 with head_dim=16"),
]


@pytest.mark.parametrize("name, settings, message", REFUSED, ids=[f"{n}-{'-'.join(s)}" for n, s, _ in REFUSED])
def test_settings_that_do_not_fit_are_refused(name, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make(name, **settings)


@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("value", [0.0, float("nan"), "fast"], ids=str)
def test_speeds_that_are_no_numbers_above_zero_are_refused(name, value):
    init = {"init": "normal"} if issubclass(kind_of(name), LearnedEncoding) else {}
    for setting in ("max_frequency", "base") if name != "golden-gate" else ("max_frequency",):
        with pytest.raises(ConfigurationError, match=rf"{setting}={value!r}: expected a finite number above 0"):
            make(name, **init, **{setting: value})
