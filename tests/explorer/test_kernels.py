"""The numbers of a page are those that the encoding and the model themselves give."""

import math

import numpy as np
import pytest
import torch

import comrope
from comrope.explorer import contents, kernels
from comrope.explorer.exploration import explore
from tests.explorer.helpers import brute_kernel, encoding, unpacked, vit
from tests.helpers import COMMUTING, draw

GRIDS = {1: (9,), 2: (4, 3), 3: (2, 3, 2)}


@pytest.mark.parametrize("num_axes", GRIDS)
@pytest.mark.parametrize("name", COMMUTING)
def test_the_kernel_is_the_mean_score_of_equal_unit_queries_and_keys(name, num_axes):
    """By the encoding's own forward: the sum over an orthonormal basis of scores, divided by the number of features."""
    pe = encoding(name, num_axes, **({} if name in ("none", "rope", "rope-mixed") else {"block_size": 4})).double()
    grid = GRIDS[num_axes]
    found = unpacked(explore(pe, grid=grid))
    step = torch.ones(1, dtype=torch.float64) if num_axes == 1 else 1 / torch.tensor(grid, dtype=torch.float64)
    basis = torch.eye(pe.head_dim, dtype=torch.float64).expand(pe.num_heads, -1, -1).unsqueeze(0)  # (1, H, D tokens, D)
    for displacement in ((0,) * num_axes, (1, -2, 1)[:num_axes], tuple(n - 1 for n in grid)):
        x = draw(1, num_axes).expand(pe.head_dim, -1)
        q, k = pe(basis, basis, x, x + step * torch.tensor(displacement))
        expected = (q * k).sum(-1).mean(-1)[0]
        for head in range(pe.num_heads):
            assert brute_kernel(found, 0, head, "uniform", displacement) == pytest.approx(
                expected[head].item(), abs=1e-6
            )


def test_the_kernel_on_a_grid_is_the_sum_over_planes():
    frequencies, weights = draw(3, 5, 2), torch.complex(draw(3, 5, seed=1), draw(3, 5, seed=2))
    found = kernels.kernel(frequencies, weights, (4, 3))
    assert found.shape == (3, 7, 5)
    phases = torch.einsum("hpn,dn->hpd", frequencies, kernels.displacements((4, 3)))
    expected = (weights.unsqueeze(-1) * torch.exp(1j * phases)).sum(1).real
    torch.testing.assert_close(found.flatten(1), expected)


def test_a_kernel_that_depends_on_the_place_is_the_mean_over_places():
    pe, grid = encoding("liere", block_size=4).double().requires_grad_(False), (3, 4)
    layer = unpacked(explore(pe, grid=grid))["layers"][0]
    positions = comrope.positions.grid(grid, dtype=torch.float64)
    rotation = pe.rotation_matrices(positions)
    for displacement in ((0, 0), (1, -2), (-2, 3)):
        scores = []
        for i, x in enumerate(positions):
            for j, y in enumerate(positions):
                if torch.allclose((y - x) * torch.tensor(grid), torch.tensor(displacement, dtype=torch.float64)):
                    product = (rotation[i].mT @ rotation[j]).diagonal(dim1=-2, dim2=-1).sum((1, 2)) / pe.head_dim
                    scores.append(product)
        stacked = torch.stack(scores)
        at = (slice(None), *(d + n - 1 for d, n in zip(displacement, grid, strict=True)))
        np.testing.assert_allclose(layer["kernels"]["uniform"]["mean"][at], stacked.mean(0), atol=1e-4)
        np.testing.assert_allclose(layer["kernels"]["uniform"]["spread"][at], stacked.std(0, correction=0), atol=1e-4)


