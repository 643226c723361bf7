"""Runs in a pool of worker processes of one thread each, which end with the command that started them."""

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

from comrope.errors import WorkerError
from comrope.lab.job import Job, OnRunProgress, use_one_thread


def make(
    waves: Sequence[Sequence[Job]], folder: Path, settings: dict[str, Any], on_progress: OnRunProgress, *, parallel: int
) -> None:
    """Makes the runs of all jobs that are not finished yet, one wave after the other.

    Raises:
        WorkerError: a worker was killed.
    """
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    with ProcessPoolExecutor(parallel, context, initializer=_start_worker, initargs=(reports,)) as pool:
        try:
            for wave in waves:
                futures = [pool.submit(_run_here, job, folder, settings) for job in wave]
                while not all(future.done() and future.result() for future in futures):
                    with suppress(queue.Empty):
                        on_progress(*reports.get(timeout=0.2))
            while not reports.empty():
                on_progress(*reports.get())
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker was killed, by hand or for want of memory: give the same command again to go on, with fewer "
                "--parallel if it was memory."
            ) from error
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


_reports: Any = None  # in a worker process: the queue for its progress


def _start_worker(reports) -> None:
    global _reports
    _reports = reports
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    use_one_thread()


def _end_with_parent() -> None:
    """Ends this worker when its parent has ended, since a killed parent cannot do it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _run_here(job: Job, folder: Path, settings: dict[str, Any]) -> bool:
    job.run(folder, settings, lambda *progress: _reports.put(progress))
    return True
