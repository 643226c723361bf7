"""Command lines that make no sense: exit status 2, a few words with a remedy, nothing written, and no long work begun."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import comrope
from comrope import cli
from comrope.lab import runs
from comrope.lab.classification import plain
from comrope.lab.images import data as image_data
from tests.faults.command_lines import DRAWN, IMAGES, TEXT, words_of
from tests.faults.values import REMEDY

pytestmark = pytest.mark.area("command lines")

RESULTS = Path(__file__).parents[2] / "docs" / "demo"
"""Of a demo."""


def _call(arguments: list[str], monkeypatch: Any, capsys: Any) -> tuple[int, str, str]:
    """The entry point as the console script calls it: (exit status, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["comrope", *arguments])
    before, status = signal.getsignal(signal.SIGTERM), 0
    try:
        cli.main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def _trained(command: dict[str, str], out: Path, places: dict[str, str]) -> None:
    """A run of a moment, by its command."""
    words = [word.format(**places) for word in words_of(command | {"--out": str(out)})]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["comrope", *words])
        cli.main()


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """Paths by the names that command lines have for them: data, runs, a saved model, and what is none of these."""
    here, data = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("data")
    names = ("file", "empty", "full", "damaged", "begun", "missing", "out", "runs", "texts", "saved", "images", "text")
    places = {name: str(here / name) for name in names} | {name: str(data / name) for name in ("motion", "scenes")}
    places |= {"here": str(here), "results": str(RESULTS)}
    for name in ("empty", "full", "damaged", "begun", "texts"):
        (here / name).mkdir()
    (here / "file").write_text("mine")
    (here / "full" / "thesis.tex").write_text("mine")
    (here / "damaged" / "results.json").write_text('{"runs": [3], "settings": {}, "timing": {}, "command": 1}')
    for number in range(3):
        (here / "texts" / f"{number}.txt").write_text(" ".join(str(n) for n in range(number, 400 + number)))
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
    comrope.save(comrope.attach(timm.create_model("vit_tiny_patch16_224", **sizes), "comrope-ld"), here / "saved")
    _trained(IMAGES, here / "images", places)
    _trained(TEXT, here / "text", places)
    shutil.copy(here / "images" / "run.json", here / "begun")
    return places


