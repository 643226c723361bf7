"""Folders of text as people have them: what counts, what is left out, and what is said of what cannot be read."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from comrope.errors import ComropeError, ConfigurationError, DataError
from comrope.lab.text import problem
from comrope.lab.text.corpus import BOS, EvalText, TrainText, documents
from tests.lab.text.helpers import quick, write_texts

pytestmark = pytest.mark.area("text files")

SUFFIXES = (".txt",)


@pytest.fixture
def root(tmp_path) -> Path:
    """Twelve texts of some hundred bytes."""
    return write_texts(tmp_path / "texts")


def _read(root: Path, unreadable: str = "fail", suffixes: tuple[str, ...] = SUFFIXES) -> set[bytes]:
    train, test = documents(str(root), suffixes, unreadable)
    assert set(train).isdisjoint(test)
    assert train
    assert test
    return {*train, *test}


BYTES = {
    "one byte": b"a",
    "blank": b" \t\r\n \x0b\x0c",
    "line ends of Windows": b"one\r\ntwo\r\n",
    "line ends of old Macs": b"one\rtwo\r",
    "a mark of byte order": b"\xef\xbb\xbfone",
    "UTF-16": "one and two".encode("utf-16"),
    "Latin letters": "ä ö ü".encode("latin-1"),
    "no UTF-8": b"\xff\xfe\xfd\x80\xc0",
    "NUL": b"one\0two\0",
    "all bytes": bytes(range(256)) * 3,
    "one long line": b"word " * 400_000,
}


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
def test_a_byte_is_a_token_whatever_it_means(content, root):
    """Nothing is decoded, and nothing is lost: text of any encoding is read as it lies."""
    (root / "odd" / "more.txt").write_bytes(content)
    assert content in _read(root)
    feed = TrainText([content, b"the end"], 4)
    assert feed.text.window(0, len(feed.text) - 1).tolist() == [BOS, *content, BOS, *b"the end"]
    assert feed.__getitems__([(0, i, 0) for i in range(2)]).tokens.shape == (2, 5)


@pytest.mark.parametrize(
    "name", ["more.TXT", "more.Txt", "mo re.txt", "ä 動.txt", os.fsdecode(b"\xff.txt"), "a\nb.txt"]
)
def test_any_name_that_ends_in_the_suffix_counts(name, root):
    (root / "even" / name).write_bytes(b"more")
    assert b"more" in _read(root)
    assert b"more" in _read(root, suffixes=(".TXT",))


@pytest.mark.parametrize("name", ["more.text", "more.txt~", "txt", "more_txt", "more.txt.gz", ".more.txt", ".txt"])
def test_other_names_do_not_count(name, root):
    (root / "even" / name).write_bytes(b"more")
    assert b"more" not in _read(root)


def test_hidden_folders_do_not_count(root):
    (root / ".git").mkdir()
    (root / ".git" / "more.txt").write_bytes(b"more")
    assert b"more" not in _read(root)


def test_linked_files_and_folders_count_once(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "more.txt").write_bytes(b"more")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "linked.txt").symlink_to(tmp_path / "elsewhere" / "more.txt")
    assert len(_read(root)) == 13
    assert b"more" in _read(root)


def test_a_link_that_leads_back_is_not_followed(root, caplog):
    (root / "odd" / "again").symlink_to(root)
    assert len(_read(root)) == 12
    assert "again leads back to a folder that it is in" in caplog.text


def test_a_pipe_is_no_file(root):
    os.mkfifo(root / "odd" / "pipe.txt")
    assert len(_read(root)) == 12


def test_a_folder_may_be_called_like_a_file(root):
    (root / "folder.txt").mkdir()
    (root / "folder.txt" / "more.txt").write_bytes(b"more")
    assert b"more" in _read(root)


@pytest.mark.parametrize("target", ["nowhere.txt", "link.txt"])
def test_a_link_to_nowhere_is_named_or_left_out(target, root, caplog):
    (root / "link.txt").symlink_to(target)
    with pytest.raises(DataError, match=r"link\.txt cannot be read .*mend or remove the file.*--unreadable skip"):
        _read(root)
    assert len(_read(root, "skip")) == 12
    assert "skipped" in caplog.text


def test_what_may_not_be_read_is_named(strangers_folder):
    root = write_texts(strangers_folder)
    (root / "odd" / "3.txt").chmod(0)
    with pytest.raises(DataError, match=r"3\.txt cannot be read .*Permission denied.*--unreadable skip"):
        _read(root)
    assert len(_read(root, "skip")) == 11
    (root / "even").chmod(0)
    with pytest.raises(DataError, match=r"cannot be read .*Permission denied.*even.*make its folders readable"):
        _read(root)
    (root / "even").chmod(0o700)


def test_files_of_the_same_bytes_count_once_and_empty_ones_never(root):
    for i in range(20):
        (root / f"empty {i}.txt").write_bytes(b"")
        (root / f"copy {i}.txt").write_bytes(b"the same")
    assert len(_read(root)) == 13


def _nothing(root: Path) -> None:
    for path in root.rglob("*.txt"):
        path.unlink()


def _one(root: Path) -> None:
    _nothing(root)
    (root / "one.txt").write_bytes(b"one")


def _the_same(root: Path) -> None:
    _one(root)
    (root / "two.txt").write_bytes(b"one")


def _empty(root: Path) -> None:
    _nothing(root)
    for i in range(5):
        (root / f"{i}.txt").write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "number"), [(_nothing, 0), (_one, 1), (_the_same, 1), (_empty, 0)], ids=["none", "one", "same", "empty"]
)
def test_too_few_texts(change, number, root):
    change(root)
    with pytest.raises(DataError, match=rf"holds {number} different texts .*expected two at least.*--suffixes"):
        _read(root)


@pytest.mark.parametrize("suffixes", [(), (".md",), ("txt",)])
def test_suffixes_that_no_file_has(suffixes, root):
    with pytest.raises(DataError, match=r"holds 0 different texts with the suffixes .*--suffixes says what is text"):
        documents(str(root), suffixes)


@pytest.mark.parametrize("source", ["", "no/such/folder", "stdlib ", "a\0b", "a" * 5000, "~", "even/0.txt"])
def test_what_is_no_folder(source, root, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(DataError, match="expected 'stdlib', or a folder of text files"):
        documents(source, SUFFIXES)


def _cut(root: Path, size: int, number: int | None = None) -> None:
    for path in sorted(root.rglob("*.txt"))[:number]:
        path.write_bytes(path.read_bytes()[:size])


CHANGES: dict[str, tuple[Callable[[Path], None], dict, type[ComropeError], str]] = {
    "texts too short to test": (
        lambda root: _cut(root, 100),
        {},
        DataError,
        "choose a shorter test_length, or give longer",
    ),
    "windows longer than the text": (
        lambda root: None,
        {"length": 10_000},
        ConfigurationError,
        "windows shorter than the",
    ),
    "no windows": (lambda root: None, {"num_train": 0}, ConfigurationError, "one at least"),
    "no segments": (lambda root: None, {"num_test": 0}, ConfigurationError, "expected 1 segment or more"),
}


@pytest.mark.parametrize(("change", "settings", "kind", "match"), CHANGES.values(), ids=CHANGES)
def test_too_little_text(change, settings, kind, match, root):
    change(root)
    with pytest.raises(kind, match=match):
        problem.datasets(quick(root, **settings))


def test_segments_of_the_texts_that_are_long_enough(root):
    """Documents shorter than a segment are none to test on, as the documentation of `EvalText` says of documents."""
    found = EvalText.of([b"short", bytes(64), b"", bytes(range(100))], 64)
    assert len(found) == 2
