"""comrope bench: its opponents do the same work, its ratios are taken round by round, its page shows its own output."""

import json
from pathlib import Path

import pytest
import torch

from comrope.lab import bench, terminal

ROOT = Path(__file__).parents[2]
TINY = bench.Shape("tiny", 2, 2, 9, 16, 2)


def _scores(rotate):
    torch.manual_seed(1)
    q, k = TINY.tokens(), TINY.tokens()
    q, k = rotate(q, k)
    return q @ k.mT


def test_the_papers_algorithm_in_both_forms_is_what_ours_is_measured_against():
    ways = bench.opponents(TINY)
    ours = _scores(ways["LD, ours"])
    for name in ("LD as published, a dense rotation a sample", "LD as published, positions shared"):
        torch.testing.assert_close(_scores(ways[name]), ours, rtol=1e-5, atol=1e-5)


def test_plain_rope_is_a_rotation_in_every_library():
    """Each keeps the norm of every query; so what is timed is a rotation and nothing less."""
    torch.manual_seed(1)
    q, k = TINY.tokens(), TINY.tokens()
    for name, rotate in bench.opponents(TINY).items():
        if name.startswith("RoPE") and "compiled" not in name:
            turned, _ = rotate(q, k)
            torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))
            assert not torch.allclose(turned, q)


def test_opponents_take_turns_and_warm_up():
    order = []
    steps = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = bench.in_turn(steps, 3, lambda _: None)
    assert order == ["a", "b"] * 5
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3}


def test_rows_of_a_shape():
    rows = bench.rotations(TINY, 2, lambda _: None)
    for mode in ("forward", "forward + backward"):
        of_mode = {row["opponent"]: row for row in rows if row["mode"] == mode}
        assert list(of_mode) == list(bench.opponents(TINY))
        assert of_mode[bench.BASELINE]["ratio"] == [1.0, 1.0, 1.0]
        assert all(row["seconds"][0] <= row["seconds"][1] <= row["seconds"][2] for row in of_mode.values())
        assert all(row["seconds"][0] > 0 and row["rounds"] == 2 for row in of_mode.values())
    one = 4 * 2 * 2 * 9 * 16  # bytes of q
    assert {row["mode"]: row["least_bytes"] for row in rows} == {"forward": 4 * one, "forward + backward": 10 * one}


@pytest.mark.parametrize("shape", bench.SHAPES, ids=lambda shape: shape.name)
def test_positions_fit_their_shape(shape):
    assert shape.positions().shape == (shape.num_tokens, shape.num_axes)


def test_performance_page_shows_its_raw_output():
    found = json.loads((ROOT / "docs/bench/cpu-2-threads.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    for row in (*found["rotations"], *found["training_steps"]):
        if row.get("shape") in (None, "ViT-B/16 at 224"):
            _, ratio = terminal.timing(row)
            assert ratio in page, row["opponent"]
    for row in found["memory"]:
        assert f"{row['peak_bytes'] / 1e6:.0f}" in page
