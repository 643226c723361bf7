"""Results on disk: whole or not at all, and nothing of anyone else's harmed."""

import json
import os
import threading
from pathlib import Path

import pytest

from comrope.errors import DataError
from comrope.lab import results


def _fill(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("results.json", "report.html"):
        (folder / name).write_text(text, "utf-8")


def _tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files too: contents by path, None for folders."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def test_success_appears_whole(tmp_path):
    target = tmp_path / "deep" / "result"
    with results.atomic_folder(target) as folder:
        assert not target.exists()
        _fill(folder, "new")
        (folder / "inner").mkdir()
    assert _tree(tmp_path) == {
        "deep": None,
        "deep/result": None,
        "deep/result/inner": None,
        "deep/result/results.json": b"new",
        "deep/result/report.html": b"new",
    }
    assert os.access(target, os.R_OK | os.X_OK) and target.stat().st_mode & 0o077 == 0o055  # others may read it


def test_success_replaces_an_earlier_result(tmp_path):
    target = tmp_path / "result"
    _fill(target, "old")
    (target / "spectra.svg").write_text("old")
    with results.atomic_folder(target, ("spectra.*",)) as folder:
        _fill(folder, "new")
        assert (target / "results.json").read_text() == "old"  # until the new one is whole
    assert _tree(tmp_path) == {"result": None, "result/results.json": b"new", "result/report.html": b"new"}


def test_an_empty_folder_is_filled(tmp_path):
    target = tmp_path / "result"
    target.mkdir()
    with results.atomic_folder(target) as folder:
        _fill(folder, "new")
    assert sorted(_tree(tmp_path)) == ["result", "result/report.html", "result/results.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("earlier", [True, False])
def test_failure_leaves_what_was_there(tmp_path, error, earlier):
    target = tmp_path / "result"
    if earlier:
        _fill(target, "old")
    before = _tree(tmp_path)
    with pytest.raises(error), results.atomic_folder(target) as folder:
        _fill(folder, "half")
        assert _tree(tmp_path) != before
        raise error
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("moment", [1, 2])
def test_failure_while_the_folders_change_places(tmp_path, monkeypatch, error, moment):
    """Whichever move does not come about, the earlier result is there again and nothing lies beside it."""
    target = tmp_path / "result"
    _fill(target, "old")
    before, move, moves = _tree(tmp_path), os.replace, []

    def failing(source, destination):
        moves.append(source)
        if len(moves) == moment:
            raise error
        move(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(error), results.atomic_folder(target) as folder:
        _fill(folder, "new")
    assert _tree(tmp_path) == before


def test_a_file_is_refused(tmp_path):
    target = tmp_path / "result"
    target.write_text("mine")
    with pytest.raises(DataError, match="is a file"), results.atomic_folder(target):
        pytest.fail("entered")
    assert _tree(tmp_path) == {"result": b"mine"}


@pytest.mark.parametrize("beside", [False, True])
def test_a_folder_with_foreign_files_is_refused(tmp_path, beside):
    """Also where a results.json lies beside them: replacing the folder would delete them."""
    target = tmp_path / "result"
    target.mkdir()
    if beside:
        _fill(target, "old")
    (target / "thesis.tex").write_text("mine")
    before = _tree(tmp_path)
    with pytest.raises(DataError, match="no result"), results.atomic_folder(target) as folder:
        _fill(folder, "new")
    assert _tree(tmp_path) == before


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="file"), results.atomic_folder(tmp_path / "file" / "result"):
        pytest.fail("entered")
    assert _tree(tmp_path) == {"file": b"mine"}


def test_read_takes_the_folder_or_the_file(tmp_path):
    made_up = {"command": "comrope demo", "runs": [{"correct": 1}]}
    (tmp_path / "results.json").write_text(json.dumps(made_up), "utf-8")
    assert results.read(tmp_path) == results.read(tmp_path / "results.json") == made_up


def test_read_says_what_is_missing(tmp_path):
    for path in (tmp_path, tmp_path / "results.json", tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"does not exist.*comrope demo"):
            results.read(path)


@pytest.mark.parametrize("content", [b"", b'{"runs": [', b"\xff\xfe\x00", b"not json", b"[]", b"null", b"3"])
def test_read_refuses_what_is_damaged(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(DataError, match=r"results\.json is damaged"):
        results.read(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_has_no_word_for_is_refused(tmp_path, value):
    with pytest.raises(ValueError), results.atomic_folder(tmp_path / "result") as folder:
        results.write_json({"loss": value}, folder / "results.json")
    assert _tree(tmp_path) == {}


@pytest.mark.parametrize("earlier", [True, False])
def test_a_file_appears_whole(tmp_path, earlier):
    path = tmp_path / "deep" / "page.html"
    if earlier:
        path.parent.mkdir()
        path.write_text("old")
    with results.atomic_file(path) as draft:
        assert draft.suffix == ".html" and draft.parent == path.parent
        draft.write_text("new")
        assert path.exists() == earlier and (not earlier or path.read_text() == "old")
    assert _tree(tmp_path) == {"deep": None, "deep/page.html": b"new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_file_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(error), results.atomic_file(path) as draft:
        draft.write_text("half")
        raise error
    assert _tree(tmp_path) == {"page.html": b"old"}


def test_a_file_may_be_read_by_others_whoever_wrote_its_draft(tmp_path):
    path, like = tmp_path / "weights.safetensors", tmp_path / "like"
    like.write_text("")
    with results.atomic_file(path) as draft:
        draft.touch(mode=0o600)
    assert path.stat().st_mode == like.stat().st_mode


def test_two_that_write_one_file_wait_for_each_other(tmp_path):
    path, entered = tmp_path / "page.html", threading.Event()

    def second() -> None:
        with results.atomic_file(path) as draft:
            entered.set()
            draft.write_text("second")

    with results.atomic_file(path) as draft:
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
        draft.write_text("first")
    thread.join()
    assert _tree(tmp_path) == {"page.html": b"second"}


def test_a_draft_that_a_killed_process_left_is_written_over(tmp_path):
    path = tmp_path / "page.html"
    with pytest.raises(ValueError), results.atomic_file(path) as draft:
        raise ValueError
    draft.write_text("left by a process that was killed")
    with results.atomic_file(path) as new:
        new.write_text("new")
    assert _tree(tmp_path) == {"page.html": b"new"}
