"""Batches of labelled samples: which samples are in each, and how a DataLoader reads them."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from comrope.errors import ComropeError, WorkerError
from comrope.lab.experiment import Recipe
from comrope.lab.rng import Stream, generator


class Batch(NamedTuple):
    """Images or clips, and their labels."""

    pixels: Tensor
    """(n, channels, [frames,] height, width), float32 in [−1, 1]; pixels erased by DeiT's augmentation are standard normal."""
    labels: Tensor
    """(n,), int64."""
    skipped: tuple[str, ...] = ()
    """Names of the samples that were left out because they cannot be read."""


class Batches(Sampler):
    """Yields the keys (epoch, index, copy) of this process's share of every micro-batch, from step `start` on."""

    def __init__(self, num_samples: int, recipe: Recipe, micro_batch: int, rank: int, world: int, start: int = 0):
        self.num_samples, self.recipe, self.start = num_samples, recipe, start
        self.micro_batch, self.rank, self.world = micro_batch, rank, world
        self.steps_per_epoch = num_samples // recipe.batch_size
        self.total = recipe.epochs * self.steps_per_epoch

    def start_at(self, step: int, state: Any = None) -> None:
        """Sets the step to begin with, and what `state` returned for it."""
        self.start = step

    def state(self, step: int) -> Any:
        """Returns what is needed, beside the step, to go on from it, ready for JSON; None if that is nothing."""
        return None

    def __iter__(self) -> Iterator[list[Any]]:
        share = self.recipe.batch_size // self.world
        keys: Iterator[Any] = iter(())
        for step in range(self.start, self.total):
            epoch, within = divmod(step, self.steps_per_epoch)
            if step == self.start or within == 0:
                keys = self._epoch(epoch, within * self.recipe.batch_size)
            batch = list(itertools.islice(keys, self.recipe.batch_size))
            for at in range(self.rank * share, (self.rank + 1) * share, self.micro_batch):
                yield batch[at : at + self.micro_batch]

    def _epoch(self, epoch: int, first: int) -> Iterator[Any]:
        """Returns the keys of an epoch, without the `first` ones."""
        order = torch.randperm(self.num_samples, generator=generator(self.recipe.seed, Stream.ORDER, epoch)).tolist()
        copies = self.recipe.repeats
        keys = ((epoch, index, copy) for index in order for copy in range(copies))
        return itertools.islice(keys, first, None)


def as_is(batch: Any) -> Any:
    """Returns its argument; collate_fn of a DataLoader whose dataset returns whole batches."""
    return batch


def read_batches(dataset: Any, keys: Iterable[Any], num_workers: int) -> Iterator[Any]:
    """Yields the batches of `dataset`, one for each list in `keys`, in order.

    Args:
        dataset: a dataset that is read by `dataset[[key, …]]`.
        keys: the list of keys of each batch.
        num_workers: the number of processes that read; if 0, this process reads.
    Raises:
        ComropeError: the dataset's own error, with its own message, whichever process raised it.
        WorkerError: a reading process ended unexpectedly.
    """
    wrapped: Any = _ErrorsAsBatches(dataset)
    settings: Any = {"batch_sampler": keys, "num_workers": num_workers, "collate_fn": as_is}
    found = iter(DataLoader(wrapped, **settings))
    try:
        for batch in found:
            if isinstance(batch, ComropeError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise WorkerError(
            f"a process that reads data is gone ({error}), killed by hand or for want of memory: give the same command again "
            "to go on, with fewer --num-workers if it was memory."
        ) from error
    finally:
        del found  # ends the processes, to which a traceback would keep a reference


class _ErrorsAsBatches(Dataset):
    """A dataset that returns errors in place of batches: a DataLoader would put a worker's traceback into their message."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getitems__(self, keys: Any) -> Any:
        try:
            return self.dataset.__getitems__(keys)
        except ComropeError as error:
            return error
