"""Text as bytes: nothing on both sides, no token lost or seen from another document."""

import sysconfig
from pathlib import Path

import pytest
import torch

from comrope.errors import ConfigurationError, DataError
from comrope.lab.data.labelled import about
from comrope.lab.text.corpus import BOS, EvalText, TrainText, documents, held_out
from tests.lab.text.helpers import write_texts


def test_files_are_split_with_no_leak(tmp_path):
    write_texts(tmp_path)
    for copy in range(8):  # the same text under other names, and no text at all
        (tmp_path / f"copy {copy}.txt").write_bytes((tmp_path / "odd" / "1.txt").read_bytes())
        (tmp_path / f"empty {copy}.txt").write_bytes(b"")
    train, test = documents(str(tmp_path), (".txt",))
    assert len(train) + len(test) == 12 and len(test) == 1
    assert set(train).isdisjoint(test) and len({*train, *test}) == 12
    assert {*train, *test} == {path.read_bytes() for path in tmp_path.rglob("*/*.txt")}


def test_a_path_keeps_its_side_when_files_are_added():
    paths = [f"folder/{i}" for i in range(500)]
    before, after = held_out(paths[:400]), held_out(paths)
    assert (len(before), len(after)) == (40, 50)
    moved = before.symmetric_difference(after & set(paths[:400]))
    assert len(moved) <= 8
    assert held_out(reversed(paths)) == after


@pytest.mark.slow
def test_the_standard_library_is_there_without_its_tests():
    train, test = documents("stdlib", ())
    root = Path(sysconfig.get_path("stdlib"))
    read = {*train, *test}
    assert (root / "json" / "decoder.py").read_bytes() in read
    assert not any(path.read_bytes() in read for path in (root / "test").glob("test_j*.py"))
    assert sum(map(len, train)) > 5_000_000 and 0.05 < sum(map(len, test)) / sum(map(len, train)) < 0.3
    assert documents("stdlib", (".md",)) == (train, test)


def test_every_window_is_of_the_text_with_positions_that_restart():
    texts = [b"first document", b"2", b"the third one is longer than a window"]
    packed = [token for text in texts for token in (BOS, *text)]
    feed = TrainText(texts, 10, 40)
    batch = feed.__getitems__([(epoch, index, 0) for epoch in range(5) for index in range(40)])
    seen = set()
    for tokens, positions in zip(batch.tokens.tolist(), batch.positions.tolist(), strict=True):
        begins = [at for at in range(len(packed) - 10) if packed[at : at + 11] == tokens]
        assert begins
        seen.update(begins)
        place = -1
        for token, position in zip(tokens, positions, strict=False):
            place = 0 if token == BOS else place + 1
            assert position == place
    assert seen == set(range(len(packed) - 10))  # everything comes up
    again = feed.__getitems__([(4, 39, 0)])
    assert torch.equal(again.tokens[0], batch.tokens[-1])


def test_rows_alike_share_their_positions():
    feed = TrainText([bytes(range(200))], 8, 24)
    assert feed.__getitems__([(0, i, 0) for i in range(1, 24)]).positions.shape == (1, 8)
    assert len(TrainText([bytes(200)], 8)) == 25


def test_segments_are_pieces_of_one_document_that_meet_in_a_token():
    texts = [bytes(range(100)), b"short", bytes(range(100, 165))]
    segments = EvalText.of(texts, 32)
    assert segments.length == 32 and segments.tokens.shape == (5, 33)
    assert segments.tokens[0].tolist() == [BOS, *range(32)]
    assert segments.tokens[1].tolist() == list(range(31, 64))
    assert segments.tokens[4].tolist() == list(range(131, 164))
    assert torch.equal(EvalText.of(texts, 32, 3).tokens, segments.tokens[[0, 2, 4]])
    assert torch.equal(EvalText.of(texts, 32, 9).tokens, segments.tokens)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(DataError, match="folder of text files"):
        documents(str(tmp_path / "nowhere"), (".txt",))
    (tmp_path / "a.txt").write_text("alone")
    with pytest.raises(DataError, match="holds 1 different texts"):
        documents(str(tmp_path), (".txt",))
    with pytest.raises(DataError, match="no test document has 64 bytes"):
        EvalText.of([b"short"], 64)
    with pytest.raises(ConfigurationError, match="num_test=0"):
        EvalText.of([bytes(100)], 32, 0)
    with pytest.raises(ConfigurationError, match="length=64"):
        TrainText([b"short"], 64)


def test_a_file_that_cannot_be_read_fails_or_is_left_out(tmp_path, monkeypatch):
    write_texts(tmp_path)
    read = Path.read_bytes

    def broken(path: Path) -> bytes:
        if path.name == "3.txt":
            raise OSError("Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(DataError, match=r"3\.txt cannot be read"):
        documents(str(tmp_path), (".txt",), "fail")
    assert sum(map(len, documents(str(tmp_path), (".txt",), "skip"))) == 11


@pytest.mark.parametrize("cut", [lambda text: TrainText([text], 4, 2), lambda text: EvalText.of([text], 4, 1)])
def test_text_is_told_apart_by_its_bytes(cut):
    one, other = (about(cut(text)) for text in (b"one text", b"another."))
    assert one["count"] == other["count"] and one["sum"] != other["sum"]
    assert about(cut(b"one text")) == one
