"""The command line: what it says, its exit codes, and that mistakes cost one line and no file."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from comrope.encodings import ENCODINGS

COMROPE = str(Path(sys.executable).with_name("comrope"))


def _one_line(text: str) -> bool:
    return text.startswith("comrope: ") and text.count("\n") == 1 and text.endswith("\n")


@pytest.mark.slow
def test_unknown_encoding_on_the_real_command_line(tmp_path):
    arguments = [COMROPE, "demo", "--encodings", "none", "comrope-dl", "--out", str(tmp_path / "result")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert _one_line(done.stderr), done.stderr
    assert "comrope-dl" in done.stderr and all(name in done.stderr for name in ENCODINGS)
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_jobs(comrope):
    code, out, err = comrope("--help")
    assert (code, err) == (0, "")
    assert "usage: comrope" in out
    assert re.search(r"\bdemo\b", out) and re.search(r"\breport\b", out)


@pytest.mark.parametrize(
    ("job", "options"),
    [
        ("demo", ["--out", "--seed", "--epochs", "--encodings", "--parallel"]),
        ("report", ["--out", "PATH"]),
        (
            "train images",
            ["--out", "--data", "--model", "--encoding", "--perturbation", "--learning-rate", "--micro-batch"],
        ),
        ("evaluate images", ["--resolutions", "--offsets", "--perturbations", "--direction"]),
        ("reproduce", ["--scale", "--list", "--data", "--seeds", "--runs"]),
    ],
)
def test_help_of_each_job_names_its_options(comrope, job, options):
    code, out, err = comrope(*job.split(), "--help")
    assert (code, err) == (0, "")
    assert all(option in out for option in options)


@pytest.mark.parametrize(
    "arguments",
    [[], ["dmo"], ["demo", "--epoch-count", "3"], ["demo", "--seed", "x"], ["report"], ["train"], ["evaluate"]],
)
def test_arguments_that_do_not_parse(comrope, arguments):
    code, out, err = comrope(*arguments)
    assert code == 2
    assert out == "" and err and "Traceback" not in err


@pytest.mark.parametrize("beside", [False, True])
def test_demo_leaves_foreign_files_alone(comrope, tmp_path, beside):
    (tmp_path / "thesis.tex").write_text("mine")
    if beside:
        (tmp_path / "results.json").write_text("old")
    before = {p.name: p.read_text() for p in tmp_path.iterdir()}
    code, out, err = comrope("demo", "--out", tmp_path, "--encodings", "none", "--epochs", "1")
    assert code == 2 and out == ""
    assert _one_line(err) and str(tmp_path) in err
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before


def test_demo_refuses_a_file_as_its_folder(comrope, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = comrope("demo", "--out", tmp_path / "file", "--encodings", "none", "--epochs", "1")
    assert code == 2 and _one_line(err) and "is a file" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_demo_refuses_no_workers(comrope, tmp_path):
    code, _, err = comrope("demo", "--out", tmp_path / "result", "--parallel", "0")
    assert code == 2 and _one_line(err) and "parallel=0" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [None, "", '{"runs": [', "[]", "null", "{}", '{"runs": []}', '{"runs": [{}]}', json.dumps({"runs": 3})],
)
def test_report_of_missing_or_damaged_results(comrope, tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    page = tmp_path / "report.html"
    page.write_text("earlier")
    code, out, err = comrope("report", tmp_path, "--out", page)
    assert code == 2 and out == ""
    assert _one_line(err) and "results" in err
    assert page.read_text() == "earlier"


def test_an_interrupt_is_exit_130(comrope, monkeypatch):
    """Ctrl-C, and SIGTERM, which is turned into one; here while the results are read."""
    from comrope.lab import results

    for number in (signal.SIGINT, signal.SIGTERM):
        monkeypatch.setattr(results, "read", lambda path, number=number: signal.raise_signal(number))
        code, out, err = comrope("report", "anywhere")
        assert (code, out) == (130, "")
        assert _one_line(err) and "stopped" in err


TRAIN = (
    "train images --data digits --num-train 60 --num-test 40 --model tiny --image-size 8 8 --epochs 1 --batch-size 20"
)


def test_train_then_evaluate(comrope, tmp_path):
    code, out, err = comrope(*TRAIN.split(), "--encoding", "comrope-mt", "--out", tmp_path / "run")
    assert (code, err) == (0, "") and "8×8" in out and "wrote" in out
    asked = ("--resolutions", "8", "12x16", "--offsets", "0", "2", "--perturbations", "0", "1")
    code, out, err = comrope("evaluate", "images", tmp_path / "run", *asked)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if "×" in line]
    assert [row[0] for row in rows] == ["8×8"] * 4 + ["12×16"] * 4
    heading = next(line.split() for line in out.splitlines() if "total" in line)
    assert {row[heading.index("total")] for row in rows} == {"40"}
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(found["evaluation"]) == 8
    # The row shown is the row on disk.
    shown = [
        row for row in found["evaluation"] if row["size"] == [12, 16] and row["offset"] == 2 and not row["perturbation"]
    ]
    assert f"{100 * shown[0]['correct'] / 40:.2f}" in next(" ".join(r) for r in rows if r[0] == "12×16" and r[1] == "2")
    scaled = ("--resolutions", "8", "16x8", "--scalings", "none", "yarn")
    code, out, err = comrope("evaluate", "images", tmp_path / "run", *scaled)
    assert (code, err) == (0, "")
    rows = [line.split()[:2] for line in out.splitlines() if "×" in line]
    assert rows == [["8×8", "none"], ["16×8", "none"], ["16×8", "yarn"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("evaluate images nowhere", "is no run"),
        ("reproduce", "recipe '': expected one of table1"),
        ("reproduce table2x", "table1"),
        ("train images --out {out} --data nowhere", "expected digits, fashion-mnist"),
        ("train images --out {out} --model huge", "vit-b/16"),
        ("train images --out {out} --encoding ropee", "ropee"),
        (TRAIN + " --micro-batch 7 --out {out}", "micro_batch=7"),
    ],
)
def test_mistakes_in_the_laboratory_cost_one_line(comrope, tmp_path, arguments, said):
    code, _, err = comrope(*arguments.format(out=tmp_path / "run").split())
    assert code == 2 and _one_line(err) and said in err


@pytest.mark.parametrize("size", ["8x", "x", "0", "8x8x8", "eight"])
def test_a_resolution_is_pixels(comrope, tmp_path, size):
    assert comrope(*TRAIN.split(), "--out", tmp_path / "run")[0] == 0
    code, _, err = comrope("evaluate", "images", tmp_path / "run", "--resolutions", size)
    assert code == 2 and _one_line(err) and repr(size) in err


def test_tensorboard_gets_what_the_log_gets(comrope, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, _, err = comrope(*TRAIN.split(), "--tensorboard", "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [e.step for e in events.Scalars("loss")] == [row["step"]] == [3]
    assert events.Scalars("loss")[0].value == pytest.approx(row["loss"])


def test_the_list_names_every_recipe(comrope):
    from comrope.lab.reproduce import RECIPES

    code, out, err = comrope("reproduce", "--list")
    assert (code, err) == (0, "") and {"table1", "fig5", "fig6", "fig7", "table4", "table7"} < set(RECIPES)
    assert all(re.search(rf"^ *{name} ", out, re.MULTILINE) for name in RECIPES)
