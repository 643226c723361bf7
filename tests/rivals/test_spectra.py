"""What only one rival with a spectrum does: its frequencies, from their definition."""

import math

import pytest
import torch

import comrope
from comrope.encodings import rotations
from comrope.rivals.golden_gate import golden_directions
from comrope.rivals.m_rope import plane_axes
from comrope.rivals.nd_rope import simplex
from tests.helpers import assert_close, draw, scores
from tests.rivals.cases import frequencies, make


def geometric(base, count):
    return torch.tensor([base ** (-j / count) for j in range(count)], dtype=torch.float64)


def rope(num_planes, base=10000.0):
    """1-D RoPE, (1, 1, D/2)."""
    return geometric(base, num_planes).view(1, 1, -1)


# Golden gate RoPE


def test_golden_gate_turns_each_plane_of_each_head_by_the_golden_angle():
    omega = frequencies("golden-gate", num_heads=3, head_dim=16)  # (2, 3, 8)
    speeds = omega.norm(dim=0)
    assert_close(speeds, (40 / 13 / 100 * 100 ** (torch.arange(8).double() / 7)).expand(3, 8), 1e-12)
    row, column = (omega / speeds).flatten(1)
    angles = torch.atan2(row, column)
    step = math.pi * (math.sqrt(5) - 1) / 2
    assert_close(
        torch.remainder(angles - torch.arange(24).double() * step + 1, 2 * math.pi), torch.ones(24).double(), 1e-9
    )


def test_golden_gate_directions_are_spread_over_the_half_plane():
    angles = torch.atan2(*golden_directions(12 * 32, 2).unbind(-1)) % math.pi
    counts = torch.histc(angles, 8, 0, math.pi)
    assert (counts - 48).abs().max() <= 2


def test_golden_gate_in_three_axes_is_spread_over_the_sphere_without_an_axis_of_its_own():
    directions = golden_directions(3000, 3)
    assert_close(directions.norm(dim=-1), torch.ones(3000).double(), 1e-12)
    assert (directions.mT @ directions / 3000 - torch.eye(3) / 3).abs().max() < 1e-2
    assert (golden_directions(9, 1).abs() == 1).all()


def test_golden_gate_puts_planes_that_do_not_rotate_first():
    omega = frequencies("golden-gate", zero_fraction=0.25)
    assert not omega[..., :2].any() and omega[..., 2:].norm(dim=0).min() > 0.03
    assert not frequencies("golden-gate", zero_fraction=1.0).any()


# nD-RoPE


@pytest.mark.parametrize("axes", [1, 2, 3, 5])
def test_the_vertices_of_the_simplex_are_equally_far_from_one_another(axes):
    vertices = simplex(axes)
    count = max(axes + 1, 2) if axes > 1 else 1
    gram = torch.full((count, count), -1 / axes, dtype=torch.float64).fill_diagonal_(1)
    assert_close(vertices @ vertices.mT, gram, 1e-12)


def test_nd_rope_turns_one_simplex_by_another_rotation_in_each_head():
    omega = frequencies("nd-rope", num_heads=2, head_dim=24)  # 3 vertices × 4 speeds
    per_vertex = omega.unflatten(2, (3, 4))
    speeds = geometric(100.0, 4)
    directions = per_vertex / speeds
    assert_close(directions, directions[..., :1].expand_as(directions), 1e-12)  # all speeds of a head share them
    first, second = directions[..., 0].unbind(1)  # (2 axes, 3 vertices)
    for each in (first, second):
        rotation = each @ simplex(2) * (2 / 3)  # Σ u uᵀ = (M/N) 1
        assert_close(rotation @ rotation.mT, torch.eye(2).double(), 1e-12)
        assert torch.linalg.det(rotation) > 0
    assert (first - second).abs().max() > 1e-3
    assert not torch.equal(omega, frequencies("nd-rope", seed=1, num_heads=2, head_dim=24))


def test_nd_rope_with_64_features_rotates_60_of_them():
    omega = frequencies("nd-rope", head_dim=64)
    assert (omega[..., :30].norm(dim=0) > 0).all() and not omega[..., 30:].any()


# Spiral RoPE


def test_spiral_rope_with_two_directions_is_axial_rope():
    axial = torch.block_diag(geometric(10000.0, 4).unsqueeze(0), geometric(10000.0, 4).unsqueeze(0))
    assert_close(frequencies("spiral-rope", num_directions=2)[:, 0], 1.5 * axial, 1e-12)