def _everything(root: str) -> dict[str, bytes | None]:
    """Every file there, with its bytes, and every folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path(root).rglob("*")}


def _refused(words: list[str], places: dict[str, str], monkeypatch: Any, capsys: Any) -> str:
    """What is said of a command line that is refused as it should be."""
    monkeypatch.chdir(places["here"])
    before = _everything(places["here"])
    status, out, err = _call([word.format(**places) for word in words], monkeypatch, capsys)
    assert (status, out) == (2, ""), err
    assert err and "Traceback" not in err, err
    # tyro may list all options that could have been meant.
    assert (err.count("\n") <= 40 and "--help" in err) or (err.count("\n") == 1 and REMEDY.search(err)), err
    assert _everything(places["here"]) == before
    return err


@pytest.mark.slow
@pytest.mark.parametrize("words", DRAWN, ids=[" ".join(line)[-60:] for line in DRAWN])
def test_a_bad_command_line_is_refused(words, places, monkeypatch, capsys):
    _refused(list(words), places, monkeypatch, capsys)


# In processes of their own


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def _process(*words: str | bytes, before: str = "pass", **settings: Any) -> subprocess.CompletedProcess:
    """`comrope` with these words, as a shell starts it; `before` is what Python does first."""
    code = f"import sys; {before}; from comrope.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *words], env=ENVIRONMENT, timeout=120, **settings)


_COST = "import atexit, resource, sys; atexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF), *sys.modules))"


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    ["--help", "--version", "dmo", "demo --sed 3", "train images --learning-rate x", "check nowhere", "fold x -o y"],
)
def test_what_needs_no_laboratory_answers_at_once(line):
    """In half a second of an idle processor; of one that is not, in twice that, once in three times at least."""
    for _ in range(3):
        done = _process(*line.split(), before=_COST, capture_output=True, text=True)
        assert done.returncode == (0 if line in ("--help", "--version") else 2)
        usage = done.stdout[done.stdout.rindex("struct_rusage") :]
        modules = set(usage.rpartition(")")[2].split())
        assert modules.isdisjoint(("torch", "numpy", "timm", "transformers", "accelerate", "matplotlib"))
        spent = [float(usage.partition(f"{name}=")[2].partition(",")[0]) for name in ("ru_utime", "ru_stime")]
        if sum(spent) < 1.0:
            return
    pytest.fail(f"it takes {sum(spent):.1f} seconds of the processor")


@pytest.mark.slow
@pytest.mark.parametrize("words", [[b"report", b"\xff"], [b"check", b"\xfe\xff"], [b"\xff"], [b"demo", b"--\xff"]])
def test_names_that_are_no_text_can_be_named(words, tmp_path):
    done = _process(*words, capture_output=True, cwd=tmp_path)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr and rb"\udcff" in done.stderr


@pytest.mark.slow
def test_what_is_written_under_a_name_that_is_no_text_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["report", str(RESULTS), "--out", os.fsdecode(b"\xff.html")]
    assert _call(arguments, monkeypatch, capsys) == (0, "wrote \\udcff.html\n", "")
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff.html"]


@pytest.mark.parametrize("line", ["--help", "--version", "demo --help"])
def test_where_nobody_reads_what_is_printed_it_ends_quietly(line, tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = _process(*line.split(), stdout=write, stderr=subprocess.PIPE, cwd=tmp_path)
    os.close(write)
    assert (done.returncode, done.stderr) == (cli.UNREAD, b"")


@pytest.mark.parametrize("line", ["--version", "dmo"])
def test_stdout_may_be_closed(line):
    done = _process(*line.split(), before="import os; os.close(1); sys.stdout = None", stderr=subprocess.PIPE)
    assert done.returncode == (2 if line == "dmo" else 0)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("package", "line"), [("tyro", "demo"), ("matplotlib", f"report {RESULTS}")])
def test_a_package_that_is_not_installed_is_named(package, line, tmp_path):
    done = _process(
        *line.split(), before=f"sys.modules[{package!r}] = None", capture_output=True, cwd=tmp_path, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"comrope: {package} is not installed: get it by pip install -e '.[lab]'")
    assert done.stderr.count("\n") == 1


# What was left silent, or without a way out, before


def test_few_images_are_said_what_to_do_about(places, monkeypatch, capsys):
    words = words_of(IMAGES | {"--num-train": "5", "--batch-size": "10"})
    said = _refused(words, places, monkeypatch, capsys)
    assert "take a batch_size of 5 or less, or more samples" in said


def test_a_condition_that_cannot_be_is_named_before_any_is_measured(places, monkeypatch, capsys):
    said = _refused(["evaluate", "images", places["images"], "--resolutions", "12", "7"], places, monkeypatch, capsys)
    assert "images of (7, 7) pixels: expected multiples of the patch" in said


def test_what_was_measured_is_kept_where_the_rest_is_stopped(places, tmp_path):
    def stop(stage: str, done: int, total: int, speed: float) -> None:
        if (stage, done) == ("measuring", 1):
            raise KeyboardInterrupt

    run = tmp_path / "run"
    shutil.copytree(places["images"], run)
    with pytest.raises(KeyboardInterrupt):
        runs.run(runs.experiment_of(run), plain([(12, 12), (16, 16)]), run, on_progress=stop)
    assert [row["size"] for row in runs.read(run)["evaluation"]] == [[8, 8], [12, 12]]


def test_the_same_condition_twice_is_measured_once(places, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(places["images"], run)
    assert _call(["evaluate", "images", str(run), "--resolutions", "12", "12"], monkeypatch, capsys)[0] == 0
    assert len(json.loads((run / "result.json").read_text())["evaluation"]) == 2


@pytest.mark.parametrize("command", ["evaluate images {run} --data {moved}", "check {run} --data {moved}"])
def test_runs_whose_data_were_moved(command, tmp_path, monkeypatch, capsys):
    for part in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (40 * number,) * 3).save(folder / f"{number}.png")
    places = {"out": str(tmp_path / "run")}
    data = {"--data": str(tmp_path / "data"), "--num-train": None, "--num-test": None, "--batch-size": "4"}
    words = [word.format(**places) for word in words_of(IMAGES | data)]
    assert _call(words, monkeypatch, capsys)[0] == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    image_data._cached.cache_clear()  # as in another process
    words = command.format(run=tmp_path / "run", moved=tmp_path / "moved").split()
    status, _, err = _call(words[: words.index("--data")], monkeypatch, capsys)
    # What was measured before is read from the run; what is needed of data is asked for by name.
    assert (status, "Traceback" in err) == (2, False)
    assert "--data" in err
    assert _call(words, monkeypatch, capsys)[0] == 0
