"""The main job as a stranger runs it: `comrope demo` in processes of its own, at one epoch, and stopped on the way."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from comrope.errors import ConfigurationError
from comrope.lab import reproduce
from comrope.lab.reproduce import DEMO
from comrope.lab.styles import label

pytestmark = pytest.mark.slow

COMROPE = str(Path(sys.executable).with_name("comrope"))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "TERM": "xterm"}
NAMES = ["liere", "none", "comrope-ld"]  # the longest first: the others share the second worker
FIGURES = ("accuracy_against_resolution", "accuracy_against_offset", "spectra", "training")
FILES = {"results.json", "report.html", "tables.md"}
FILES |= {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
FILES |= {f"{name}.csv" for name in ("demo", "demo-check", "demo-training")}
SIZES = [[24, 24], [32, 32], [48, 40], [48, 48], [64, 64], [96, 96]]


@dataclass
class Run:
    code: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def results(self) -> dict:
        return json.loads((self.folder / "results.json").read_text("utf-8"))

    def row(self, name: str) -> dict:
        return next(run for run in self.results["runs"] if run["experiment"]["encoding"] == name)


def _offsets(run: dict) -> list[dict]:
    """Rows at the size trained at, by offset, from none."""
    return sorted((r for r in run["evaluation"] if r["size"] == [48, 48]), key=lambda r: r["offset"])


def _start(*arguments: str, **streams) -> subprocess.Popen:
    return subprocess.Popen([COMROPE, "demo", *arguments], env=ENVIRONMENT, start_new_session=True, **streams)


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> tuple[Run, dict]:
    """The command with two workers and three encodings; meanwhile one of them from Python, without workers."""
    folder, other = tmp_path_factory.mktemp("demo") / "result", tmp_path_factory.mktemp("alone")
    arguments = ("--epochs", "1", "--parallel", "2", "--encodings", *NAMES, "--out", str(folder))
    process = _start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            scale = DEMO.changed(seeds=(0,), encodings=("comrope-ld",), epochs=1)
            alone = reproduce.run("demo", scale, other / "out", runs=other / "runs", parallel=0)
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
    return Run(process.returncode, out, err, folder), alone


def test_demo_writes_every_file_and_nothing_else(runs):
    run = runs[0]
    assert (run.code, run.stderr) == (0, "")
    assert {p.name for p in run.folder.iterdir()} == FILES
    assert all(p.stat().st_size > (100 if p.suffix == ".csv" else 1000) for p in run.folder.iterdir())
    assert [p.name for p in run.folder.parent.iterdir()] == ["result"]
    assert re.sub(r"\s", "", f"wrote {run.folder}") in re.sub(r"\s", "", run.stdout)


def test_demo_prints_a_row_for_every_encoding(runs):
    out = runs[0].stdout.partition("Top-1 accuracy")[2].partition("RoPE equation after")[0]
    labels = [label(name) for name in NAMES]
    for name in NAMES:
        (row,) = re.findall(rf"^ ?{label(name)} +(\d.*)$", out, re.MULTILINE)
        *shares, changed = row.split()
        by_offset = _offsets(runs[0].row(name))
        measured = [
            r for size in SIZES for r in runs[0].row(name)["evaluation"] if r["size"] == size and not r["offset"]
        ]
        measured += by_offset
        assert [float(s) for s in shares] == pytest.approx([100 * m["correct"] / 450 for m in measured], abs=0.051)
        assert int(changed) == max(m["changed"] for m in by_offset)
    places = [out.index(f"\n {name} ") for name in labels]
    assert places == sorted(places)


def test_results_have_their_structure(runs):
    results = runs[0].results
    assert list(results) == ["recipe", "title", "command", "versions", "scale", "notes", "tables", "runs"]
    assert results["command"].startswith("comrope demo --epochs 1 --parallel 2 --encodings liere ")
    assert set(results["versions"]) == {"comrope", "torch", "timm", "python"}
    assert results["scale"]["asked"] == {"seeds": [0], "few_seeds": [0], "encodings": NAMES, "epochs": 1}
    assert [run["experiment"]["encoding"] for run in results["runs"]] == NAMES
    for run in results["runs"]:
        assert (run["data"]["train"]["count"], run["data"]["test"]["count"]) == (1347, 450)
        assert [row["size"] for row in run["evaluation"] if not row["offset"]] == SIZES
        assert [row["offset"] for row in _offsets(run)] == [0.0, 0.5, 1.0, 2.0]
        assert all(0 <= row["correct"] <= row["total"] == 450 for row in run["evaluation"])
        assert _offsets(run)[0]["changed"] == 0
        assert [row["epoch"] for row in run["history"]] == [1]
        assert run["num_parameters"] > run["num_encoding_parameters"] >= 0


def test_encodings_differ_only_in_what_is_theirs(runs):
    parts = {run["experiment"]["encoding"]: run for run in runs[0].results["runs"]}
    rest = {run["num_parameters"] - run["num_encoding_parameters"] for run in parts.values()}
    assert len(rest) == 1
    assert parts["none"]["num_encoding_parameters"] == 0 < parts["comrope-ld"]["num_encoding_parameters"]
    assert {len(run["check"]) for run in parts.values()} == {3}
    assert [name for name, run in parts.items() if run["frequencies"] is not None] == ["comrope-ld"]
    assert len(parts["comrope-ld"]["frequencies"]) == 3


def test_commuting_encodings_are_flat_under_offsets_and_liere_is_not(runs):
    for name in ("none", "comrope-ld"):
        assert all(row["changed"] <= 1 for row in _offsets(runs[0].row(name)))
        assert all(check["holds"] for check in runs[0].row(name)["check"])
    liere = runs[0].row("liere")
    assert max(row["changed"] for row in _offsets(liere)) >= 10
    assert not any(check["holds"] for check in liere["check"])


def test_numbers_depend_on_neither_workers_nor_company(runs):
    (alone,), first = runs[1]["runs"], runs[0].row("comrope-ld")
    timeless = [
        {key: value for key, value in run.items() if key not in ("timing", "command")} for run in (alone, first)
    ]
    assert timeless[0] == timeless[1]


def test_the_page_names_what_was_compared(runs):
    page = (runs[0].folder / "report.html").read_text("utf-8")
    assert all(label in page for label in ("No encoding", "ComRoPE-LD", "LieRE"))
    assert "comrope demo --epochs 1" in page


def test_report_writes_the_page_again(runs, tmp_path, comrope):
    page = tmp_path / "again.html"
    assert comrope("report", runs[0].folder, "--out", page) == (0, f"wrote {page}\n", "")
    assert page.read_bytes() == (runs[0].folder / "report.html").read_bytes()


def _alive(group: int) -> list[str]:
    """Names of the processes of a group that still run, from Linux's /proc."""
    names = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            name, state, _, process_group = re.fullmatch(
                r"\d+ \((.*)\) (\S+) (\d+) (\d+) .*", path.read_text(), re.S
            ).groups()
            if int(process_group) == group and state != "Z":
                names.append(name)
    return names


