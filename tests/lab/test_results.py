"""Results on disk: whole or not at all, and nothing of anyone else's harmed."""

import json
import os
from pathlib import Path

import pytest

from comrope.errors import DataError
from comrope.lab import results

FIGURES = ("accuracy_against_resolution", "accuracy_against_offset", "spectra", "training")


def _fill(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("results.json", "report.html"):
        (folder / name).write_text(text, "utf-8")


def _tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files too: contents by path, None for folders."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def _made_up() -> dict:
    runs = [
        {
            "encoding": name,
            "num_parameters": 1000 + size,
            "num_encoding_parameters": size,
            "history": [{"epoch": 1, "loss": 2.0, "accuracy": 0.25}, {"epoch": 2, "loss": 1.5, "accuracy": 0.5}],
            "resolutions": [{"size": [s, s], "correct": s, "total": 100} for s in (16, 24)],
            "offsets": [{"offset": o, "correct": 24, "total": 100, "changed": 0} for o in (0.0, 1.0)],
            "check": [{"name": "0", "commutator": 0.0, "equation": 0.0, "offset_drift": 0.0, "holds": True}],
            "frequencies": [[[[[0.5, 1.0]]], [[[1.5, -2.0]]]]] if size else None,  # [layer][axis][head][block][plane]
        }
        for name, size in (("none", 0), ("comrope-ld", 18))
    ]
    settings = {"seed": 0, "epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "perturbation": 1.0}
    model = {"width": 8, "depth": 1, "num_heads": 1, "patch_size": 8, "block_size": 4, "training_size": [24, 24]}
    return {
        "command": "comrope demo",
        "versions": {"comrope": "0", "torch": "2", "timm": "1", "python": "3.11"},
        "settings": {**settings, **model, "num_train": 300, "num_test": 100, "data": "made up"},
        "runs": runs,
        "timing": {"threads": 1, "seconds": 3.0, "train_seconds": {"none": 1.0, "comrope-ld": 2.0}},
    }


def test_success_appears_whole(tmp_path):
    target = tmp_path / "deep" / "result"
    with results.whole_or_nothing(target) as folder:
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
    with results.whole_or_nothing(target) as folder:
        _fill(folder, "new")
        assert (target / "results.json").read_text() == "old"  # until the new one is whole
    assert _tree(tmp_path) == {"result": None, "result/results.json": b"new", "result/report.html": b"new"}


def test_an_empty_folder_is_filled(tmp_path):
    target = tmp_path / "result"
    target.mkdir()
    with results.whole_or_nothing(target) as folder:
        _fill(folder, "new")
    assert sorted(_tree(tmp_path)) == ["result", "result/report.html", "result/results.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("earlier", [True, False])
def test_failure_leaves_what_was_there(tmp_path, error, earlier):
    target = tmp_path / "result"
    if earlier:
        _fill(target, "old")
    before = _tree(tmp_path)
    with pytest.raises(error), results.whole_or_nothing(target) as folder:
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
    with pytest.raises(error), results.whole_or_nothing(target) as folder:
        _fill(folder, "new")
    assert _tree(tmp_path) == before


def test_a_file_is_refused(tmp_path):
    target = tmp_path / "result"
    target.write_text("mine")
    with pytest.raises(DataError, match="is a file"), results.whole_or_nothing(target):
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
    with pytest.raises(DataError, match="no result"), results.whole_or_nothing(target) as folder:
        _fill(folder, "new")
    assert _tree(tmp_path) == before


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="file"), results.whole_or_nothing(tmp_path / "file" / "result"):
        pytest.fail("entered")
    assert _tree(tmp_path) == {"file": b"mine"}


def test_read_takes_the_folder_or_the_file(tmp_path):
    made_up = _made_up()
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


def test_save_writes_every_file(tmp_path):
    made_up = _made_up()
    results.save(made_up, tmp_path)
    pictures = {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
    assert {p.name for p in tmp_path.iterdir()} == {"results.json", "report.html"} | pictures
    assert results.read(tmp_path) == made_up
    assert (tmp_path / "results.json").read_bytes().endswith(b"}\n")
    assert "</html>" in (tmp_path / "report.html").read_text("utf-8")
    for name in FIGURES:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (tmp_path / f"{name}.svg").read_text("utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_has_no_word_for_is_refused(tmp_path, value):
    made_up = _made_up()
    made_up["runs"][0]["history"][0]["loss"] = value
    with pytest.raises(ValueError), results.whole_or_nothing(tmp_path / "result") as folder:
        results.save(made_up, folder)
    assert _tree(tmp_path) == {}
