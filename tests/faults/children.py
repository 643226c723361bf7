"""Work in processes of its own, which are killed, may write no more than so many bytes, or lose root's rights to files."""

import ctypes
import os
import random
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import psutil
import torch

from comrope.errors import ComropeError
from tests.processes import CONTEXT


def start(work: Callable[..., Any], *arguments: Any) -> Any:
    """A process that has just begun `work(*arguments)`, which must be a function that can be imported."""
    begun = CONTEXT.Event()
    process = CONTEXT.Process(target=_begin, args=(begun, work, arguments))
    process.start()
    assert begun.wait(120)
    return process


def _ended(process: psutil.Process) -> bool:
    """Whether a process is gone, or waits only for a parent that nobody plays to take note of its end."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def killed(draws: random.Random, longest: float, work: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a process that does `work` was killed within `longest` seconds of its beginning; False if it was done before."""
    process = start(work, *arguments)
    process.join(draws.uniform(0, longest))
    children = []
    if process.exitcode is None:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it may come to its end at this very moment
            children = psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    _, alive = psutil.wait_procs(children, timeout=60)
    alive = [child for child in alive if not _ended(child)]
    assert not alive, f"{alive} live on"
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def told(
    work: Callable[..., Any], *arguments: Any, most_bytes: int | None = None, no_rights: bool = False
) -> str | None:
    """What an error of ours says that ends `work(*arguments)` in a process of its own; None where there is none.

    Any other error is one here too.

    Args:
        most_bytes: a file of the process cannot become larger, as on a disk that is full.
        no_rights: folders and files that are marked as read-only are, even for root.
    """
    results = CONTEXT.Queue()
    process = CONTEXT.Process(target=_tell, args=(results, work, arguments, most_bytes, no_rights))
    process.start()
    error = results.get(timeout=180)
    process.join()
    if error is not None and not error.startswith("comrope: "):
        raise AssertionError(error)
    return error


def _begin(begun: Any, work: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    begun.set()
    work(*arguments)


def _tell(results: Any, work: Callable[..., Any], arguments: tuple, most_bytes: int | None, no_rights: bool) -> None:
    torch.set_num_threads(1)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    try:
        with without_rights() if no_rights else nullcontext():
            work(*arguments)
    except ComropeError as error:
        results.put(f"comrope: {error}")
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")
    else:
        results.put(None)


@contextmanager
def without_rights() -> Iterator[None]:
    """Meanwhile even root may read and write only what its files' marks allow: no capability is in effect, see capget(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, held = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    assert libc.capget(header, held) == 0, os.strerror(ctypes.get_errno())
    words = struct.unpack("=6I", held.raw)  # effective, permitted and inheritable, twice
    none = struct.pack("=6I", 0, *words[1:3], 0, *words[4:])
    assert libc.capset(header, none) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.capset(header, held.raw) == 0, os.strerror(ctypes.get_errno())