class _Terminal:
    """`comrope demo` on a terminal of its own, whose progress bars tell when it trains."""

    def __init__(self, parent: Path):
        self.parent = parent
        self.out = parent / "result"
        self.shown = b""
        self.leader, follower = pty.openpty()
        arguments = ("--parallel", "1", "--encodings", "comrope-ld", "none", "--out", str(self.out))
        self.process = _start(*arguments, stdin=follower, stdout=follower, stderr=subprocess.PIPE, text=True)
        os.close(follower)
        os.set_blocking(self.leader, False)

    def read(self) -> str:
        with suppress(OSError):  # nothing new, or closed
            self.shown += os.read(self.leader, 1 << 16)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown.decode("utf-8", "replace"))

    def stop(self, send) -> None:
        """Waits until some steps are done, sends the signal, and writes down what follows."""
        deadline = time.monotonic() + 120
        while not re.search(r"comrope-ld\S* training\s.*?\s[1-9]\d*/\d\d+", self.read()):
            assert self.process.poll() is None and time.monotonic() < deadline, self.read()
            time.sleep(0.05)
        self.during = sorted(p.name for p in self.parent.iterdir())
        self.workers = len(_alive(self.process.pid)) - 1
        begun = time.monotonic()
        send(self.process.pid)
        while self.process.poll() is None and time.monotonic() < begun + 60:
            self.read()  # or it would wait for room
            time.sleep(0.02)
        self.seconds = time.monotonic() - begun
        self.code = self.process.poll()
        while self.left_over() and time.monotonic() < begun + 65:  # multiprocessing's tracker goes last
            time.sleep(0.1)

    def left_over(self) -> list[str]:
        return _alive(self.process.pid)

    def close(self) -> None:
        if self.left_over():
            os.killpg(self.process.pid, signal.SIGKILL)
        os.close(self.leader)
        self.process.wait()
        self.process.stderr.close()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, made_before):
    """Ctrl-C, which reaches the whole group, where a result was before; SIGTERM, to the one process, where none was."""
    terminals = {}
    try:
        for name in ("SIGINT", "SIGTERM"):
            parent = tmp_path_factory.mktemp(name)
            if name == "SIGINT":
                shutil.copytree(made_before, parent / "result")
            terminals[name] = _Terminal(parent)
        terminals["SIGINT"].stop(lambda pid: os.killpg(pid, signal.SIGINT))
        terminals["SIGTERM"].stop(lambda pid: os.kill(pid, signal.SIGTERM))
        for seen in terminals.values():
            seen.stderr = seen.process.communicate(timeout=10)[1] if seen.code is not None else ""
        yield terminals
    finally:
        for seen in terminals.values():
            seen.close()


