"""Streams: an order that the seed and the epoch decide, in any number of processes, from any step on."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from comrope.errors import DataError
from comrope.lab.data.hugging_face import Source, load
from comrope.lab.data.streams import Bookmark, SampleStream, StreamedBatches
from comrope.lab.experiment import Recipe
from tests.lab.data.helpers import write_rows

RECIPE = Recipe(epochs=2, batch_size=8, seed=5)
FILES = (7, 11, 5, 13, 0)
"""Numbers of rows of the files to train on."""
TOTAL = sum(FILES)


class Numbers(SampleStream):
    """Samples are the numbers of rows; a row whose number is divisible by 5 has none, and one divisible by 7 has two."""

    def samples(self, rows: list[dict[str, Any]]) -> list[int]:
        return [row["n"] for row in rows for _ in range(0 if row["n"] % 5 == 0 else 2 if row["n"] % 7 == 0 else 1)]


EVERY = [n for n in range(TOTAL) for _ in range(0 if n % 5 == 0 else 2 if n % 7 == 0 else 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    numbers = iter(range(TOTAL))
    for file, size in enumerate(FILES):
        found = list(itertools.islice(numbers, size))
        write_rows(folder / f"train-{file:05d}-of-00005.parquet", {"n": found}, {"n": datasets.Value("int64")})
    return folder


def _stream(folder: Path, buffer_size: int = 4, num_samples: int = 32) -> Numbers:
    rows = load(Source(str(folder), streaming=True)).train
    return Numbers(rows, buffer_size, num_samples, "numbers", "sum", local=True)


def _batches(stream: SampleStream, rank: int = 0, world: int = 1, micro: int = 8, recipe: Recipe = RECIPE):
    return StreamedBatches(stream, recipe, micro, rank, world)


def test_an_epoch_is_every_sample_once_in_an_order_of_its_own(folder):
    stream = _stream(folder)
    orders = [[n for _, found in stream.buffers(*key) for n in found] for key in ((5, 0), (5, 1), (6, 0))]
    assert all(sorted(order) == EVERY for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert [n for _, found in _stream(folder).buffers(5, 1) for n in found] == orders[1]


def test_a_buffer_is_shuffled_rows_that_follow_each_other(folder):
    """Files in a random order, rows within a file in their own, samples of `buffer_size` rows in a random order."""
    (whole,) = [found for _, found in _stream(folder, TOTAL).buffers(5, 0)]
    assert sorted(whole) == EVERY
    rows = [n for _, found in _stream(folder, 1).buffers(5, 0) for n in found]
    files = [file for file, _ in itertools.groupby(rows, _file_of)]
    assert sorted(files) == [0, 1, 2, 3] and files != [0, 1, 2, 3]
    assert rows == [n for file in files for n in EVERY if _file_of(n) == file]
    read = list(_stream(folder, 4).buffers(5, 0))
    assert any(found != sorted(found, key=rows.index) for _, found in read)
    for mark, found in read:
        assert sorted(found) == sorted(rows[mark.sample : mark.sample + len(found)])


def test_reading_goes_on_from_every_bookmark_without_the_files_before(folder, tmp_path):
    stream = _stream(folder)
    whole = list(stream.buffers(5, 0))
    assert len({mark.file for mark, _ in whole}) >= 4
    for number, (mark, _) in enumerate(whole):
        assert list(stream.buffers(5, 0, Bookmark(*json.loads(json.dumps(mark))))) == whole[number:]
    last = whole[-1][0]
    unread = write_rows(tmp_path / "other.parquet", {"m": [0]})
    order = [mark.file for mark, _ in whole]
    assert order == sorted(order)
    files = sorted(folder.glob("*.parquet"))
    kept = {files[_file_of(n)] for _, found in whole[-1:] for n in found}
    before = {path: path.read_bytes() for path in files}
    try:
        for path in set(files) - kept:
            path.write_bytes(unread.read_bytes())  # would be an error to read
        assert list(_stream_of(files).buffers(5, 0, last)) == whole[-1:]
        with pytest.raises(DataError, match=r"numbers cannot be read"):
            list(_stream_of(files).buffers(5, 0))
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def _file_of(n: int) -> int:
    return next(i for i, end in enumerate(itertools.accumulate(FILES)) if n < end)


def _stream_of(files: list[Path]) -> Numbers:
    names = [str(path) for path in files]
    types = datasets.Features({"n": datasets.Value("int64")})
    rows = datasets.load_dataset("parquet", data_files=names, split="train", streaming=True, features=types)
    return Numbers(rows, 4, 32, "numbers", "sum", local=True)


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (2, 4), (4, 1)])
def test_processes_and_micro_batches_share_each_batch_out(folder, world, micro):
    stream = _stream(folder)
    whole = list(_batches(stream))
    assert [len(batch) for batch in whole] == [8] * 8  # two epochs of 32 samples
    assert [(s.epoch, s.index) for batch in whole for s in batch] == [(e, i) for e in (0, 1) for i in range(32)]
    shares = [list(_batches(stream, rank, world, micro)) for rank in range(world)]
    parts = 8 // world // micro
    for step, batch in enumerate(whole):
        assert batch == [s for share in shares for part in share[step * parts : (step + 1) * parts] for s in part]


def test_batches_go_on_from_any_step_with_what_a_checkpoint_has(folder):
    """Also where batches were read ahead of the step, as processes that read them do."""
    stream = _stream(folder)
    whole = list(_batches(stream))
    for ahead, step in itertools.product((0, 3), range(8)):
        first = _batches(stream)
        list(itertools.islice(first, min(8, step + ahead)))
        state = json.loads(json.dumps(first.state(step)))
        assert state[0] == step // 4 and (state[1][0] > 0 or step % 4 < 2)
        further = _batches(stream)
        further.start_at(step, state)
        rest = list(further)
        assert rest == whole[step:]
        again = _batches(stream)  # a second interruption, with the state of the first continuation
        again.start_at(7, further.state(7))
        assert list(again) == whole[7:]


def test_copies_follow_each_other_and_keep_the_epochs_length(folder):
    recipe = replace(RECIPE, repeats=3)
    whole = list(_batches(_stream(folder), recipe=recipe))
    samples = [sample for batch in whole for sample in batch]
    assert len(whole) == 8 and [s.copy for s in samples[:6]] == [0, 1, 2, 0, 1, 2]
    assert [s.value for s in samples[:3]] == [samples[0].value] * 3
    further = _batches(_stream(folder), recipe=recipe)
    further.start_at(3, None)
    assert list(further) == whole[3:]


def test_an_epoch_that_is_longer_than_the_data_is_refused(folder):
    with pytest.raises(
        DataError, match=rf"numbers has {len(EVERY)} samples, fewer than the 99 of an epoch.*--num-train"
    ):
        list(_batches(_stream(folder, num_samples=99)))


@pytest.mark.slow
def test_a_process_that_reads_ahead_changes_nothing(folder):
    stream = _stream(folder)
    reads = StreamedBatches(stream, RECIPE, 8, 0, 1, num_workers=4)
    assert list(reads) == list(_batches(stream))
    with pytest.raises(DataError, match="fewer than the 99"):
        list(StreamedBatches(_stream(folder, num_samples=99), RECIPE, 8, 0, 1, num_workers=1))
