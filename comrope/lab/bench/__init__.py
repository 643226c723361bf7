"""Time and memory of rotations: the paper's algorithm, plain RoPE of three libraries, and ours, side by side in one run.

The implementations are timed one after the other, round after round, so that a machine that slows down slows all of
them. What counts is the ratio to the baseline in the same round.
"""

import os
import platform

import torch

from comrope.lab.bench import attached, measure, targets
from comrope.lab.bench.clock import Progress
from comrope.lab.bench.figure import figure
from comrope.lab.bench.opponents import SHAPES
from comrope.lab.bench.tables import measured_on, tables
from comrope.lab.output import Outcome
from comrope.lab.results import versions


def run(*, rounds: int, batch: int, depth: int, tokens: int, command: str, progress: Progress) -> dict:
    """Returns all measurements, as they are written to JSON.

    Args:
        rounds: the number of rounds of rotations; whole models take three times as many, since their ratios are close
            to 1.
        batch, depth: the numbers of images and of the ViT's layers in whole training steps.
        tokens: shapes with more tokens are left out.
        command: the command that was typed, for the record.
        progress: is called with a description of each measurement.
    """
    shapes = [shape for shape in SHAPES if shape.num_tokens <= tokens]
    found: dict = {"title": "comrope bench", "notes": [], "command": command}
    found |= {**environment(), "batch": batch, "depth": depth}
    found["rotations"] = []
    for shape in shapes:
        found["rotations"] += measure.rotations(shape, rounds, progress)
    found["decompositions"] = measure.decompositions(rounds, depth)
    found["inference"] = measure.inference(3 * rounds, batch, depth, progress)
    found["training_steps"] = measure.training_steps(3 * rounds, batch, depth, progress)
    found["attached"] = []
    for host in attached.HOSTS:
        if host.num_tokens <= tokens:
            found["attached"] += attached.training(host, 3 * rounds, batch, depth, progress)
            found["attached"] += attached.inference(host, 3 * rounds, batch, depth, progress)
    found["memory"] = measure.memory_of_rotations(shapes[0], progress, only=lambda name: "compiled" not in name)
    for shape in shapes[1:]:
        if shape.num_axes == 1:
            found["memory"] += measure.memory_of_rotations(
                shape, progress, only=("LD, ours", "RoPE, transformers").__contains__
            )
    found["training_memory"] = measure.memory_of_training(batch, depth, progress)
    found["targets"] = [target.row() for target in targets.targets(found)]
    return found


def outcome(found: dict) -> Outcome:
    """Returns the tables and the figure of what `run` found."""
    lead = f"Times and memory on {measured_on(found)}."
    return Outcome(tables(found), {"bench": figure(found)}, lead=lead, about=(__doc__ or "").strip())


def environment() -> dict:
    """Returns the versions and settings that the measurements depend on."""
    return {
        "versions": versions("torch", "timm", "transformers", "rotary-embedding-torch"),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "allocator": os.environ.get("GLIBC_TUNABLES", ""),
    }
