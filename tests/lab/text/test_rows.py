"""Texts of Hugging Face's `datasets`: nothing lost, nothing on both sides, nothing copied into memory, streams."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
import torch

from comrope.errors import ConfigurationError, DataError
from comrope.lab.data.hugging_face import Source
from comrope.lab.data.labelled import about
from comrope.lab.data.streams import Sample
from comrope.lab.text.config import TextConfig
from comrope.lab.text.corpus import BOS, EvalText, TrainText
from comrope.lab.text.data import datasets as load
from comrope.lab.text.rows import TextRows, TextStream, text_rows
from tests.lab.data.helpers import mapped, write_rows
from tests.lab.text.helpers import WORDS, quick

DOCUMENTS = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 40 + i)) + f" ä{i}\n" for i in range(30)]
TEST = [text.upper() for text in DOCUMENTS[:6]]


def _write(folder: Path, kind: str) -> Path:
    """The documents, with empty rows between them, as files of a kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, texts in (("train", DOCUMENTS), ("test", TEST)):
        rows: list[str | None] = [each for text in texts for each in (text, "", None)]
        if kind == "parquet":
            write_rows(folder / f"{part}.parquet", {"text": rows, "n": list(range(len(rows)))})
        elif kind == "jsonl":
            lines = [json.dumps({"n": i, "text": row}) for i, row in enumerate(rows)]
            (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        else:
            for i, text in enumerate(texts):
                (folder / part).mkdir(exist_ok=True)
                (folder / part / f"{i:02d}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> Path:
    return _write(tmp_path_factory.mktemp("texts"), "parquet")


def _config(path: Any, settings: str = "", **changes: Any) -> TextConfig:
    return quick(Path(f"hf:{path}{settings}"), **changes)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "txt"])
def test_each_row_or_text_file_is_a_document(tmp_path, kind):
    folder = _write(tmp_path / kind, kind)
    train, test = load(_config(folder))
    assert isinstance(train, TrainText)
    assert [bytes(text).decode() for text in train.text.documents] == DOCUMENTS
    texts = [text.encode() for text in DOCUMENTS]
    same = TrainText(texts, train.length, train.num_windows, seed=train.seed)
    assert about(train) == about(same)
    keys = [(0, i, 0) for i in range(len(train))]
    one, other = (text.__getitems__(keys) for text in (train, same))
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.positions, other.positions)
    assert about(test) == about(EvalText.of([text.encode() for text in TEST], 128, 3))


def test_the_column_is_found_or_named(tmp_path):
    path = write_rows(tmp_path / "a.parquet", {"title": ["x", "y"], "body": ["one " * 40, "two " * 40]})
    with pytest.raises(
        ConfigurationError, match=r"several columns may be the texts, title, body: say which by text=NAME"
    ):
        load(_config(path))
    train, _ = load(_config(path, ",text=body", num_train=2))
    assert bytes(train.text.documents[0])[:3] in (b"one", b"two")
    with pytest.raises(ConfigurationError, match="label is for other data"):
        load(_config(path, ",label=title"))
    with pytest.raises(DataError, match="no test document has 128 bytes"):
        load(_config(path, ",text=title", length=1, num_train=1))


def test_of_a_split_alone_a_tenth_is_held_out_and_equal_texts_stay_together(tmp_path):
    texts = [text for text in DOCUMENTS for _ in range(3)]
    path = write_rows(tmp_path / "a.parquet", {"text": texts})
    train, test = text_rows(Source(str(path)), _config(path))
    sides = [{bytes(text).decode() for text in part} for part in (train, test)]
    assert len(sides[1]) == 3 and not sides[0] & sides[1] and sides[0] | sides[1] == set(DOCUMENTS)
    assert (len(train), len(test)) == (81, 9)
    more = write_rows(tmp_path / "b.parquet", {"text": DOCUMENTS[::-1]})
    assert {bytes(text).decode() for text in text_rows(Source(str(more)), _config(more))[1]} == sides[1]
    with pytest.raises(DataError, match="has 1 different texts: expected two"):
        load(_config(write_rows(tmp_path / "c.parquet", {"text": ["same"] * 5})))


