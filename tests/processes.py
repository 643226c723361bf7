"""Processes of the tests' own: forked by a server that has imported what they need, or each would take seconds to begin."""

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["pytest", "sklearn.datasets", "comrope.cli.tools", "comrope.lab.reproduce", "tests.hosts.distributed_gradients"]
)


def in_two_processes(work: Callable[..., Any], folder: Path, *arguments: Any) -> Any:
    """Runs `work(rank, *arguments)` in two processes that form a gloo group, and returns the result of rank 0.

    `work` must be an importable function that returns tensors or dictionaries of them.
    """
    given = (work, str(folder), arguments)
    torch.multiprocessing.start_processes(_process, given, nprocs=2, start_method="forkserver")
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