@pytest.mark.parametrize("name", ["comrope-ld", "liere"])
def test_the_kernel_of_an_image_is_the_mean_score_of_its_tokens_at_a_displacement(name):
    """All pairs of the contents of two patches, one of them put Δ from the other, scored by the encoding itself."""
    model = vit(name)
    image = draw(3, 32, 32).float()
    found = unpacked(explore(model, image=image))
    attention = model.blocks[1].attn
    recorded = []
    handle = attention.qkv.register_forward_pre_hook(lambda _, args: recorded.append(args[0]))
    with torch.no_grad():
        model(image.unsqueeze(0))
        handle.remove()
        w, b = attention.qkv.weight.double(), attention.qkv.bias.double()
        qkv = recorded[0].double() @ w.T + b  # without any rotation
        q, k, _ = qkv.view(17, 3, 2, 24)[1:].permute(1, 2, 0, 3).unsqueeze(1)  # (1, heads, 16 patches, 24) each
        pe = attention.encoding.double()
        positions = comrope.positions.grid((4, 4), dtype=torch.float64)
        at = torch.tensor([1, -2], dtype=torch.float64)
        means = []
        for x in positions:
            y = x + at / 4
            if ((y < 0) | (y > 1)).any():
                continue
            rotated_q, rotated_k = pe(q, k, x.expand(16, -1), y.expand(16, -1))
            means.append((rotated_q @ rotated_k.mT).mean((0, 2, 3)) / 24**0.5)
    expected = torch.stack(means)
    for head in range(2):
        if name == "liere":
            kernel = found["layers"][1]["kernels"]["image"]
            assert kernel["mean"][head, 4, 1] == pytest.approx(expected[:, head].mean().item(), abs=1e-4)
            assert kernel["spread"][head, 4, 1] == pytest.approx(expected[:, head].std(correction=0).item(), abs=1e-4)
            assert expected[:, head].std() > 1e-3
        else:
            assert expected[:, head].std() < 1e-9
            assert brute_kernel(found, 1, head, "image", (1, -2)) == pytest.approx(expected[0, head].item(), abs=1e-5)


@pytest.mark.parametrize("folded", [False, True])
def test_weights_of_planes_are_what_white_inputs_have_in_them(folded):
    """Sizes of queries and keys in each plane, from many random inputs through the projection and the basis."""
    model = vit("comrope-mt")
    attention = model.blocks[0].attn
    basis, _ = attention.encoding.spectrum()
    w, b = attention.qkv.weight.detach().double(), attention.qkv.bias.detach().double()
    x = draw(20000, 48)
    q, k, _ = (x @ w.T + b).view(-1, 3, 2, 24).unbind(1)
    planes = [
        torch.einsum("nhmc,hmcd->nhmd", part.unflatten(-1, basis.shape[1:3]), basis).unflatten(-1, (-1, 2))
        for part in (q, k)
    ]
    size_q, size_k = (part.square().sum(-1).mean(0).flatten(1) for part in planes)
    expected = (size_q * size_k).sqrt()
    expected = expected / expected.sum(1, keepdim=True)
    if folded:
        comrope.fold(model)
    layer = unpacked(explore(model))["layers"][0]
    assert layer["encoding"] == ("folded to RoPE" if folded else "comrope-mt")
    np.testing.assert_allclose(layer["weights"]["weights"][..., 0], expected, rtol=0.05)
    assert np.abs(layer["weights"]["weights"][..., 1]).max() == 0


def test_folding_changes_no_number():
    model = vit("comrope-mt")
    before = unpacked(explore(model, image=draw(3, 32, 32).float()))
    comrope.fold(model)
    after = unpacked(explore(model, image=draw(3, 32, 32).float()))
    for old, new in zip(before["layers"], after["layers"], strict=True):
        np.testing.assert_allclose(old["frequencies"], new["frequencies"], atol=1e-5)
        assert old["reach"] == new["reach"]
        for kind in ("weights", "image"):
            np.testing.assert_allclose(old["weights"][kind], new["weights"][kind], atol=1e-4)


def test_reach_of_a_known_kernel():
    """One plane along the columns, |cos(Δ/2)|, and one that is dead: by hand. A constant kernel reaches everywhere."""
    frequencies = torch.tensor([[[0.5]], [[0.0]]], dtype=torch.float64)
    values = kernels.kernel(frequencies, torch.ones(2, 1), (6,))
    # |cos(r/2)|: 1, .878, .540, .071, .416, .801 — never below ½ for good
    assert kernels.reach(values) == [None, None]
    assert kernels.reach(kernels.kernel(frequencies, torch.ones(2, 1), (5,))) == [3.0, None]


