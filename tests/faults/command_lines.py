"""Command lines that make no sense: values of the wrong type or size for each option, and options that do not go together."""

import random
import shlex
from collections.abc import Iterator

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
REPRODUCE = {"": "reproduce table1", "--parallel": "0", "--epochs": "1", "--out": "{out}", "--runs": "{runs}"}
DEMO = {"": "demo", "--epochs": "1", "--out": "{out}"}
BENCH = {"": "bench", "--out": "{out}", "--rounds": "2", "--depth": "1", "--batch": "1"}
REPORT = {"": "report {results}", "--out": "{out}"}
CHECK = {"": "check {saved}"}
FOLD = {"": "fold {saved}", "--out": "{out}"}

OUT = ("{file}", "{file}/below", "{full}", LONG, None)
"""Where no result can be written; None: without saying where."""
RUNNING = {
    "--micro-batch": (*NO_COUNT, "7"),
    "--num-workers": (*NO_WHOLE, "-1", HUGE),
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
            "--resize-ratio": (*NO_NUMBER, "0.5", "100"),
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
            "--resize-ratio": ("nan", "0.5"),
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
            "--parallel": (*NO_WHOLE, "-1", HUGE),
        },
    ),
    (
        DEMO,
        {
            "--out": OUT[:-1],
            "--seed": (*NO_WHOLE, "-1", HUGE),
            "--epochs": NO_COUNT,
            "--encodings": (*NO_NAME, "rope no-such", "rope rope"),
            "--parallel": (*NO_COUNT, HUGE),
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
            "--out": ("", "{full}", "{file}", "{file}/below", LONG, None),
        },
    ),
]
"""For each command what is wrong in which option; under "" in the command itself."""
EVALUATE: dict[str, dict[str, tuple[str, ...]]] = {
    "images {images}": {
        "--resolutions": ("x", "", "0", "-8", "8x", "x8", "8x8x8", "7", "9000", "nan"),
        "--offsets": (*NO_NUMBER, FAR),
        "--direction": (*NO_NAME, "steepest"),
        "--perturbations": (*NO_NUMBER, FAR),
        "--seed": (*NO_WHOLE, "-1", "3"),
        "--frames": ("4",),
        "--lengths": ("64",),
        "--scalings": (*NO_NAME, "yarn"),
        "--num-workers": (*NO_WHOLE, "-1", HUGE),
        "--unreadable": NO_NAME,
        "--data": NO_DATA,
    },
    "text {text}": {
        "--lengths": (*NO_COUNT, "24", HUGE),
        "--scalings": (*NO_NAME, "linear"),
        "--offsets": ("1",),
        "--resolutions": ("8",),
    },
    "images {begun}": {"--offsets": ("1",)},
    "images {missing}": {"--offsets": ("1",)},
    "images {file}": {"--offsets": ("1",)},
    "images {empty}": {"--offsets": ("1",)},
    "images {saved}": {"--offsets": ("1",)},
}
"""For each problem and folder of a run what is asked of it in vain."""
TOGETHER = [
    ("", "command, say which"),
    ("dmo", "demo"),
    ("train", "which"),
    ("train pictures", "images"),
    ("evaluate", "which"),
    ("evaluate images", "folder"),
    ("evaluate video {images}", "evaluate images"),
    ("--seed 1", "unknown before a command"),
    ("demo demo", "twice"),
    ("-x", "unknown"),
    ("demo --version", "unknown here"),
    ("demo --epoch-count 3", "--epochs"),
    ("demo --seed 1 --seed 2", "twice"),
    ("demo --encodings rope --encodings ape", "twice"),
    ("fold {saved} --out {out} -o {out}", "twice"),
    ("report {results} --out a --out b", "twice"),
    ("evaluate images {images} --offsets 1 --offsets 2", "twice"),
    ("evaluate images {images} --resolutions 8 --lengths 8", "no such option"),
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
    (IMAGES, "--compile --no-compile"),
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
    (DEMO, "--parallel 2 --parallel 3"),
    (DEMO, "rope"),
]
"""Options that do not go together, or not with the command."""
SEED = 0
TRIES = 245
"""Of all these, drawn anew with another seed."""


def words_of(settings: dict[str, str | None]) -> list[str]:
    words = []
    for option, value in settings.items():
        if value is not None:
            words += [option] * bool(option) + (shlex.split(value) if value else [""])
    return words


def _lines() -> Iterator[list[str]]:
    """All command lines, as words; what is in braces are places on disk."""
    for command, wrong in WRONG:
        for option, values in wrong.items():
            yield from (words_of(command | {option: value}) for value in values)
    for run, wrong in EVALUATE.items():
        for option, values in wrong.items():
            yield from (words_of({"": f"evaluate {run}", option: value}) for value in values)
    yield from (shlex.split(line) for line, _ in TOGETHER)
    for command, more in CONTRADICTIONS:
        given = shlex.split(more)
        yield words_of({option: value for option, value in command.items() if option not in given}) + given


LINES = sorted({tuple(line) for line in _lines()})
DRAWN = LINES if len(LINES) <= TRIES else random.Random(SEED).sample(LINES, TRIES)
