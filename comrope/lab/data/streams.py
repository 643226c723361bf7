"""Streams: training data that are read from beginning to end, shuffled in buffers, and continued where a run stopped.

The order of an epoch depends on the seed and the epoch alone. The files come in a random order, and the rows of each
in their own; every `buffer_size` rows are cut into samples, which come in a random order. A process reads all rows and
takes its share of the samples, so that the order is the same in any number of processes.

Where a buffer begins is a bookmark of four numbers. A checkpoint has the one of its step: a run that goes on reads no
file before it, and of its file the rows before it.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from comrope.errors import DataError
from comrope.lab.data.batches import Batches, read_batches
from comrope.lab.data.hugging_face import errors_of
from comrope.lab.experiment import Recipe
from comrope.lab.rng import Stream, generator


class Bookmark(NamedTuple):
    """Where a buffer begins in an epoch: the numbers of what comes before it."""

    sample: int = 0
    buffer: int = 0
    file: int = 0
    """Number of files, in the order of the epoch."""
    row: int = 0
    """Number of rows of the next file."""


BEGINNING = Bookmark()


class Sample(NamedTuple):
    """A sample as it is read, and its key."""

    epoch: int
    index: int
    """Its number in the epoch."""
    copy: int
    value: Any


class SampleStream(ABC):
    """Samples that are read from beginning to end."""

    def __init__(self, rows: Any, buffer_size: int, num_samples: int, title: str, checksum: str, local: bool):
        """
        Args:
            rows: a `datasets.IterableDataset`, whose rows are dictionaries.
            buffer_size: the number of rows that are shuffled together.
            num_samples: the number of samples in an epoch.
            title: what the data are called in messages.
            checksum: what identifies the data.
            local: whether they are on this machine.
        """
        self.rows, self.buffer_size, self.num_samples = rows, buffer_size, num_samples
        self.title, self._checksum, self.local = title, checksum, local

    def __len__(self) -> int:
        return self.num_samples

    def checksum(self) -> str:
        return self._checksum

    @abstractmethod
    def samples(self, rows: list[dict[str, Any]]) -> Sequence[Any]:
        """Returns the samples that rows are cut into."""

    def buffers(self, seed: int, epoch: int, start: Bookmark = BEGINNING) -> Iterator[tuple[Bookmark, list[Any]]]:
        """Yields the buffers of an epoch from `start` on: where each begins, and its samples in random order."""
        num_files = self.rows.num_shards
        files = torch.randperm(num_files, generator=generator(seed, Stream.ORDER, epoch)).tolist()
        here = start

        def rows() -> Iterator[tuple[int, int, dict[str, Any]]]:
            for file in range(start.file, num_files):
                before = start.row if file == start.file else 0
                remaining = self.rows.shard(num_shards=num_files, index=files[file]).skip(before)
                for row, values in enumerate(remaining, before + 1):
                    yield file, row, values

        read = rows()
        while True:
            with errors_of(self.title, local=self.local):
                found = list(itertools.islice(read, self.buffer_size))
            if not found:
                return
            samples = self.samples([values for *_, values in found])
            rng = generator(seed, Stream.BUFFER, epoch, here.buffer)
            yield here, [samples[i] for i in torch.randperm(len(samples), generator=rng).tolist()]
            file, row, _ = found[-1]
            here = Bookmark(here.sample + len(samples), here.buffer + 1, file, row)


class StreamedBatches(Batches):
    """Yields lists of `Sample` in place of keys: this process's share of every micro-batch of a stream.

    Rows are read by this process or, if others read batches, by one more process ahead of it.
    """

    def __init__(self, stream: SampleStream, *arguments: Any, num_workers: int = 0, **settings: Any):
        """
        Args:
            stream: the samples.
            num_workers: the number of processes that read batches.
            arguments, settings: see `Batches`, without the number of samples.
        """
        super().__init__(len(stream), *arguments, **settings)
        self.stream, self.num_workers = stream, num_workers
        self._bookmarks: list[tuple[int, Bookmark]] = []
        """The epoch of each bookmark, and the bookmark, since the last call of `state`."""

    def start_at(self, step: int, state: Any = None) -> None:
        super().start_at(step)
        self._bookmarks = [] if state is None else [(state[0], Bookmark(*state[1]))]

    def state(self, step: int) -> Any:
        """Returns (epoch, bookmark) from which reading continues at `step`, ready for JSON."""
        epoch, within = divmod(step, self.steps_per_epoch)
        first = within * self.recipe.batch_size // self.recipe.repeats
        passed = [mark for at, mark in self._bookmarks if at == epoch and mark.sample <= first]
        mark = max(passed, default=BEGINNING)
        self._bookmarks = [(at, each) for at, each in self._bookmarks if (at, each) >= (epoch, mark)]
        return [epoch, list(mark)]

    def _epoch(self, epoch: int, first: int) -> Iterator[Sample]:
        copies = self.recipe.repeats
        mark = max((each for at, each in self._bookmarks if at == epoch), default=BEGINNING)
        count = mark.sample
        reader = _Buffers(self.stream, self.recipe.seed, epoch, mark)
        for found in read_batches(reader, itertools.repeat([None]), min(1, self.num_workers)):
            if found is None:
                raise DataError(
                    f"{self.stream.title} has {count} samples, fewer than the {len(self.stream)} of an epoch: give a "
                    "smaller --num-train."
                )
            mark, values = found
            self._bookmarks.append((epoch, mark))
            for index, value in enumerate(values, mark.sample):
                for copy in range(copies):
                    if index * copies + copy >= first:
                        yield Sample(epoch, index, copy, value)
            count = mark.sample + len(values)


def batches_of(dataset: Any, recipe: Recipe, micro_batch: int, rank: int, world: int, num_workers: int = 0) -> Batches:
    """Returns the batches of a training set: keys to read by or, if it has a stream, samples of that."""
    stream = getattr(dataset, "stream", None)
    if stream is None:
        return Batches(len(dataset), recipe, micro_batch, rank, world)
    return StreamedBatches(stream, recipe, micro_batch, rank, world, num_workers=num_workers)


class _Buffers(Dataset):
    """The buffers of an epoch, for one process that reads: whatever it is asked for is the next one, and at last None."""

    def __init__(self, stream: SampleStream, seed: int, epoch: int, start: Bookmark):
        self.stream, self.seed, self.epoch, self.start = stream, seed, epoch, start
        self._buffers: Iterator[Any] | None = None  # opened by the process that reads

    def __getitems__(self, keys: Any) -> Any:
        self._buffers = self._buffers or self.stream.buffers(self.seed, self.epoch, self.start)
        return next(self._buffers, None)
