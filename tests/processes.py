"""Two real processes."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def in_two_processes(work: Callable[..., Any], folder: Path, *arguments: Any) -> Any:
    """What `work(rank, *arguments)` returns in the first of two processes that form a gloo group; both run it.

    `work` must be a function that can be imported, and return tensors or dictionaries of them.
    """
    torch.multiprocessing.spawn(_process, (work, str(folder), arguments), nprocs=2)
    return torch.load(folder / "result.pt", weights_only=True)


def _process(rank: int, work: Callable[..., Any], folder: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    limit = timedelta(minutes=3)  # in which one waits for the other
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=limit)
    try:
        result = work(rank, *arguments)
        if rank == 0:
            torch.save(result, Path(folder) / "result.pt")
    finally:
        dist.destroy_process_group()
