"""Taking turns, so that a machine that slows down slows all: seconds, ratios in the same round, high-water marks of memory."""

import gc
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

Progress = Callable[[str], None]
Step = Callable[[], None]


def in_turn(
    steps: dict[str, Callable[[], None]], rounds: int, progress: Callable[[str], None], turn: float = 0
) -> dict[str, list[float]]:
    """Seconds of every step in every round, the steps taking turns; two rounds before that are not counted.

    In its turn a step runs again until `turn` seconds are over, and the median is what counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            progress(name)
            median = statistics.median(_repeated(step, turn))
            if number >= 2:
                seconds[name].append(median)
    return seconds


def _repeated(step: Step, turn: float) -> Iterator[float]:
    """Seconds of each step of a turn; of one at least."""
    begun = last = time.perf_counter()
    while last == begun or last < begun + turn:
        step()
        now = time.perf_counter()
        yield now - last
        last = now


def compared(seconds: dict[str, list[float]], baseline: str) -> Iterator[dict]:
    for name, each in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(each, seconds[baseline], strict=True)]
        yield {"opponent": name, **summary(each), "ratio": _quartiles(ratios)}


def summary(seconds: list[float]) -> dict:
    return {"seconds": _quartiles(seconds), "rounds": len(seconds)}


def _quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def peak_memory(make: Callable[..., Step], *arguments, above_start: bool) -> int:
    """Bytes that a process of its own holds at most while `make(*arguments)()` runs twice. Linux only.

    above_start leaves out what it held before the steps; otherwise it is all: weights, optimiser, libraries.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(make, arguments, above_start, torch.get_num_threads(), sender))
    process.start()
    sender.close()
    peak = receiver.recv()
    process.join()
    return peak


def _measure(make, arguments, above_start: bool, threads: int, sender) -> None:
    torch.set_num_threads(threads)
    step = make(*arguments)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew from what is in use now
    before = _high_water() if above_start else 0
    step()
    if not above_start:
        step()  # the optimiser holds its state from the first one on
    sender.send(_high_water() - before)


def _high_water() -> int:
    """Bytes this process has held at most (VmHWM, Linux only)."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])  # pyright: ignore