def test_texts_are_mapped_and_not_loaded(tmp_path):
    """The kernel says that their bytes lie in a mapped file, and Arrow that it allocates none for them."""
    path = write_rows(tmp_path / "big.parquet", {"text": [f"{i} " * (1 << 18) for i in range(20)]})
    config = _config(path)
    text_rows(Source(str(path)), config)  # are put into Arrow
    before = pyarrow.total_allocated_bytes()
    train, test = text_rows(Source(str(path)), config)
    assert isinstance(train, TextRows) and mapped(train._dataset, "text")
    assert sum(map(len, train)) + sum(map(len, test)) > 10 << 20
    TrainText(train, 32).__getitems__([(0, i, 0) for i in range(100)])
    about(TrainText(train, 32))
    assert pyarrow.total_allocated_bytes() - before < 1 << 20


# Streams


def _stream(path: Any, num_train: int = 24, **changes: Any) -> TextStream:
    found = load(_config(path, ",streaming,buffer_size=20", num_train=num_train, **changes))[0]
    assert isinstance(found, TextStream)
    return found


def _windows(stream: TextStream, *key: Any) -> list[list[int]]:
    return [value.tolist() for _, found in stream.buffers(*key) for value in found]


def test_windows_of_a_stream_are_pieces_of_its_texts_end_to_end(parquet):
    """Nothing is lost but what is left at the end of a buffer, less than a window."""
    stream = _stream(parquet)
    for mark, found in stream.buffers(5, 0):
        rows = [each for text in DOCUMENTS for each in (text, "", None)][20 * mark.buffer : 20 * mark.buffer + 20]
        packed = [token for text in rows if text for token in (BOS, *text.encode())]
        assert len(found) == (len(packed) - 1) // 32
        pieces = [packed[begin : begin + 33] for begin in range(0, len(packed) - 32, 32)]
        assert sorted(value.tolist() for value in found) == sorted(pieces)
        assert [value.tolist() for value in found] != pieces
    assert _windows(stream, 5, 0) != _windows(stream, 5, 1)


def test_positions_begin_again_at_each_text(parquet):
    stream = _stream(parquet)
    values = [value for _, found in stream.buffers(5, 0) for value in found]
    batch = stream.__getitems__([Sample(0, i, 0, value) for i, value in enumerate(values)])
    assert batch.tokens.tolist() == [value.tolist() for value in values]
    for tokens, positions in zip(batch.tokens.tolist(), batch.positions.tolist(), strict=True):
        place = -1
        for token, position in zip(tokens, positions, strict=False):
            place = 0 if token == BOS else place + 1
            assert position == place


def test_a_stream_of_a_split_alone_holds_texts_out_by_their_hashes(tmp_path):
    texts = [f"{i} {' '.join(WORDS)} {i}" for i in range(400)]
    path = write_rows(tmp_path / "a.parquet", {"text": texts})
    config = _config(path, ",streaming,buffer_size=50", num_test=5, test_length=64)
    stream, test = load(config)
    assert isinstance(stream, TextStream) and len(test) == 5
    held_out = [bytes(text).decode() for text in stream.held_out(10**6, 64)]
    assert 20 <= len(held_out) <= 60 and set(held_out) < set(texts)
    trained = bytes(token if token != BOS else 10 for window in _windows(stream, 0, 0) for token in window[1:])
    packed = {number for number in range(400) if f" {number}\n".encode() in trained}
    assert not packed & {int(text.split()[0]) for text in held_out}
    assert len(packed) > 200
    first = EvalText.of([text.encode() for text in held_out[:5]], 64, 5)
    assert torch.equal(test.tokens, first.tokens)
    with pytest.raises(ConfigurationError, match="--num-test says how many segments"):
        load(replace(config, num_test=None))
    with pytest.raises(ConfigurationError, match="--num-train says how many samples are an epoch"):
        load(replace(config, num_train=None))


def test_a_saved_data_set_is_read_where_it_is(tmp_path):
    rows = datasets.Dataset.from_dict({"text": DOCUMENTS})
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "saved")
    train, _ = load(_config(tmp_path / "saved"))
    assert len(train.text.documents) == 30 and mapped(train.text.documents._dataset, "text")
    with pytest.raises(ConfigurationError, match="there is nothing to stream"):
        load(_config(tmp_path / "saved", ",streaming"))
