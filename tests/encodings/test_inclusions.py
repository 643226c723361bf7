"""Which encodings contain which: the same rotations from other parameters, and from init="rope"."""

import math

import pytest
import torch

import comrope
from comrope.errors import ConfigurationError, InputError
from tests.helpers import COMMUTING, LEARNED, assert_close, build, call, draw, orthogonal

# With several axes, a block of AP or LD rotates with one axis of vanilla RoPE only.
ONE_AXIS_A_BLOCK = ("comrope-ap", "comrope-ld")


def _inputs(num_axes=2, head_dim=24):
    return draw(2, 4, 7, head_dim, seed=1), draw(2, 2, 7, head_dim, seed=2), 3 * draw(7, num_axes, seed=3)


def _axial_rope(t, x, base=10000.0):
    """Returns t rotated by vanilla RoPE: features (2p, 2p+1) by angle x · base^(−2N·(p div N)/D) of axis p mod N."""
    batch, heads, length, head_dim = t.shape
    axes = x.shape[-1]
    out = torch.empty_like(t)
    for p in range(head_dim // 2):
        angle = x[:, p % axes] * base ** (-2.0 * axes * (p // axes) / head_dim)
        first, second = t[..., 2 * p], t[..., 2 * p + 1]
        out[..., 2 * p] = first * angle.cos() - second * angle.sin()
        out[..., 2 * p + 1] = first * angle.sin() + second * angle.cos()
    return out.view(batch, heads, length, head_dim)


@pytest.mark.parametrize("block_size", [2, 4, 8])
@pytest.mark.parametrize("base", [10000.0, 100])
@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_rope_is_axial_rope(num_axes, base, block_size):
    q, k, x = _inputs(num_axes)
    pe = build("rope", head_dim=24, num_axes=num_axes, base=base, block_size=block_size)
    rotated = pe(q, k, x)
    assert_close(rotated[0], _axial_rope(q, x, base), 1e-13)
    assert_close(rotated[1], _axial_rope(k, x, base), 1e-13)


def test_the_largest_frequency_is_max_frequency():
    """max_frequency=14 on relative positions of a grid of 14 × 14 is RoPE on patch indices."""
    q, k, _ = _inputs(2)
    relative, indices = (
        comrope.positions.grid((14, 14), relative=r, dtype=torch.float64)[: q.shape[2]] for r in (True, False)
    )
    fast, plain = build("rope", head_dim=24, num_axes=2, max_frequency=14), build("rope", head_dim=24, num_axes=2)
    assert fast.spectrum().frequencies.max() == 14
    assert_close(call(fast, q, k, relative), call(plain, q, k, indices), 1e-12)


def test_rope_in_one_axis_is_the_language_models():
    """θ_p = 10000^(−2p/D), interleaved."""
    pe = build("rope", head_dim=8, num_axes=1)
    expected = [10000 ** (-2 * p / 8) for p in range(4)]
    assert pe.spectrum().frequencies[0, 0].flatten().tolist() == pytest.approx(expected, rel=1e-14)
    assert math.isclose(expected[0], 1.0)


@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_ap_with_block_size_2_and_init_rope_is_rope(num_axes):
    q, k, x = _inputs(num_axes)
    ap = build("comrope-ap", head_dim=24, num_axes=num_axes, block_size=2, init="rope")
    rope = build("rope", head_dim=24, num_axes=num_axes, block_size=2)
    assert_close(ap.rotation_matrices(x), rope.rotation_matrices(x), 1e-14)
    assert_close(call(ap, q, k, x), call(rope, q, k, x), 1e-13)


@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_ld_with_block_size_2_is_rope_mixed(num_axes):
    """A block of 2 is P − Pᵀ = μJ with a scalar μ, and θμ is a free frequency on each axis."""
    q, k, x = _inputs(num_axes)
    ld = build("comrope-ld", head_dim=24, num_axes=num_axes, block_size=2)
    mixed = build("rope-mixed", head_dim=24, num_axes=num_axes, block_size=2)
    with torch.no_grad():
        angle = ld.base_matrices[..., 1, 0] - ld.base_matrices[..., 0, 1]
        mixed.frequencies.copy_((ld.axis_scale * angle).unsqueeze(-1))
    assert_close(ld.rotation_matrices(x), mixed.rotation_matrices(x), 1e-14)
    assert_close(call(ld, q, k, x), call(mixed, q, k, x), 1e-13)
    # And back: any RoPE-Mixed is an LD.
    other = build("rope-mixed", seed=8, head_dim=24, num_axes=num_axes, block_size=2)
    with torch.no_grad():
        ld.base_matrices.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        ld.axis_scale.copy_(other.frequencies.squeeze(-1))
    assert_close(call(ld, q, k, x), call(other, q, k, x), 1e-13)


@pytest.mark.parametrize("name", LEARNED)
def test_zero_angles_equal_no_encoding(name):
    q, k, x = _inputs(2, 16)
    pe = build(name, block_size=8, init="identity")
    assert torch.equal(pe.angle_matrices(), build("none", block_size=8).angle_matrices())
    assert_close(call(pe, q, k, x), call(build("none"), q, k, x), 1e-14)


def test_no_encoding_returns_its_inputs():
    q, k, x = _inputs(2, 16)
    rotated = build("none")(q, k, x)
    assert torch.equal(rotated[0], q)
    assert torch.equal(rotated[1], k)


@pytest.mark.parametrize("size", [(2, 3), (4, 2), (8, 1), (8, 3)], ids=str)
@pytest.mark.parametrize("name", COMMUTING)
def test_mt_contains_every_commuting_encoding(name, size):
    block_size, num_axes = size
    sizes = {"head_dim": 24, "num_axes": num_axes, "block_size": block_size}
    other, mt = build(name, jitter=0.2, **sizes), build("comrope-mt", seed=5, jitter=0.2, **sizes)
    q, k, x = _inputs(num_axes)
    assert (call(mt, q, k, x) - call(other, q, k, x)).abs().max() > 0.1
    mt.set_spectrum(*other.spectrum())
    assert_close(call(mt, q, k, x), call(other, q, k, x), 1e-12)
    assert_close(mt.rotation_matrices(x), other.rotation_matrices(x), 1e-12)


@pytest.mark.parametrize("name", COMMUTING)
def test_mt_contains_every_commuting_encoding_in_float32(name):
    other = build(name, block_size=8, dtype=torch.float32)
    mt = build("comrope-mt", seed=5, block_size=8, dtype=torch.float32)
    mt.set_spectrum(*other.spectrum())
    q, k, x = (t.float() for t in _inputs(2, 16))
    assert_close(call(mt, q, k, x), call(other, q, k, x), 1e-5)


@pytest.mark.parametrize(
    ("basis", "frequencies", "message"),
    [
        (orthogonal(2, 4, 4), draw(2, 2, 2, 2), r"basis: got \(2, 4, 4, 4\), expected \(2, 2, 8, 8\)"),
        (orthogonal(2, 2, 8), draw(2, 2, 2, 2), r"frequencies: got \(2, 2, 2, 2\), expected \(2, 2, 2, 4\)"),
        (
            1.1 * orthogonal(2, 2, 8),
            draw(2, 2, 2, 4),
            r"basis: QᵀQ is 2\.1e-01 away from the identity, expected an orth",
        ),
        (math.nan * orthogonal(2, 2, 8), draw(2, 2, 2, 4), r"basis: some values are NaN"),
        (orthogonal(2, 2, 8), math.inf * draw(2, 2, 2, 4), r"frequencies: some values are NaN or inf"),
    ],
    ids=["basis shape", "frequencies shape", "not orthogonal", "nan", "inf"],
)
def test_mt_refuses_invalid_spectra_and_stays_unchanged(basis, frequencies, message):
    mt = build("comrope-mt", jitter=0.2, block_size=8)
    before = {key: value.clone() for key, value in mt.state_dict().items()}
    with pytest.raises(InputError, match=message):
        mt.set_spectrum(basis, frequencies)
    assert all(torch.equal(value, before[key]) for key, value in mt.state_dict().items())


@pytest.mark.parametrize("num_axes", [1, 2])
@pytest.mark.parametrize("name", [n for n in LEARNED if n in COMMUTING])
def test_set_spectrum_reaches_the_angles_of_the_same_encoding(name, num_axes):
    sizes = {"num_axes": num_axes, "block_size": 2 if name == "rope-mixed" else 8}
    here, there = build(name, jitter=0.2, **sizes), build(name, seed=5, jitter=0.2, **sizes)
    q, k, x = _inputs(num_axes, 16)
    assert (call(here, q, k, x) - call(there, q, k, x)).abs().max() > 0.1
    here.set_spectrum(*there.spectrum())
    assert_close(here.angle_matrices(), there.angle_matrices(), 1e-12)
    assert_close(call(here, q, k, x), call(there, q, k, x), 1e-12)


def test_set_spectrum_of_liere_reaches_any_commuting_encoding():
    liere, other = build("liere", jitter=0.2, block_size=8), build("comrope-mt", jitter=0.2, block_size=8)
    liere.set_spectrum(*other.spectrum())
    assert_close(liere.angle_matrices(), other.angle_matrices(), 1e-12)


@pytest.mark.parametrize("name", ["comrope-ap", "comrope-ld", "comrope-mt", "string"])
def test_set_spectrum_reaches_one_dimensional_rope_with_any_block_size(name):
    pe, rope = (build(n, num_axes=1, block_size=8) for n in (name, "rope"))
    pe.set_spectrum(None, rope.spectrum().frequencies)
    assert_close(pe.angle_matrices(), rope.angle_matrices(), 1e-14)


def test_ld_keeps_the_scale_of_blocks_with_zero_frequencies():
    pe = build("comrope-ld", jitter=0.2, block_size=8)
    scale = pe.axis_scale.clone()
    pe.set_spectrum(None, torch.zeros_like(pe.spectrum().frequencies))
    assert torch.equal(pe.axis_scale, scale)
    assert not pe.angle_matrices().any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("comrope-ap", "ComRoPEAP does not hold these angles"),
        ("comrope-ld", "ComRoPELD does not hold these angles: .* misses by .* Use block_size=2, or comrope-mt"),
        ("rope-mixed", "RoPE-Mixed has no basis but the identity"),
        ("string", "no half turn and no mirror"),
    ],
)
def test_angles_that_an_encoding_cannot_represent_are_refused_and_it_stays_unchanged(name, message):
    pe = build(name, jitter=0.2, block_size=8)
    before = {key: value.clone() for key, value in pe.state_dict().items()}
    mirror = torch.eye(8, dtype=torch.float64).repeat(2, 2, 1, 1)
    mirror[..., 0, 0] = -1
    with pytest.raises(ConfigurationError, match=message):
        pe.set_spectrum(mirror, draw(2, 2, 2, 4))
    assert all(torch.equal(value, before[key]) for key, value in pe.state_dict().items())


@pytest.mark.parametrize("block_size", [2, 4])
@pytest.mark.parametrize("num_axes", [1, 2, 3])
@pytest.mark.parametrize("name", LEARNED)
def test_init_rope_is_vanilla_rope(name, num_axes, block_size):
    if name in ONE_AXIS_A_BLOCK and num_axes > 1:
        block_size = 2  # the only one with which they can represent it
    q, k, x = _inputs(num_axes)
    sizes = {"head_dim": 24, "num_axes": num_axes, "block_size": block_size}
    pe, rope = build(name, init="rope", base=500.0, **sizes), build("rope", base=500.0, **sizes)
    fast, fast_rope = (build(n, max_frequency=6.0, **s) for n, s in ((name, sizes | {"init": "rope"}), ("rope", sizes)))
    assert_close(fast.angle_matrices(), fast_rope.angle_matrices(), 1e-14)
    assert_close(pe.angle_matrices(), rope.angle_matrices(), 1e-14)
    assert_close(call(pe, q, k, x), call(rope, q, k, x), 1e-12)
    assert_close(
        call(pe, q, k, x), _axial_rope(q, x, 500.0) @ _axial_rope(k, x, 500.0).repeat_interleave(2, 1).mT, 1e-12
    )


@pytest.mark.parametrize("name", LEARNED)
def test_init_normal_has_the_standard_deviation_std(name):
    """Elements of the skew-symmetric matrices have standard deviation √2·std (times θ, which is standard normal)."""
    torch.manual_seed(0)
    wide = comrope.encoding(name, num_heads=64, head_dim=32, num_axes=1, block_size=2, std=0.25)
    with torch.no_grad():
        angles = wide.angle_matrices()[..., 1, 0]
    assert angles.square().mean().sqrt().item() == pytest.approx(math.sqrt(2) * 0.25, rel=0.15)
