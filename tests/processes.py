"""Runs a function in two processes."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def in_two_processes(work: Callable[..., Any], folder: Path, *arguments: Any) -> Any:
    """Runs `work(rank, *arguments)` in two processes that form a gloo group, and returns the result of rank 0.

    `work` must be an importable function that returns tensors or dictionaries of them.
    """
    torch.multiprocessing.spawn(_process, (work, str(folder), arguments), nprocs=2)
    return torch.load(folder / "result.pt", weights_only=True)


def _process(rank: int, work: Callable[..., Any], folder: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    limit = timedelta(minutes=3)  # one process waits at most this long for the other
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=limit)
    try:
        result = work(rank, *arguments)
        if rank == 0:
            torch.save(result, Path(folder) / "result.pt")
    finally:
        dist.destroy_process_group()