def test_spiral_rope_deals_pairs_of_speeds_to_directions_in_turn():
    """The example of the paper: 4 directions, 32 features."""
    omega = frequencies("spiral-rope", num_directions=4, head_dim=32, max_frequency=1.0)[:, 0]
    theta = [10000 ** (-t / 8) for t in range(8)]
    expected = {0: [0, 1, 4, 5], 45: [2, 3, 6, 7], 90: [0, 1, 4, 5], 135: [2, 3, 6, 7]}
    degrees = torch.rad2deg(torch.atan2(omega[1], omega[0])).round().int().tolist()
    for angle, which in expected.items():
        found = [omega[:, p].norm().item() for p in range(16) if degrees[p] == angle]
        assert found == pytest.approx([theta[t] for t in which])


def test_spiral_rope_has_two_planes_for_each_direction_by_default():
    angles = torch.atan2(*frequencies("spiral-rope", head_dim=64)[:, 0].flip(0))
    directions, counts = torch.rad2deg(angles).round(decimals=3).unique(return_counts=True)
    assert_close(directions.double(), torch.arange(16) * 11.25, 1e-4)
    assert (counts == 2).all()


# rope-vit, Mochi


@pytest.mark.parametrize("name, axes", [("rope-vit-mixed", 2), ("rope-vit-mixed", 3), ("mochi-rope", 3)])
def test_the_start_is_axial_rope_turned_by_one_rotation_in_each_head(name, axes):
    omega = frequencies(name, num_heads=2, num_axes=axes, head_dim=24)  # (N, 2, 12)
    axis = torch.arange(12) // (12 // axes) if name == "rope-vit-mixed" else torch.arange(12) % axes
    speeds = geometric(10.0, 12 // axes)
    heads = []
    for each in omega.unbind(1):
        rotation = torch.stack([each[:, axis == i][:, 0] for i in range(axes)], 1)
        assert_close(rotation @ rotation.mT, torch.eye(axes).double(), 1e-12)
        for i in range(axes):
            assert_close(each[:, axis == i], rotation[:, i : i + 1] * speeds, 1e-12)
        heads.append(rotation)
    assert (heads[0] - heads[1]).abs().max() > 1e-3


def test_mochis_planes_need_not_come_out_even():
    omega = frequencies("mochi-rope", num_axes=3, head_dim=128, num_heads=1)
    speeds = omega.norm(dim=0).flatten()
    assert_close(speeds, 10.0 ** -(6 * (torch.arange(64) // 3).double() / 128), 1e-12)


# DINOv3


def test_dinov3_draws_positions_for_each_pass_in_training_and_never_else():
    layers = [make("dinov3-rope", shift=0.1, jitter=1.5, rescale=2.0) for _ in range(2)]
    x = comrope.positions.grid((3, 4), dtype=torch.float64)

    def phases():
        return [rotation.phases[0] for rotation in rotations(layers, x)]

    for layer in layers:
        layer.eval()
    assert torch.equal(phases()[0], phases()[1]) and torch.equal(phases()[0], phases()[0])
    for layer in layers:
        layer.train()
    first, second = phases(), phases()
    assert torch.equal(first[0], first[1]) and torch.equal(second[0], second[1])
    assert (first[0] - second[0]).abs().max() > 1e-3
    torch.manual_seed(3)
    one = phases()[0]
    torch.manual_seed(3)
    assert torch.equal(phases()[0], one)


@pytest.mark.parametrize("setting", [{"shift": 0.3}, {"jitter": 2.0}, {"rescale": 2.0}], ids=str)
def test_dinov3_draws_what_it_says(setting):
    pe = make("dinov3-rope", **setting).train()
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    draws = torch.stack([pe.positions_used(x)[0] for _ in range(200)])
    shift, scale = draws[:, 0], draws[:, 1] - draws[:, 0]
    if "shift" in setting:
        assert 0.25 < shift.abs().max() <= 0.3 and (scale - 1).abs().max() < 1e-12
    else:
        assert not shift.any() and 1.8 < scale.max() <= 2 and 0.5 <= scale.min() < 0.55
        assert torch.equal(scale[:, 0], scale[:, 1]) == ("rescale" in setting)
    keys = pe.positions_used(x, x)
    assert torch.equal(*keys)  # queries and keys get the same draw


def test_dinov3_scores_are_relative_within_a_pass_in_training():
    pe = make("dinov3-rope", shift=0.1, jitter=1.5, rescale=2.0).train()
    q, k, x = draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(5, 2)

    def of(positions):
        torch.manual_seed(0)
        return scores(*pe(q, k, positions))

    assert_close(of(x + 7), of(x), 1e-11)


def test_dinov3_with_the_slowest_speed_given_includes_it():
    omega = frequencies("dinov3-rope", max_frequency=2.0, min_frequency=0.02, head_dim=24)[0, 0, :6]
    assert_close(omega, torch.logspace(math.log10(2), math.log10(0.02), 6).double(), 1e-6)


# M-RoPE, VideoRoPE


@pytest.mark.parametrize("name", ["m-rope", "video-rope"])
@pytest.mark.parametrize("more", [{}, {"layout": "interleaved"}], ids=str)
def test_text_at_equal_ids_has_rope(name, more):
    """On three axes (p, p, p), where VideoRoPE's ids are no positions of frames, and on one axis p."""
    if name == "video-rope":
        if more:
            return
        assert_close(frequencies(name, num_axes=1)[:, :1], rope(8, 1e6), 1e-12)
        return
    assert_close(frequencies(name, num_axes=3, **more).sum(0)[0], rope(8, 1e6)[0, 0], 1e-12)
    assert_close(frequencies(name, num_axes=1, **more)[:, :1], rope(8, 1e6), 1e-12)


def test_m_rope_shares_planes_out_as_published():
    assert plane_axes(64).bincount().tolist() == [16, 24, 24]
    interleaved = plane_axes(64, "interleaved")
    assert interleaved.bincount().tolist() == [24, 20, 20]
    assert interleaved.tolist() == [(0, 1, 2)[p % 3] for p in range(60)] + [0] * 4
    assert torch.equal(interleaved, plane_axes(64, "interleaved", [24, 20, 20]))


@pytest.mark.parametrize("name", ["m-rope", "video-rope"])
def test_on_images_the_planes_of_time_do_not_rotate(name):
    image, video = (frequencies(name, num_axes=axes) for axes in (2, 3))
    assert torch.equal(image, video[1:])
    still = ~image.any(0)[0]
    assert still.tolist() == ([True] * 2 + [False] * 6 if name == "m-rope" else [False] * 6 + [True] * 2)


def test_video_ropes_ids_and_its_oblique_frequencies_give_the_same_scores():
    """The ids of the released code, one for each plane, against ω on (frame, row, column)."""
    delta, rows, columns = 2.1, 3, 4
    pe = make("video-rope", num_axes=3, time_scale=delta, head_dim=32)
    x = comrope.positions.grid((2, rows, columns), relative=False, centre=False, dtype=torch.float64)
    t = 5 + delta * x[:, 0]
    ids = torch.stack((t, t + x[:, 1] - (rows - 1) // 2, t + x[:, 2] - (columns - 1) // 2), dim=-1)
    which = torch.tensor([1, 2] * 6 + [0] * 4)
    phases = ids[:, which] * rope(16, 1e6)[0]
    q, k = torch.randn(2, 1, 2, 24, 32, dtype=torch.float64)

    def rotated(tokens):
        pairs = torch.view_as_complex(tokens.unflatten(-1, (16, 2)))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(phases), phases)).flatten(-2)

    assert_close(scores(*pe(q, k, x)), scores(rotated(q), rotated(k)), 1e-12)


# Partial RoPE, p-RoPE


def test_partial_rope_has_the_whole_range_in_fewer_planes_and_p_rope_the_old_spacing():
    partial, p_rope = (frequencies(name, num_axes=1, fraction=0.5)[0, 0] for name in ("partial-rope", "p-rope"))
    full = rope(8)[0, 0]
    assert torch.allclose(partial[:4], full[::2]) and not partial[4:].any()
    assert torch.allclose(p_rope[:4], full[:4]) and not p_rope[4:].any()


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("name", ["partial-rope", "p-rope"])
def test_all_of_it_is_rope_and_nothing_of_it_is_none(name, axes):
    q, k, x = draw(1, 2, 5, 16), draw(1, 2, 5, 16, seed=1), draw(5, axes)
    assert not frequencies(name, num_axes=axes, fraction=0.0).any()
    whole = make(name, num_axes=axes, fraction=1.0)
    found = frequencies(name, num_axes=axes, fraction=1.0)[:, 0]
    expected = comrope.encoding("rope", num_heads=1, head_dim=16, num_axes=axes).spectrum().frequencies.flatten(1)
    order = torch.arange(8).view(-1, axes).T.flatten()  # ours counts planes axis by axis
    assert_close(found, expected[:, order], 1e-12)
    if axes == 1:
        rope = comrope.encoding("rope", num_heads=2, head_dim=16, num_axes=1)
        assert_close(scores(*whole(q, k, x)), scores(*rope(q, k, x)), 1e-12)


def test_p_rope_drops_the_slowest_planes_of_each_axis():
    omega = frequencies("p-rope", num_axes=2, fraction=0.5)[:, 0]
    assert omega.ne(0).tolist() == [[True, True] + 6 * [False], 4 * [False] + [True, True, False, False]]
