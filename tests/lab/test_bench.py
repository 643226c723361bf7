"""comrope bench: its opponents do the same work, its ratios are taken round by round, its page shows its own output."""

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import comrope
from comrope.lab import bench
from comrope.lab.bench import attached, clock, measure, opponents, targets
from comrope.lab.bench.figure import figure
from comrope.lab.bench.tables import measured_on, tables
from comrope.lab.output import write
from comrope.lab.table import markdown_file

ROOT = Path(__file__).parents[2]
RUNS = [ROOT / "benchmarks" / name for name in ("cpu-2-threads", "cpu-2-threads-memory-kept")]
TINY = opponents.Shape("tiny", 2, 2, 9, 16, 2)


@pytest.fixture
def uncompiled(monkeypatch):
    """Compiling takes minutes, and what is compiled is compared in tests/encodings/test_compile.py."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def _scores(rotate):
    torch.manual_seed(1)
    q, k = TINY.tokens(), TINY.tokens()
    q, k = rotate(q, k)[:2]
    return q @ k.mT


def test_the_papers_algorithm_in_both_forms_is_what_ours_is_measured_against(uncompiled):
    ways = opponents.opponents(TINY)
    ours = _scores(ways["LD, ours"])
    for name in (opponents.PUBLISHED, opponents.SHARED, "LD, ours, compiled"):
        torch.testing.assert_close(_scores(ways[name]), ours, rtol=1e-5, atol=1e-5)


def test_plain_rope_is_a_rotation_in_every_library(uncompiled):
    """Each keeps the norm of every query; so what is timed is a rotation and nothing less."""
    torch.manual_seed(1)
    q, k = TINY.tokens(), TINY.tokens()
    for name, rotate in opponents.opponents(TINY).items():
        if name.startswith("RoPE"):
            turned, _ = rotate(q, k)
            torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))
            assert not torch.allclose(turned, q)


def test_a_basis_in_the_weights_has_their_product_and_its_gradient_in_its_price(uncompiled):
    rotate = opponents.opponents(TINY)["LD, ours, basis in the weights"]
    *_, weight = rotate(TINY.tokens(), TINY.tokens())
    assert weight.shape == (2 * 2 * 16, 2 * 16)
    assert weight.requires_grad


def test_attached_rows_are_of_the_same_model_that_learns_in_each_step():
    """Where the start is the model's own RoPE the logits are its own; the rows are those that targets ask for."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "vocab_size": 16,
        "num_hidden_layers": 1,
    }
    words = {"input_ids": torch.arange(12).unsqueeze(0)}
    host = attached.Host("tiny", 12, lambda depth: LlamaForCausalLM(LlamaConfig(**sizes)), lambda batch: words)
    models = attached.models(host, 1)
    with torch.no_grad():
        logits = {name: model(**words).logits for name, model in models.items()}
    for name, found in logits.items():
        torch.testing.assert_close(found, logits[attached.OWN], rtol=1e-4, atol=1e-4)
        angles = [p for n, p in models[name].named_parameters() if ".encoding." in n]
        before = [p.detach().clone() for p in angles]
        attached.training_step(models[name], words)()
        assert bool(angles) == (name != attached.OWN)
        assert all(not torch.equal(p, was) for p, was in zip(angles, before, strict=True))
    quiet = {"rounds": 2, "batch": 1, "depth": 1, "progress": lambda _: None}
    rows = attached.training(host, **quiet) + attached.inference(host, **quiet)
    assert [row["opponent"] for row in rows] == [*attached.WAYS, attached.OWN, "LD, attached", attached.FOLDED]
    assert [target.what for target in targets._of_host("tiny", rows)] == [
        *(f"tiny, training step, {way}: time" for way in list(attached.WAYS)[1:]),
        f"tiny, inference, {attached.FOLDED}: time",
    ]


def test_opponents_take_turns_and_warm_up():
    order = []
    steps = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = clock.in_turn(steps, 3, lambda _: None)
    assert order == ["a", "b"] * 5
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3}


def test_a_step_is_repeated_in_its_turn_and_its_median_counts(monkeypatch):
    durations = iter([9.0, 1.0, 2.0, 30.0] * 4)  # a turn of 40 seconds takes four steps
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def step():
        now[0] += next(durations)

    assert clock.in_turn({"a": step}, 2, lambda _: None, turn=40)["a"] == [5.5, 5.5]