@pytest.fixture(scope="module")
def made_before(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    for name in FILES:
        (folder / name).write_text("earlier")
    return folder


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stopped_demo_goes_at_once_and_leaves_no_process(stopped, name):
    seen = stopped[name]
    assert seen.workers >= 1
    assert seen.code == 130
    assert seen.seconds < 8
    assert seen.left_over() == []
    assert seen.stderr == "comrope: stopped; nothing was written.\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stopped_demo_leaves_no_partial_result(stopped, name, made_before):
    seen = stopped[name]
    assert any(p.startswith(".result.") for p in seen.during)  # there was something to take away
    if name == "SIGTERM":
        assert list(seen.parent.iterdir()) == []
    else:
        assert [p.name for p in seen.parent.iterdir()] == ["result"]
        contents = {p.name: p.read_text() for p in seen.out.iterdir()}
        assert contents == {p.name: p.read_text() for p in made_before.iterdir()}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("none", "ropee"), "no encoding 'ropee': did you mean 'rope'"),
        (("rope", "rope"), "got .'rope', 'rope'., expected different ones"),
    ],
)
def test_encodings_must_be_known_and_different(names, message):
    with pytest.raises(ConfigurationError, match=message):
        DEMO.changed(encodings=names)


def test_at_other_scales_and_with_several_seeds_the_demo_has_means(runs, tmp_path):
    scale = reproduce.SCALES["demo"].changed(seeds=(0, 1), encodings=("ape", "comrope-ap"), epochs=1)
    found = reproduce.run("demo", scale, tmp_path / "out", parallel=0)
    heading, *rows = found["tables"][0]["rows"]
    assert heading[1:4] == ["8×8 mean", "8×8 deviation", "8×8 count"] and len(rows) == 2
    assert any("16×12" in name for name in heading) and any("16×16 (trained)" in name for name in heading)
    assert any("Means of 2 seeds" in note for note in found["notes"])
