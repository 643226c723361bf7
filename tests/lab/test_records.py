"""Runs taken from earlier results: those that are there are not trained, and what they lack is."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comrope import cli
from comrope.errors import DataError
from comrope.lab import records, reproduce, runs
from comrope.lab.classification import Condition, plain
from comrope.lab.experiment import Recipe
from comrope.lab.reproduce import SCALES
from comrope.lab.study import Job, run_all
from tests.lab.helpers import QUICK

BRIEF = replace(QUICK, recipe=Recipe(epochs=1, batch_size=30))
BASE = replace(BRIEF, model="timm:tiny", encoding="ape", perturbation=0.0)
TUNED = replace(BASE, encoding="rope", start=BASE.name)
TIMES = {"command", "timing", "recorded"}
"""What may differ between two results of one run, if one of them is recorded."""


def _write(folder: Path, made: Sequence[Any]) -> Path:
    """Writes a results.json with these runs; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"runs": made}), encoding="utf-8")
    return folder


def _timeless(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in run.items() if key not in TIMES} for run in made]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Any]:
    """The result of a run in a moment, measured at two sizes."""
    return runs.run(BRIEF, plain([(8, 8), (16, 16)]), tmp_path_factory.mktemp("made") / "run", command="earlier")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> list[dict[str, Any]]:
    """The results of a run and of one that starts from its weights."""
    return run_all([Job(BASE), Job(TUNED)], tmp_path_factory.mktemp("tuned"), parallel=0)


def test_a_recorded_run_is_not_trained(tmp_path, made):
    told = []
    jobs = [Job(BRIEF, tuple(plain([(8, 8)]))), Job(replace(BRIEF, encoding="none"))]
    recorded = _write(tmp_path / "results" / "table1", [made])
    found = run_all(
        jobs, tmp_path / "runs", recorded=[tmp_path / "results"], parallel=0, on_progress=lambda *t: told.append(t)
    )
    assert found[0] == made | {"recorded": str(recorded / "results.json")} and found[0]["command"] == "earlier"
    assert found[1]["experiment"]["encoding"] == "none" and "recorded" not in found[1]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [jobs[1].experiment.name]
    assert told[0][:2] == (BRIEF.name, "recorded") and {name for name, *_ in told[1:]} == {jobs[1].experiment.name}


def test_a_run_of_this_folder_is_not_replaced_by_a_recorded_one(tmp_path, made):
    here = run_all([Job(BRIEF)], tmp_path / "runs", parallel=0)
    jobs = [Job(BRIEF, tuple(plain([(8, 8)])))]
    recorded = [_write(tmp_path / "results", [made])]
    assert run_all([Job(BRIEF)], tmp_path / "runs", recorded=recorded, parallel=0) == here
    assert "recorded" in run_all(jobs, tmp_path / "runs", recorded=recorded, parallel=0)[0]  # here it is not measured


def test_a_run_without_all_conditions_is_trained(tmp_path, made):
    asked = (*plain([(8, 8)]), Condition((8, 8), offset=1.0))
    (found,) = run_all([Job(BRIEF, asked)], tmp_path / "runs", recorded=[_write(tmp_path / "r", [made])], parallel=0)
    assert "recorded" not in found and not runs.missing(found, asked)
    assert _timeless([found])[0]["history"] == made["history"]


def test_of_two_records_the_one_with_all_conditions_is_taken(tmp_path, made):
    half = made | {"evaluation": made["evaluation"][:1]}
    there = records.read([_write(tmp_path / "half", [half]), _write(tmp_path / "whole", [made])])
    for conditions, path in ((plain([(8, 8)]), "half"), (plain([(8, 8), (16, 16)]), "whole")):
        found = records.find(there, BRIEF, conditions, lambda _: made["data"])
        assert found and found["recorded"] == str(tmp_path / path / "results.json")