@pytest.mark.parametrize("grid", [(40,), (9, 7), (3, 4, 5)])
def test_reach_of_rope_by_brute_force(grid):
    pe = encoding("rope", len(grid), base=3.0, max_frequency=2.5 * (1 if len(grid) == 1 else max(grid)))
    found = unpacked(explore(pe, grid=grid))
    profile: dict[int, list[float]] = {}
    for displacement in kernels.displacements(grid).tolist():
        distance = math.floor(math.dist(displacement, [0] * len(grid)) + 0.5)
        value = brute_kernel(found, 0, 0, "uniform", displacement)
        profile.setdefault(distance, []).append(abs(value))
    means = [np.mean(profile[r]) for r in range(max(grid))]
    expected = next((r for r in range(max(grid)) if all(m < 0.5 for m in means[r:])), None)
    assert found["layers"][0]["reach"]["uniform"] == [expected] * 2
    assert expected is not None


def test_dead_and_aliasing_planes_are_counted_in_radians_a_patch():
    pe = comrope.encoding("rope-mixed", num_heads=1, head_dim=8, num_axes=2)
    with torch.no_grad():
        pe.frequencies.zero_()
        pe.frequencies[0, 0, :, 0] = 10 * torch.tensor([0.0, 0.009, 0.02, 3.2])  # a row is 1/10 of the image
        pe.frequencies[1, 0, 0, 0] = 5 * 0.011  # a column 1/5
    layer = explore(pe, grid=(10, 5))["layers"][0]
    assert (layer["dead"], layer["alias"]) == ([1], [1])


def test_drift_and_commutators_are_zero_only_where_angles_commute():
    for name in ("comrope-ld", "rope", "liere"):
        layer = explore(encoding(name), grid=(4, 4))["layers"][0]
        for what in ("commutator", "drift"):
            assert all(value > 1e-3 if name == "liere" else value < 1e-12 for value in layer[what])
    report = comrope.check(encoding("liere"))
    assert max(layer["commutator"]) == pytest.approx(report[0].commutator)


def test_attention_on_a_page_is_that_of_the_model():
    """The rounded queries and keys give the attention that the model computes, to the rounding that the page states."""
    for name in ("comrope-ld", "liere"):
        model = vit(name)
        image = draw(3, 32, 32).float()
        found = unpacked(explore(model, image=image))
        attention, seen = model.blocks[1].attn, []
        attention.fused_attn = False
        handle = attention.attn_drop.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out))
        with torch.no_grad():
            model(image.unsqueeze(0))
        handle.remove()
        layer = found["layers"][1]
        parts = []
        for which in ("queries", "keys"):
            part = layer["tokens"][which]
            numbers = part["mean"][..., None] + part["step"][:, None, None] * part["numbers"]
            parts.append(torch.from_numpy(numbers.astype(float)).permute(2, 0, 1))
        planes = None if name == "liere" else torch.from_numpy(layer["frequencies"].astype(float))
        places = torch.from_numpy(found["image"]["places"].astype(float))
        difference = (contents.attention(*parts, planes, places) - seen[0][0].double()).abs().max().item()
        assert difference <= layer["tokens"]["rounding"] + 1e-5
        assert layer["tokens"]["rounding"] < 1e-3


def test_a_text_model_counts_tokens_and_shares_key_heads():
    from tests.hosts import tiny_transformers

    model = comrope.attach(tiny_transformers.build("llama"), "comrope-ld", block_size=4)
    found = unpacked(explore(model))
    assert (found["axes"], found["grid"]) == (("token",), (128,))
    layer = found["layers"][0]
    assert layer["heads"] == 4 and layer["frequencies"].shape == (4, 8, 1)
    np.testing.assert_array_equal(layer["frequencies"][0], layer["frequencies"][1])  # of one key head
    inverse = model.model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(np.sort(np.abs(layer["frequencies"][0, :, 0])), np.sort(inverse), rtol=1e-5)
    assert np.abs(layer["weights"]["weights"][0] - layer["weights"]["weights"][1]).max() > 1e-4
    assert unpacked(explore(model, grid=40))["grid"] == (40,)
