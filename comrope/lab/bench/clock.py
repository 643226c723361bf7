"""Times steps in alternation, so that a machine that slows down slows all of them; measures peak memory."""

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
    """Returns the seconds of every step in every round, after two warm-up rounds.

    In a round the steps are run in turn. A step is repeated until `turn` seconds are over, and the median of the
    repetitions is recorded.
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
    """Yields the seconds of each repetition of a step within `turn` seconds, of one repetition at least."""
    begun = last = time.perf_counter()
    while last == begun or last < begun + turn:
        step()
        now = time.perf_counter()
        yield now - last
        last = now


def compared(seconds: dict[str, list[float]], baseline: str) -> Iterator[dict]:
    """Yields a row for each step: quartiles of its seconds, and of their ratio to the baseline's in the same round."""
    for name, each in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(each, seconds[baseline], strict=True)]
        yield {"opponent": name, **summary(each), "ratio": _quartiles(ratios)}


def summary(seconds: list[float]) -> dict:
    """Returns the quartiles of the seconds, and the number of rounds."""
    return {"seconds": _quartiles(seconds), "rounds": len(seconds)}


def _quartiles(values: list[float]) -> list[float]:
    """Returns lower quartile, median and upper quartile."""
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def peak_memory(make: Callable[..., Step], *arguments, above_start: bool) -> int:
    """Returns the peak memory in bytes of a new process that runs the step `make(*arguments)`. Linux only.

    With `above_start` it is the peak of one step above the memory in use before. Otherwise it is the peak of two steps,
    with weights, optimiser and libraries.
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
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the memory in use
    before = _peak_bytes() if above_start else 0
    step()
    if not above_start:
        step()  # with the optimiser's state, which the first step has made
    sender.send(_peak_bytes() - before)


def _peak_bytes() -> int:
    """Returns the peak memory of this process in bytes (VmHWM, Linux only)."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])  # pyright: ignore