def test_a_setting_that_an_earlier_version_did_not_have_has_its_default(tmp_path, made):
    older = dict(made["experiment"])
    del older["frozen"], older["directions"]
    older["enlargement"] = older.pop("resize_ratio")
    (record,) = records.read([_write(tmp_path, [made | {"experiment": older}])])
    assert record.experiment == BRIEF
    assert records.find([record], replace(BRIEF, frozen=True), [], lambda _: made["data"]) is None


def test_a_run_on_other_data_is_refused(tmp_path, made):
    other = made["data"]["test"] | {"sum": "0" * 64}
    recorded = _write(tmp_path / "results", [made | {"data": made["data"] | {"test": other}}])
    with pytest.raises(DataError, match=rf"results\.json has {BRIEF.name} on other data, of which test had sum 0000"):
        run_all([Job(BRIEF)], tmp_path / "runs", recorded=[recorded], parallel=0)
    assert not (tmp_path / "runs").exists()
    other = made["data"]["train"] | {"sum": "0" * 64}  # a finished run does not need its training data any more
    recorded = _write(tmp_path / "results", [made | {"data": made["data"] | {"train": other}}])
    assert "recorded" in run_all([Job(BRIEF)], tmp_path / "runs", recorded=[recorded], parallel=0)[0]


def test_what_does_not_say_its_data_is_taken_and_they_are_not_read(tmp_path, made):
    older = {key: value for key, value in made.items() if key != "data"}
    there = records.read([_write(tmp_path, [older])])
    assert records.find(there, BRIEF, [], lambda _: pytest.fail("read")) is not None


def test_what_a_run_starts_from_is_trained_if_the_run_is(tmp_path, tuned):
    jobs = [Job(BASE), Job(TUNED)]
    both, base = _write(tmp_path / "both", tuned), _write(tmp_path / "base", tuned[:1])
    found = run_all(jobs, tmp_path / "none", recorded=[both], parallel=0)
    assert _timeless(found) == _timeless(tuned) and not (tmp_path / "none").exists()
    found = run_all(jobs, tmp_path / "runs", recorded=[base], parallel=0)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {BASE.name, TUNED.name}
    assert _timeless(found) == _timeless(tuned) and not any("recorded" in run for run in found)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"runs": [', "damaged"),
        ('{"title": "comrope bench"}', "is not, or is no longer, what `comrope reproduce` wrote"),
        ('{"runs": [3]}', "is not, or is no longer, what `comrope reproduce` wrote"),
        ({"evaluation": None}, "damaged"),
        ({"evaluation": [{"correct": 3}]}, r"damaged \(.*KeyError\('size'\)"),
        ({"data": {"test": 3}}, "damaged"),
        ({"kind": "sounds"}, "has a run of kind 'sounds'"),
        ({"experiment": {"encoding": "rope"}}, "this is no experiment of this version of comrope"),
    ],
)
def test_what_is_damaged_or_foreign_is_named(tmp_path, made, content, said):
    folder = _write(tmp_path / "deep" / "results", [made | content] if isinstance(content, dict) else [])
    if isinstance(content, str):
        (folder / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said) as error:
        there = records.read([tmp_path])
        records.find(there, BRIEF, plain([(8, 8)]), lambda _: made["data"])
    assert str(folder / "results.json") in str(error.value)


@pytest.mark.parametrize("name", ["empty", "missing", "hidden"])
def test_a_folder_without_results_is_named(tmp_path, made, name):
    (tmp_path / "empty").mkdir()
    _write(tmp_path / "hidden" / ".table1.draft", [made])  # of a command that is at work
    with pytest.raises(DataError, match=rf"{name} .*: expected a folder that `comrope reproduce`"):
        records.read([tmp_path / name])


def test_the_file_can_be_named_too(tmp_path, made):
    assert records.read([_write(tmp_path, [made]) / "results.json"]) == records.read([tmp_path])


