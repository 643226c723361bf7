"""The targets of the engine, compared with the measurements of a run."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from comrope.lab.bench.attached import FOLDED, HOOKS, PLAIN
from comrope.lab.bench.measure import ROPE
from comrope.lab.bench.opponents import BASELINE, PUBLISHED, SHAPES, SHARED

FIRST = SHAPES[0].name
IN_WEIGHTS = "LD, ours, basis in the weights"


@dataclass(frozen=True)
class Target:
    """A target and the measured value."""

    what: str
    goal: float
    at_least: bool
    """Whether the goal is a lower bound; otherwise it is an upper bound."""
    measured: float

    @property
    def reached(self) -> bool:
        return self.measured >= self.goal if self.at_least else self.measured <= self.goal

    def row(self) -> dict:
        """Returns the target as it is written to JSON."""
        sign = "≥" if self.at_least else "≤"
        return {
            "what": self.what,
            "target": f"{sign} {self.goal:g}",
            "measured": self.measured,
            "reached": self.reached,
        }


def targets(found: dict) -> list[Target]:
    """Returns all targets for which `found`, the measurements of a run, has values."""
    both = {r["opponent"]: r["seconds"][1] for r in found["rotations"] if _is(r, FIRST)}
    memory = {r["opponent"]: r["peak_bytes"] for r in found["memory"] if r["shape"] == FIRST}
    step = {r["opponent"]: r["ratio"][1] for r in found["training_steps"]}
    training = {r["opponent"]: r["peak_bytes"] for r in found["training_memory"]}
    inference = {r["opponent"]: r["ratio"][1] for r in found["inference"]}
    lines = []
    for way, name in (("basis on tokens", "LD, ours"), ("basis in the weights", IN_WEIGHTS)):
        lines += [
            Target(
                f"rotation against the published algorithm, {way}: times as fast",
                150,
                True,
                both[PUBLISHED] / both[name],
            ),
            Target(f"its extra memory, {way}: share", 1 / 50, False, memory[name] / memory[PUBLISHED]),
            Target(
                f"against the same with shared positions, {way}: times as fast", 15, True, both[SHARED] / both[name]
            ),
            Target(f"against plain RoPE, eager to eager, {way}: time", 1.8, False, both[name] / both[BASELINE]),
        ]
        compiled = both[f"{name}, compiled"] / both[f"{BASELINE}, compiled"]
        lines.append(Target(f"against plain RoPE, compiled to compiled, {way}: time", 2.0, False, compiled))
    for kind in ("AP", "LD", "MT"):
        lines.append(Target(f"whole training step, {kind} against RoPE: time", 1.04, False, step[f"{kind}, block 8"]))
        share = training[f"{kind}, block 8"] / training[ROPE]
        lines.append(Target(f"whole training step, {kind} against RoPE: peak memory", 1.05, False, share))
    lines.append(Target("inference, LD not folded against RoPE: time", 1.03, False, inference["LD, not folded"]))
    lines.append(Target("inference, LD folded against RoPE: time", 1.00, False, inference["LD, folded"]))
    block = step["LD, block 64"] / step["LD, block 2"]
    lines.append(Target("block 64 against block 2, whole training step: time", 1.15, False, block))
    attached = found["attached"]
    for name in dict.fromkeys(row["host"] for row in attached):
        lines += _of_host(name, [row for row in attached if row["host"] == name])
    language = [shape for shape in SHAPES if shape.num_axes == 1]
    for what, rows in (("time", found["rotations"]), ("memory", found["memory"])):
        points = [
            (shape.num_tokens, r["seconds"][1] if what == "time" else r["peak_bytes"])
            for shape in language
            for r in rows
            if r["opponent"] == "LD, ours" and (_is(r, shape.name) if what == "time" else r["shape"] == shape.name)
        ]
        if len(points) > 1:
            lines.append(Target(f"more tokens, LD: log-log slope of {what}", 1.05, False, slope(points)))
    share = found["decompositions"]["seconds"][1] / _seconds(found["training_steps"], "LD, block 8")
    lines.append(Target("all decompositions, share of a training step", 0.01, False, share))
    return lines


def _of_host(name: str, rows: list[dict]) -> list[Target]:
    """Returns the targets of attached encodings in one model, relative to its own RoPE."""
    ratio = {(row["mode"], row["opponent"]): row["ratio"][1] for row in rows}
    lines = [
        Target(f"{name}, training step, {way}: time", goal, False, ratio["training step", way])
        for way, goal in (("RoPE-Mixed, attached", 1.02), ("LD, attached", 1.05), ("MT, attached", 1.05))
    ]
    lines.append(Target(f"{name}, inference, {FOLDED}: time", 1.00, False, ratio["inference", FOLDED]))
    if ("training step", HOOKS) in ratio:
        share = ratio["training step", HOOKS] / ratio["training step", PLAIN]
        lines.append(Target("hooks alone, training step, against the model without: time", 1.01, False, share))
    return lines


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Returns the slope of the least-squares line of log y against log x."""
    return statistics.linear_regression(*([math.log(p[i]) for p in points] for i in range(2))).slope


def _is(row: dict, shape: str) -> bool:
    return row["shape"] == shape and row["mode"] == "forward + backward"


def _seconds(rows: list[dict], opponent: str) -> float:
    return next(r["seconds"][1] for r in rows if r["opponent"] == opponent)