def test_rows_of_a_shape(uncompiled, monkeypatch):
    monkeypatch.setattr(measure, "TURN", 0)
    rows = measure.rotations(TINY, 2, lambda _: None)
    for mode in ("forward", "forward + backward"):
        of_mode = {row["opponent"]: row for row in rows if row["mode"] == mode}
        assert list(of_mode) == list(opponents.opponents(TINY))
        assert of_mode[opponents.BASELINE]["ratio"] == [1.0, 1.0, 1.0]
        assert all(row["seconds"][0] <= row["seconds"][1] <= row["seconds"][2] for row in of_mode.values())
        assert all(row["seconds"][1] > 0 and row["rounds"] == 2 for row in of_mode.values())
    one = 4 * 2 * 2 * 9 * 16  # bytes of q
    assert {row["mode"]: row["least_bytes"] for row in rows} == {"forward": 4 * one, "forward + backward": 10 * one}


def test_the_model_of_the_bench_folds(monkeypatch):
    monkeypatch.setattr(measure, "IMAGE", (32, 32))
    pixels = torch.randn(2, 3, 32, 32)
    learned = measure.vit("LD, block 8", 1).eval()
    with torch.no_grad():
        expected = learned(pixels)
        torch.testing.assert_close(comrope.fold(learned)(pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_peak_memory_is_that_of_the_step():
    fill = (functools.partial, torch.ones, 12_500_000)  # 50 megabytes
    assert 40e6 < clock.peak_memory(*fill, above_start=True) < 80e6
    assert clock.peak_memory(*fill, above_start=False) > 100e6  # with torch itself


@pytest.mark.parametrize(("power", "expected"), [(1, 1), (2, 2), (0.5, 0.5)])
def test_slope(power, expected):
    assert targets.slope([(x, 3 * x**power) for x in (1, 4, 32)]) == pytest.approx(expected)


def test_a_target_is_reached_from_its_own_side():
    assert targets.Target("", 2, True, 2.5).reached
    assert not targets.Target("", 2, True, 1.5).reached
    assert targets.Target("", 2, False, 1.5).reached
    assert not targets.Target("", 2, False, 2.5).reached


@pytest.mark.parametrize("shape", opponents.SHAPES, ids=lambda shape: shape.name)
def test_positions_fit_their_shape(shape):
    assert shape.positions().shape == (shape.num_tokens, shape.num_axes)


def _found(run: Path) -> dict:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_tables_targets_and_figure_follow_from_the_raw_output(run):
    found = _found(run)
    again = [target.row() for target in targets.targets(found)]
    assert again == [row | {"measured": pytest.approx(row["measured"], rel=1e-12)} for row in found["targets"]]
    assert markdown_file("comrope bench", tables(found)) == (run / "tables.md").read_text(encoding="utf-8")
    assert len(figure(found).axes) == 2
    assert (run / "bench.svg").exists()


@pytest.mark.slow
def test_a_bench_is_written_as_every_result_is(tmp_path):
    found = {"title": "comrope bench", "notes": [], **_found(RUNS[0])}
    outcome = bench.outcome(found)
    names = [table.name for table in outcome.tables]
    assert len(set(names)) == len(names) and all(name.startswith("bench-") for name in names)
    write(found, outcome, tmp_path)
    files = {"results.json", "tables.md", "report.html", "bench.svg", "bench.png", *(f"{name}.csv" for name in names)}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert (tmp_path / "tables.md").read_text("utf-8") == (RUNS[0] / "tables.md").read_text("utf-8")
    assert measured_on(found) in (tmp_path / "report.html").read_text("utf-8")


def test_threads_and_versions_are_said():
    found = bench.environment()
    said = measured_on(found)
    assert said.startswith(f"{torch.get_num_threads()} threads, ")
    assert f"torch {torch.__version__.partition('+')[0]}" in said and "transformers " in said


def test_performance_page_shows_every_target_as_measured():
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    both = [_found(run) for run in RUNS]
    rows = [{row["what"]: row for row in found["targets"]} for found in both]
    assert rows[0].keys() == rows[1].keys()
    for what, row in rows[0].items():
        cells = [f" {each[what]['measured']:.3g} | {'yes' if each[what]['reached'] else 'no'} |" for each in rows]
        line = f"| {what} | {row['target']} |{''.join(cells)}"
        assert line in text, line
    for found in both:
        tuned = found.get("allocator")
        assert (f"GLIBC_TUNABLES={tuned} {found['command']}" if tuned else found["command"]) in text


def test_every_figure_on_the_performance_page_is_in_the_tables():
    """Milliseconds and megabytes in the text come from the runs."""
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    raw = "".join((run / "tables.md").read_text(encoding="utf-8") for run in RUNS)
    shown = set(re.findall(r"(\d+(?:\.\d+)?) (?:ms|MB)\b", text))
    assert shown
    assert not [figure for figure in shown if not re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.])", raw)]