def test_folders_of_runs_can_be_named_too(tmp_path, made):
    """As far as a study has come that is not complete: a run's own result.json, without weights."""
    folder = tmp_path / "runs" / BRIEF.name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(made), encoding="utf-8")
    (found,) = run_all([Job(BRIEF)], tmp_path / "here", recorded=[tmp_path / "runs"], parallel=0)
    assert found == made | {"recorded": str(folder / "result.json")} and not (tmp_path / "here").exists()
    (folder / "result.json").write_text(json.dumps([made]), encoding="utf-8")
    with pytest.raises(DataError, match="is damaged"):
        records.read([folder])


def test_data_that_were_moved_are_compared_where_they_are(tmp_path, made):
    moved = replace(BRIEF, data="nowhere")
    recorded = [_write(tmp_path / "results", [made | {"experiment": moved.to_json()}])]
    (found,) = run_all([Job(moved)], tmp_path / "runs", recorded=recorded, parallel=0, data="digits")
    assert "recorded" in found


ASKED = {"num_train": 48, "num_test": 20, "epochs": 1, "encodings": ("comrope-ld",)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A recipe of two runs a seed, with seeds 0 and 1."""
    folder = tmp_path_factory.mktemp("whole")
    reproduce.run("learning", SCALES["demo"].changed(seeds=(0, 1), **ASKED), folder / "learning", parallel=0)
    return folder / "learning"


def _found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_a_study_grows_by_seeds_to_what_it_would_have_been_at_once(whole, tmp_path):
    first = [run for run in _found(whole)["runs"] if run["experiment"]["recipe"]["seed"] == 0]
    out = _write(tmp_path / "results" / "learning", first)  # the earlier result, which the new one replaces
    two = SCALES["demo"].changed(seeds=(0, 1), **ASKED)
    for recorded in (tmp_path / "results", out):  # the second time nothing is trained, and no more is taken
        found = reproduce.run("learning", two, out, runs=tmp_path / "runs", recorded=[recorded], parallel=0)
        assert len(list((tmp_path / "runs").iterdir())) == 2
        assert [run["experiment"]["recipe"]["seed"] for run in found["runs"] if "recorded" in run] == [0, 0]
        assert found["notes"][-1] == "2 of 4 runs were taken from earlier results."
        assert found == _found(out)
        assert _timeless(found["runs"]) == _timeless(_found(whole)["runs"])
        for name in ("learning.csv", "learning-differences.csv"):
            assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_the_command_line_takes_runs_and_says_so_and_the_page_can_be_made_again(whole, tmp_path, monkeypatch, capsys):
    def call(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["comrope", *words])
        cli.main()
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    asked = "--encodings comrope-ld --num-train 48 --num-test 20 --epochs 1 --seeds 0 1 --out out"
    said = call("reproduce", "learning", *asked.split(), "--recorded", str(whole))
    assert "4 of 4 runs were taken from earlier results." in said and said.count("recorded 1/1") == 4
    assert not (tmp_path / "runs-demo").exists()
    call("report", "out")
    page = Path("report.html").read_text(encoding="utf-8")
    assert page == Path("out/report.html").read_text(encoding="utf-8")
    assert "4 of 4 runs were taken from earlier results." in page
    with pytest.raises(SystemExit):
        call("reproduce", "learning", "--out", "out", "--recorded", "nowhere")


def test_the_note_counts_what_does_not_say_its_data(whole, tmp_path):
    older = [{key: value for key, value in run.items() if key != "data"} for run in _found(whole)["runs"][:1]]
    recorded = [_write(tmp_path / "older", older), whole]
    scale = SCALES["demo"].changed(seeds=(0, 1), **ASKED)
    (*_, note) = reproduce.run("learning", scale, tmp_path / "out", recorded=recorded, parallel=0)["notes"]
    assert note.startswith("4 of 4 runs were taken from earlier results, 1 of them without a checksum of the data")
