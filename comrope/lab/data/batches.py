"""Batches, and how they are read: by a DataLoader, in this process or in others."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from comrope.errors import ComropeError, WorkerError


class Batch(NamedTuple):
    """Some images or clips, and their labels."""

    pixels: Tensor
    """(n, channels, [frames,] height, width), float32 in [−1, 1]; standard normal where DeiT's random erasing has been."""
    labels: Tensor
    """(n,), int64."""
    skipped: tuple[str, ...] = ()
    """Names of the images that were asked for and are left out, since they cannot be read."""


def as_is(batch: Any) -> Any:
    """The collate_fn for a DataLoader: what is read is a batch already."""
    return batch


def read_batches(dataset: Any, keys: Iterable[Any], num_workers: int) -> Iterator[Any]:
    """The batches of `dataset`, one for each list in `keys`, in order.

    Args:
        dataset: what is read, by `dataset[[key, …]]`.
        keys: of each batch.
        num_workers: processes that read; this one does if 0.
    Raises:
        ComropeError: one that the dataset raises, wherever it is read, with its own message.
        WorkerError: a process that read is gone.
    """
    told: Any = _Told(dataset)
    settings: Any = {"batch_sampler": keys, "num_workers": num_workers, "collate_fn": as_is}
    found = iter(DataLoader(told, **settings))
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
        del found  # and with it the processes, which a traceback would keep


class _Told(Dataset):
    """A dataset whose errors come in place of a batch: a DataLoader would put a process's traceback into their message."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getitems__(self, keys: Any) -> Any:
        try:
            return self.dataset.__getitems__(keys)
        except ComropeError as error:
            return error
