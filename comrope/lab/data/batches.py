"""Batches of labelled samples, and how a DataLoader reads batches."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from comrope.errors import ComropeError, WorkerError


class Batch(NamedTuple):
    """Images or clips, and their labels."""

    pixels: Tensor
    """(n, channels, [frames,] height, width), float32 in [−1, 1]; pixels erased by DeiT's augmentation are standard normal."""
    labels: Tensor
    """(n,), int64."""
    skipped: tuple[str, ...] = ()
    """Names of the samples that were left out because they cannot be read."""


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
