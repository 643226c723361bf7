"""Command lines that make no sense: exit status 2, a few words with a remedy, nothing written, and no long work begun."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import comrope
from comrope import cli
from comrope.lab import classify, runs
from comrope.lab.evaluate import plain
from tests.faults.values import REMEDY

pytestmark = pytest.mark.area("command lines")

RESULTS = Path(__file__).parents[2] / "docs" / "demo"
"""Of a demo."""
HUGE = str(10**30)
FAR = "1e300"
NO_WHOLE = ("x", "", "1.5", "nan", "inf")
NO_COUNT = ("x", "", "1.5", "nan", "0", "-1")
NO_NUMBER = ("x", "", "nan", "inf", "-1")
NO_NAME = ("", "no-such")
LONG = "n" * 5000

# Commands that would train for a moment, but for what is changed in them

IMAGES = {
    "": "train images", "--data": "digits", "--num-train": "20", "--num-test": "10", "--model": "tiny",
    "--image-size": "8 8", "--epochs": "1", "--batch-size": "10", "--out": "{out}",
}  # fmt: skip
VIDEO = {
    "": "train video", "--data": "motion:{motion}", "--num-train": "4", "--num-test": "4", "--model": "tiny",
    "--num-frames": "2", "--image-size": "16 16", "--epochs": "1", "--batch-size": "4", "--out": "{out}",
}  # fmt: skip
DETECTION = {
    "": "train detection", "--data": "scenes:{scenes}", "--num-train": "2", "--num-test": "2", "--model": "tiny",
    "--epochs": "1", "--batch-size": "2", "--out": "{out}",
}  # fmt: skip
TEXT = {
    "": "train text", "--data": "{texts}", "--num-train": "8", "--length": "32", "--test-length": "64", "--model": "tiny",
    "--epochs": "1", "--batch-size": "4", "--out": "{out}",
}  # fmt: skip
REPRODUCE = {"": "reproduce table1", "--workers": "0", "--epochs": "1", "--out": "{out}", "--runs": "{runs}"}
DEMO = {"": "demo", "--epochs": "1", "--out": "{out}"}
BENCH = {"": "bench", "--out": "{out}", "--rounds": "2", "--depth": "1", "--batch": "1"}
REPORT = {"": "report {results}", "--out": "{out}"}
CHECK = {"": "check {saved}"}
FOLD = {"": "fold {saved}", "--out": "{out}"}

OUT = ("{file}", "{file}/below", "{full}", LONG, None)
"""Where no result can be written; None: without saying where."""
RUNNING = {
    "--micro-batch": (*NO_COUNT, "7"),
    "--readers": (*NO_WHOLE, "-1", HUGE),
    "--save-every": NO_COUNT,
    "--unreadable": NO_NAME,
    "--tensorboard": ("maybe",),
}
RECIPE = {
    "--epochs": NO_COUNT,
    "--batch-size": (*NO_COUNT, "21", HUGE),
    "--learning-rate": NO_NUMBER,
    "--angle-learning-rate": NO_NUMBER,
    "--weight-decay": NO_NUMBER,
    "--warmup": (*NO_NUMBER, "1.5"),
    "--repeats": (*NO_COUNT, HUGE),
    "--precision": (*NO_NAME, "fp16"),
    "--seed": (*NO_WHOLE, "-1", HUGE),
}
ENCODING = {
    "--encoding": (*NO_NAME, "comrope-dl", "ROPE"),
    "--block-size": (*NO_COUNT, "3", HUGE),
    "--init": NO_NAME,
    "--std": (*NO_NUMBER, FAR),
    "--max-frequency": (*NO_NUMBER, "3"),
}
NO_SIDES = ("8", "8 8 8", "0 0", "-8 8", "x 8", "7 7", "nan 8", "100000 8", "")
NO_DATA = ("", "nowhere", "{file}", "{empty}")

WRONG: list[tuple[dict[str, str], dict[str, tuple[str | None, ...]]]] = [
    (
        IMAGES,
        RECIPE
        | ENCODING
        | RUNNING
        | {
            "--out": OUT,
            "--data": NO_DATA,
            "--num-train": (*NO_COUNT, HUGE),
            "--num-test": (*NO_COUNT, HUGE),
            "--model": (*NO_NAME, "timm:tiny"),
            "--start": ("pretrained", "nowhere", ""),
            "--image-size": NO_SIDES,
            "--augment": NO_NAME,
            "--enlargement": (*NO_NUMBER, "0.5", "100"),
            "--perturbation": (*NO_NUMBER, FAR),
        },
    ),
    (
        VIDEO,
        {
            "--out": OUT,
            "--data": NO_DATA,
            "--split": ("x", "0", "4"),
            "--model": NO_NAME,
            "--encoding": NO_NAME,
            "--block-size": ("3", "-1"),
            "--num-train": NO_COUNT,
            "--num-frames": (*NO_COUNT, HUGE),
            "--image-size": ("16", "0 0", "7 7", "100000 16"),
            "--enlargement": ("nan", "0.5"),
            "--perturbation": ("nan", "-1", FAR),
            "--flip": ("True", "maybe"),
            "--batch-size": ("0", "5"),
            "--augment": ("basic",),
        },
    ),
    (
        DETECTION,
        {
            "--out": OUT,
            "--data": NO_DATA,
            "--model": (*NO_NAME, "timm:resnet18"),
            "--head": NO_NAME,
            "--encoding": NO_NAME,
            "--start": ("nowhere", ""),
            "--num-train": ("x", "0", "-1"),
            "--short-edges": ("x", "", "0", "-1", "64 0", HUGE),
            "--long-edge": ("x", "", "0", "-1", HUGE),
            "--drop-path": (*NO_NUMBER, "1"),
            "--batch-size": ("0", "3"),
            "--image-size": ("8 8",),
        },
    ),
    (
        TEXT,
        {
            "--out": OUT,
            "--data": NO_DATA,
            "--suffixes": ("", ".none"),
            "--num-train": (*NO_COUNT, HUGE),
            "--num-test": NO_COUNT,
            "--length": (*NO_COUNT, HUGE),
            "--test-length": (*NO_COUNT, HUGE),
            "--model": NO_NAME,
            "--encoding": NO_NAME,
            "--init": NO_NAME,
            "--start": ("nowhere", ""),
            "--batch-size": ("0", "9"),
        },
    ),
    (
        REPRODUCE,
        RUNNING
        | {
            "": ("reproduce", "reproduce table2x", "reproduce table1 table3", "reproduce Table1", "reproduce ''"),
            "--scale": NO_NAME,
            "--out": OUT[:-1],
            "--data": NO_DATA,
            "--seeds": (*NO_WHOLE, "-1", "0 0", HUGE),
            "--encodings": (*NO_NAME, "rope no-such", "rope rope"),
            "--epochs": NO_COUNT,
            "--batch-size": (*NO_COUNT, HUGE),
            "--workers": (*NO_WHOLE, "-1", HUGE),
        },
    ),
    (
        DEMO,
        {
            "--out": OUT[:-1],
            "--seed": (*NO_WHOLE, "-1", HUGE),
            "--epochs": NO_COUNT,
            "--encodings": (*NO_NAME, "rope no-such", "rope rope"),
            "--workers": (*NO_COUNT, HUGE),
        },
    ),
    (
        BENCH,
        {
            "--out": OUT[:-1],
            "--threads": (*NO_COUNT, HUGE),
            "--rounds": (*NO_COUNT, "1"),
            "--batch": NO_COUNT,
            "--depth": NO_COUNT,
            "--tokens": (*NO_COUNT, "7"),
        },
    ),
    (
        REPORT,
        {
            "": (
                "report",
                "report ''",
                "report {missing}",
                "report {file}",
                "report {empty}",
                "report {results} {results}",
                "report {damaged}",
                f"report {LONG}",
            ),
            "--out": ("", "{empty}", "{file}/below", LONG),
        },
    ),
    (
        CHECK,
        {
            "": (
                "check",
                "check ''",
                "check {missing}",
                "check {file}",
                "check {empty}",
                "check {saved} {saved}",
                f"check {LONG}",
                "check {begun}",
                "check {images} --data {missing}",
            ),
            "--data": ("digits",),
        },
    ),
    (
        FOLD,
        {
            "": (
                "fold",
                "fold ''",
                "fold {missing}",
                "fold {file}",
                "fold {empty}",
                "fold {saved} {saved}",
                "fold {images}",
            ),
            "--out": ("", "{empty}", "{full}", "{file}", "{file}/below", LONG, None),
        },
    ),
]
"""For each command what is wrong in which option; under "" in the command itself."""
EVALUATE: dict[str, dict[str, tuple[str, ...]]] = {
    "{images}": {
        "--resolutions": ("x", "", "0", "-8", "8x", "x8", "8x8x8", "7", "9000", "nan"),
        "--offsets": (*NO_NUMBER, FAR),
        "--direction": (*NO_NAME, "steepest"),
        "--perturbations": (*NO_NUMBER, FAR),
        "--seed": (*NO_WHOLE, "-1", "3"),
        "--frames": ("4",),
        "--lengths": ("64",),
        "--scalings": ("yarn",),
        "--readers": (*NO_WHOLE, "-1", HUGE),
        "--unreadable": NO_NAME,
        "--data": NO_DATA,
    },
    "{text}": {
        "--lengths": (*NO_COUNT, "24", HUGE),
        "--scalings": (*NO_NAME, "linear"),
        "--offsets": ("1",),
        "--resolutions": ("8",),
    },
    "{begun}": {"--offsets": ("1",)},
    "{missing}": {"--offsets": ("1",)},
    "{file}": {"--offsets": ("1",)},
    "{empty}": {"--offsets": ("1",)},
    "{saved}": {"--offsets": ("1",)},
}
"""For each folder of a run what is asked of it in vain."""
TOGETHER = [
    ("", "command, say which"),
    ("dmo", "demo"),
    ("train", "which"),
    ("train pictures", "images"),
    ("evaluate", "folder"),
    ("--seed 1", "unknown before a command"),
    ("demo demo", "twice"),
    ("-x", "unknown"),
    ("demo --version", "unknown here"),
    ("demo --epoch-count 3", "--epochs"),
    ("demo --seed 1 --seed 2", "twice"),
    ("demo --encodings rope --encodings ape", "twice"),
    ("fold {saved} --out {out} -o {out}", "twice"),
    ("report {results} --out a --out b", "twice"),
    ("evaluate {images} --offsets 1 --offsets 2", "twice"),
    ("evaluate {images} --resolutions 8 --lengths 8", "no such condition"),
    ("reproduce table1 --tensorboard --no-tensorboard", "both"),
    ("reproduce fig4 --out {out} --encodings rope comrope-ld", "fig4 has no rope"),
    ("reproduce table7 --out {out} --encodings rope none", "table7 has no none"),
    ("reproduce axes --out {out} --encodings rope ape", "axes has no ape"),
    ("reproduce text --out {out} --encodings rope comrope-ap", "text has no comrope-ap"),
    ("reproduce text --out {out} --scale paper", "no such scale"),
]
"""Whole command lines, and what is wrong with them."""
CONTRADICTIONS = [
    (IMAGES, "--encoding ape --block-size 8"),
    (IMAGES, "--encoding rope --init identity"),
    (IMAGES, "--encoding rope-mixed --init identity --std 1"),
    (IMAGES, "--encoding comrope-ld --init rope"),
    (IMAGES, "--encoding comrope-ap --block-size 16"),
    (IMAGES, "--encoding string --init rope --std 0.5"),
    (IMAGES, "--model timm:resnet18 --perturbation 0"),
    (IMAGES, "--model timm:no_such_model --perturbation 0"),
    (IMAGES, "--model timm: --perturbation 0"),
    (IMAGES, "--model timm:tiny --perturbation 0 --start nowhere"),
    (IMAGES, "--compiled --no-compiled"),
    (IMAGES, "--seed 1 --seed 2"),
    (IMAGES, "--epoch-count 1"),
    (IMAGES, "--num-frames 4"),
    (IMAGES, "left-over"),
    (VIDEO, "--encoding comrope-ap --block-size 24"),
    (VIDEO, "--flip True --encoding rope"),
    (DETECTION, "--encoding comrope-ld --block-size 7"),
    (TEXT, "--encoding rope --block-size 8"),
    (TEXT, "--encoding ape"),
    (TEXT, "--encoding comrope-ld --max-frequency 2"),
    (REPRODUCE, "--seed 1"),
    (DEMO, "--workers 2 --workers 3"),
    (DEMO, "rope"),
]
"""Options that do not go together, or not with the command."""
SEED = 0
TRIES = 245
"""Of all these, drawn anew with another seed."""


def _words(settings: dict[str, str | None]) -> list[str]:
    words = []
    for option, value in settings.items():
        if value is not None:
            words += [option] * bool(option) + (shlex.split(value) if value else [""])
    return words


def _lines() -> Iterator[list[str]]:
    """All command lines, as words; what is in braces are places on disk."""
    for command, wrong in WRONG:
        for option, values in wrong.items():
            yield from (_words(command | {option: value}) for value in values)
    for run, wrong in EVALUATE.items():
        for option, values in wrong.items():
            yield from (_words({"": f"evaluate {run}", option: value}) for value in values)
    yield from (shlex.split(line) for line, _ in TOGETHER)
    for command, more in CONTRADICTIONS:
        given = shlex.split(more)
        yield _words({option: value for option, value in command.items() if option not in given}) + given


LINES = sorted({tuple(line) for line in _lines()})
DRAWN = LINES if len(LINES) <= TRIES else random.Random(SEED).sample(LINES, TRIES)


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
    words = [word.format(**places) for word in _words(command | {"--out": str(out)})]
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


@pytest.mark.parametrize("words", [[b"report", b"\xff"], [b"check", b"\xfe\xff"], [b"\xff"], [b"demo", b"--\xff"]])
def test_names_that_are_no_text_can_be_named(words, tmp_path):
    done = _process(*words, capture_output=True, cwd=tmp_path)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr and rb"\udcff" in done.stderr


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
    assert done.stderr.startswith(f"comrope: {package} is not installed: get it by pip install 'comrope[lab]'")
    assert done.stderr.count("\n") == 1


# What was left silent, or without a way out, before


def test_few_images_are_said_what_to_do_about(places, monkeypatch, capsys):
    words = _words(IMAGES | {"--num-train": "5", "--batch-size": "10"})
    said = _refused(words, places, monkeypatch, capsys)
    assert "take a batch_size of 5 or less, or more samples" in said


def test_a_condition_that_cannot_be_is_named_before_any_is_measured(places, monkeypatch, capsys):
    said = _refused(["evaluate", places["images"], "--resolutions", "12", "7"], places, monkeypatch, capsys)
    assert "images of (7, 7) pixels: expected multiples of the patch" in said


def test_what_was_measured_is_kept_where_the_rest_is_stopped(places, tmp_path):
    def stop(stage: str, done: int, total: int, speed: float) -> None:
        if (stage, done) == ("measuring", 1):
            raise KeyboardInterrupt

    run = tmp_path / "run"
    shutil.copytree(places["images"], run)
    with pytest.raises(KeyboardInterrupt):
        runs.run(runs.experiment_of(run), plain([(12, 12), (16, 16)]), run, report=stop)
    assert [row["size"] for row in runs.read(run)["evaluation"]] == [[8, 8], [12, 12]]


def test_the_same_condition_twice_is_measured_once(places, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(places["images"], run)
    assert _call(["evaluate", str(run), "--resolutions", "12", "12"], monkeypatch, capsys)[0] == 0
    assert len(json.loads((run / "result.json").read_text())["evaluation"]) == 2


@pytest.mark.parametrize("command", ["evaluate {run} --data {moved}", "check {run} --data {moved}"])
def test_runs_whose_data_were_moved(command, tmp_path, monkeypatch, capsys):
    for part in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (40 * number,) * 3).save(folder / f"{number}.png")
    places = {"out": str(tmp_path / "run")}
    data = {"--data": str(tmp_path / "data"), "--num-train": None, "--num-test": None, "--batch-size": "4"}
    words = [word.format(**places) for word in _words(IMAGES | data)]
    assert _call(words, monkeypatch, capsys)[0] == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    classify._load.cache_clear()  # as in another process
    words = command.format(run=tmp_path / "run", moved=tmp_path / "moved").split()
    status, _, err = _call(words[:2], monkeypatch, capsys)
    # What was measured before is read from the run; what is needed of data is asked for by name.
    assert (status, "Traceback" in err) == (2, False)
    assert "--data" in err
    assert _call(words, monkeypatch, capsys)[0] == 0
