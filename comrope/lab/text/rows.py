"""Texts in the rows of a data set of Hugging Face's `datasets`, on disk or streamed. Each row is a document."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from comrope.errors import ConfigurationError, DataError
from comrope.lab.data.hugging_face import Source, column, compute, errors_of, features_of, load
from comrope.lab.data.streams import Sample, SampleStream
from comrope.lab.text.config import TextConfig
from comrope.lab.text.corpus import TEST_SHARE, PackedText, TextBatch, batch_of


class TextRows(Sequence[Any]):
    """The texts of rows as UTF-8, without empty ones. They stay in the Arrow files, which are mapped into memory."""

    def __init__(self, dataset: Any, column: str, rows: np.ndarray | None = None):
        """
        Args:
            dataset: a `datasets.Dataset`.
            column: the name of the column of texts.
            rows: (n,), the numbers of the rows; all that are not empty if None.
        """
        arrow = compute()
        self._dataset, self._column = dataset, column
        sizes = arrow.binary_length(dataset.data.column(column)).fill_null(0).to_numpy().astype(np.int64)
        self.rows = np.flatnonzero(sizes) if rows is None else rows
        self.sizes = sizes[self.rows]
        """(n,), the number of bytes of each text."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> memoryview:
        """Returns the bytes of a text, which are not copied."""
        return memoryview(self._dataset.data.column(self._column)[int(self.rows[index])].as_buffer())

    def take(self, chosen: np.ndarray) -> "TextRows":
        """Returns the texts for which `chosen`, (n,), is true."""
        return TextRows(self._dataset, self._column, self.rows[chosen])


class TextStream(SampleStream):
    """Windows of the texts of rows that are read from beginning to end: `dataset[[sample, …]]` is a `TextBatch`.

    The texts of a buffer are packed, and its windows lie end to end. What is left at its end, less than a window, is
    left out.
    """

    def __init__(self, rows: Any, column: str, length: int, *, holds_out: bool = False, **settings: Any):
        """
        Args:
            rows: see `SampleStream`, as `settings`.
            column: the name of the column of texts.
            length: the number of bytes in a window.
            holds_out: whether the tenth of the texts with the smallest hashes is left out.
        """
        super().__init__(rows.select_columns([column]), **settings)
        self.length, self.holds_out, self._column = length, holds_out, column

    @property
    def stream(self) -> SampleStream:
        return self

    def samples(self, rows: list[dict[str, Any]]) -> list[np.ndarray]:
        texts = (row[self._column].encode() for row in rows if row[self._column])
        text = PackedText([each for each in texts if not self.holds_out or _hash(each) >= _HELD_OUT])
        return [text.window(begin, self.length) for begin in range(0, len(text) - self.length, self.length)]

    def held_out(self, num_segments: int, length: int) -> list[bytes]:
        """Returns the first texts that are left out, as many as have `num_segments` segments of `length` bytes."""
        found: list[bytes] = []
        with errors_of(self.title, local=self.local):
            for row in self.rows:
                text = (row[self._column] or "").encode()
                if len(text) >= length and _hash(text) < _HELD_OUT:
                    found.append(text)
                    num_segments -= len(text) // length
                    if num_segments <= 0:
                        break
        return found

    def __getitems__(self, keys: Sequence[Sample]) -> TextBatch:
        """Returns the batch of these samples."""
        return batch_of([sample.value for sample in keys])


def _hash(text: Any) -> int:
    return int.from_bytes(hashlib.sha256(text).digest()[:8])


_HELD_OUT = round(TEST_SHARE * 2**64)


def text_rows(source: Source, config: TextConfig) -> tuple[TextRows | TextStream, Sequence[Any]]:
    """Returns the texts of a source to train on and those to test on.

    Of a split alone, the tenth of the texts with the smallest hashes is held out, so that equal texts are on one side.

    Args:
        source: the source.
        config: the configuration, for streams: the number of windows in an epoch and of bytes in one, and the number of
            test segments.
    Raises:
        ConfigurationError: columns or splits cannot be told; a stream without `num_train`, or without `num_test` where
            there is one split only.
        DataError: the data are missing or damaged.
    """
    source.refuse("image", "label")
    splits = load(source)
    features = features_of(source, splits.train)
    strings = [
        name for name, feature in features.items() if getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    text = column(source, features, "text", strings)
    if splits.test is not None and text not in splits.test.column_names:
        raise DataError(
            f"{splits.test_title} has no column {text}, which {splits.train_title} has: name another split."
        )
    test = None if splits.test is None else TextRows(splits.test, text)
    if source.streaming:
        settings = {**splits.settings(config.num_train), "holds_out": test is None}
        stream = TextStream(splits.train, text, config.length, **settings)
        if test is not None:
            return stream, test
        if config.num_test is None:
            raise ConfigurationError(
                f"{splits.train_title} is the only split: --num-test says how many segments of it are held out to test on."
            )
        return stream, stream.held_out(config.num_test, config.test_length)
    train = TextRows(splits.train, text)
    if test is not None:
        return train, test
    hashes = np.fromiter(map(_hash, train), np.uint64, len(train))
    different = np.unique(hashes)
    if len(different) < 2:
        raise DataError(f"{splits.train_title} has {len(different)} different texts: expected two at least.")
    held_out = hashes <= different[max(1, round(TEST_SHARE * len(different))) - 1]
    return train.take(~held_out), train.take(held_out)
