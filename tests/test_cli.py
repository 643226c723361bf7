"""The command line: what it says, its exit codes, and that mistakes cost one line and no file."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from comrope import cli
from comrope.encodings import ENCODINGS

COMROPE = str(Path(sys.executable).with_name("comrope"))


@pytest.fixture
def comrope(monkeypatch, capsys):
    """Calls the entry point as the console script does: (exit code, stdout, stderr)."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["comrope", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield call
    signal.signal(signal.SIGTERM, before)


def _one_line(text: str) -> bool:
    return text.startswith("comrope: ") and text.count("\n") == 1 and text.endswith("\n")


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
    [("demo", ["--out", "--seed", "--epochs", "--encodings", "--workers"]), ("report", ["--out", "PATH"])],
)
def test_help_of_each_job_names_its_options(comrope, job, options):
    code, out, err = comrope(job, "--help")
    assert (code, err) == (0, "")
    assert all(option in out for option in options)


@pytest.mark.parametrize(
    "arguments", [[], ["dmo"], ["demo", "--epoch-count", "3"], ["demo", "--seed", "x"], ["report"]]
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
    # An unknown name beside it, so that nothing would be trained if the folder passed.
    code, out, err = comrope("demo", "--out", tmp_path, "--encodings", "nothing-of-the-kind")
    assert code == 2 and out == ""
    assert _one_line(err) and str(tmp_path) in err
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before


def test_demo_refuses_a_file_as_its_folder(comrope, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = comrope("demo", "--out", tmp_path / "file", "--encodings", "nothing-of-the-kind")
    assert code == 2 and _one_line(err) and "is a file" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_demo_refuses_no_workers(comrope, tmp_path):
    code, _, err = comrope("demo", "--out", tmp_path / "result", "--workers", "0")
    assert code == 2 and _one_line(err) and "workers=0" in err
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
