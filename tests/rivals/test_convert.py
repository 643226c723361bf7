"""Tensors of others to frequencies and back, and what a format cannot hold."""

import math

import pytest
import torch

import comrope
from comrope.errors import ConfigurationError, InputError
from comrope.rivals import convert
from comrope.rivals.golden_gate import golden_directions
from tests.helpers import assert_close, draw, scores
from tests.rivals.cases import frequencies

GRID = (3, 5)
L, H, F = 4, 2, 8
FORMATS = {
    "timm": (convert.TimmMixedFreqs(), (2, L, H, F)),
    "rope-vit": (convert.RoPEViTFreqs(H), (2, L, H * F)),
    "mochi": (convert.MochiPosFrequencies(GRID), (3, H, F)),
    "golden gate": (convert.GoldenGateFreqs(GRID), (H, F, 2)),
    "falcon": (convert.GoldenGateFreqs(GRID, axes="hw"), (H, F, 2)),
    "axial": (convert.AxialInvFreq(), (F // 2,)),
    "axial in 3 axes": (convert.AxialInvFreq(3), (4,)),
    "dinov3": (convert.DINOv3Periods(GRID), (F // 2,)),
    "m-rope": (convert.MRoPEInvFreq(), (F,)),
    "interleaved m-rope": (convert.MRoPEInvFreq("interleaved", (4, 2, 2)), (F,)),
}


def _tensor(name):
    return draw(*FORMATS[name][1]).abs() + 0.1


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_read_is_written_again(name):
    fmt = FORMATS[name][0]
    for dtype in (torch.float32, torch.float64):
        tensor = _tensor(name).to(dtype)
        omega = fmt.read(tensor)
        assert omega.dtype == dtype and omega.ndim == 4
        assert_close(fmt.write(omega), tensor, 1e-6 if dtype == torch.float32 else 1e-14)
        many = omega.expand(L, -1, H, -1) if name not in ("timm", "rope-vit") else omega
        assert_close(fmt.write(many), tensor, 1e-6)  # of all layers and heads, where they are the same


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_of_another_shape_are_refused(name):
    fmt, shape = FORMATS[name]
    with pytest.raises(InputError, match=r"got .*; expected floating-point numbers"):
        fmt.read(torch.zeros(1, *shape))
    with pytest.raises(InputError, match=r"frequencies: got .*; expected floating-point numbers"):
        fmt.write(torch.zeros(1, 5, H, F))


@pytest.mark.parametrize("source", ["timm", "golden gate", "falcon", "axial", "dinov3"])
def test_every_format_in_two_axes_becomes_timms(source):
    omega = FORMATS[source][0].read(_tensor(source)).expand(L, 2, H, F)
    timm = convert.TimmMixedFreqs()
    assert torch.equal(timm.read(timm.write(omega)), omega)


def test_timms_tensor_gives_the_phases_of_timms_module():
    timm = pytest.importorskip("timm.layers.pos_embed_sincos")
    theirs = timm.RotaryEmbeddingMixed(32, depth=L, num_heads=H, feat_shape=list(GRID))
    sin, cos = theirs.get_embed(list(GRID)).chunk(2, dim=-1)  # (L, H, patches, D)
    omega = convert.TimmMixedFreqs().read(theirs.freqs.detach())
    x = comrope.positions.grid(GRID, relative=False, centre=False)
    phases = torch.einsum("pn,lnhf->lhpf", x, omega)
    assert_close(torch.stack((phases.cos(), phases.sin())), torch.stack((cos, sin))[..., ::2], 1e-5)


def test_axial_and_dinov3_tensors_give_the_phases_of_timms_modules():
    timm = pytest.importorskip("timm.layers.pos_embed_sincos")
    dinov3, axial = timm.RotaryEmbeddingDinoV3(16), timm.RotaryEmbeddingCat(16, in_pixels=False)
    x = comrope.positions.grid(GRID, relative=False, centre=False)
    centred = x - (torch.tensor(GRID) - 1) / 2
    cases = (
        (convert.DINOv3Periods(GRID).read(dinov3.periods), centred, dinov3, slice(8)),
        (convert.AxialInvFreq().read(axial.bands), x, axial, slice(0, None, 2)),
    )
    for omega, positions, theirs, planes in cases:
        sin, cos = theirs.get_embed(list(GRID)).chunk(2, dim=-1)
        phases = positions @ omega[0, :, 0]
        assert_close(torch.stack((phases.cos(), phases.sin())), torch.stack((cos, sin))[..., planes], 1e-5)


@pytest.mark.parametrize("axes", ["xy", "hw"])
def test_golden_gates_tensor_gives_its_phases(axes):
    """By its grid: area 4, the outermost patch centres at its ends."""
    rows, columns = GRID
    speeds = 0.2 * 100 ** (torch.arange(F).double() / (F - 1))
    directions = golden_directions(H * F, 2).view(H, F, 2)  # (row, column)
    freqs = speeds.unsqueeze(-1) * (directions.flip(-1) if axes == "xy" else directions)
    y = torch.linspace(-1, 1, rows, dtype=torch.float64) * math.sqrt(rows / columns)
    x = torch.linspace(-1, 1, columns, dtype=torch.float64) * math.sqrt(columns / rows)
    y, x = (each.flatten() for each in torch.meshgrid(y, x, indexing="ij"))
    theirs = torch.einsum("pa,hfa->phf", torch.stack((x, y) if axes == "xy" else (y, x), -1), freqs)
    omega = convert.GoldenGateFreqs(GRID, axes).read(freqs)[0]
    index = comrope.positions.grid(GRID, relative=False, centre=False, dtype=torch.float64)
    ours = torch.einsum("pa,ahf->phf", index, omega)
    assert_close(ours - ours[:1], theirs - theirs[:1], 1e-12)
    square = convert.GoldenGateFreqs((14, 14), axes).read(freqs)[0]
    assert_close(square, frequencies("golden-gate", num_heads=H, head_dim=2 * F), 1e-12)


REFUSED = {
    "layers": (convert.MochiPosFrequencies(GRID), draw(L, 3, H, F), "all layers have the same frequencies"),
    "layers of golden gate": (convert.GoldenGateFreqs(GRID), draw(L, 2, H, F), "all layers have the same frequencies"),
    "heads": (convert.AxialInvFreq(), draw(1, 2, H, F), "all heads have the same frequencies"),
    "oblique": (convert.AxialInvFreq(), draw(1, 2, 1, F), "each plane rotates along one axis, in their order"),
    "other axes": (
        convert.AxialInvFreq(),
        torch.block_diag(draw(1, 4), draw(1, 4, seed=1)).view(1, 2, 1, F),
        "all axes have the same frequencies",
    ),
    "odd": (convert.AxialInvFreq(3), draw(1, 3, 1, F), "8 planes cannot be shared out evenly among 3 axes"),
    "still": (
        convert.DINOv3Periods(GRID),
        torch.zeros(1, 2, 1, F),
        "do not rotate, or rotate backwards, have no period",
    ),
    "another grid": (
        convert.DINOv3Periods((5, 5)),
        convert.DINOv3Periods(GRID).read(_tensor("dinov3")),
        "all axes have the same frequencies",
    ),
    "other sections": (
        convert.MRoPEInvFreq(),
        convert.MRoPEInvFreq("interleaved", (4, 2, 2)).read(_tensor("m-rope")),
        "the one axis that its section says",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_format_cannot_hold_is_refused_with_the_reason(case):
    fmt, omega, reason = REFUSED[case]
    with pytest.raises(ConfigurationError, match=reason):
        fmt.write(omega)


@pytest.mark.parametrize("grid", [(3,), (0, 3), 3, (2.5, 3)], ids=str)
def test_grids_that_are_none_are_refused(grid):
    for kind in (convert.MochiPosFrequencies, convert.DINOv3Periods, convert.GoldenGateFreqs):
        with pytest.raises(ConfigurationError, match="expected two whole numbers"):
            kind(grid)
    with pytest.raises(ConfigurationError, match="axes='yx': expected 'xy' or 'hw'"):
        convert.GoldenGateFreqs(GRID, axes="yx")


@pytest.mark.parametrize("rotated", [None, 8])
def test_projections_are_reordered_between_the_layouts(rotated):
    """Queries and keys of a model with planes (p, p + r/2), reordered, have the same scores with neighbouring planes."""
    head_dim, r = 16, rotated or 16
    w_q, w_k, tokens, x = draw(2 * 16, 6), draw(2 * 16, 6, seed=1), draw(1, 5, 6), draw(5, 1)
    omega = torch.rand(r // 2).double()

    def heads(weight):
        return (tokens @ weight.mT).unflatten(-1, (2, head_dim)).transpose(1, 2)

    def halves(t):
        first, second, rest = t.split((r // 2, r // 2, head_dim - r), dim=-1)
        cos, sin = (x * omega).cos(), (x * omega).sin()
        return torch.cat((first * cos - second * sin, first * sin + second * cos, rest), dim=-1)

    expected = scores(halves(heads(w_q)), halves(heads(w_k)))
    pe = comrope.encodings.FixedFrequencies(2, head_dim, 1)
    pe.set_frequencies(torch.nn.functional.pad(omega, (0, (head_dim - r) // 2)).unsqueeze(0))
    ordered = [convert.to_neighbours(each, head_dim, rotated) for each in (w_q, w_k)]
    assert_close(scores(*pe(*map(heads, ordered), x)), expected, 1e-12)
    assert torch.equal(convert.to_halves(ordered[0], head_dim, rotated), w_q)
    norm = torch.arange(16.0)  # a norm's weight is of one head
    assert torch.equal(convert.to_halves(convert.to_neighbours(norm, head_dim, rotated), head_dim, rotated), norm)
    with pytest.raises(InputError, match=r"rows: got .*; expected \(heads · 16, …\)"):
        convert.to_neighbours(draw(17, 6), head_dim)
