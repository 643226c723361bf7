"""What the laboratory's tests share: made-up results, whose structure is the demo's and whose numbers mean nothing."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from comrope.lab.reproduce.demo import SCALE as DEMO
from comrope.lab.reproduce.demo import demo
from comrope.lab.study import Job


def _frequencies(name: str, index: int) -> list | None:
    """[layer][axis][head][block][plane]: 2 layers, 2 axes, 4 heads, 2 blocks (STRING: a wide one), 4 planes."""
    if name in ("ape", "rope", "liere"):
        return None
    values = np.random.default_rng(index).normal(scale=4, size=(2, 2, 4, 2, 4)) * (name != "none")
    return (values.reshape(2, 2, 4, 1, 8) if name == "string" else values).tolist()


def _check(name: str) -> list[dict]:
    size = 0.4 if name == "liere" else 0.0 if name == "none" else 2e-15
    layer = {"commutator": size / 8, "equation": size, "offset_drift": size / 2, "holds": name != "liere"}
    return [{"name": f"blocks.{i}", **layer, "equation": size * (i + 1)} for i in range(2)]


def _run(job: Job, index: int) -> dict:
    name, trained = job.experiment.encoding, 390 + 6 * index
    far = {"ape": 45, "liere": 130}.get(name, trained)
    rows = []
    for c in job.conditions:
        smaller = 0 if c.size == DEMO.image_size else abs(c.size[0] - 48) // 2 + 10 + index % 2
        correct = round(trained - (trained - far) * c.offset / 2) - smaller
        changed = trained - correct if c.offset else 0
        rows.append(
            {**vars(c), "size": list(c.size), "correct": correct, "total": 450, "skipped": 0, "changed": changed}
        )
    return {
        "name": job.experiment.name,
        "kind": "images",
        "experiment": job.experiment.to_json(),
        "data": {"train": {"count": 1347}, "test": {"count": 450}},
        "num_parameters": 208_000 + 512 * index,
        "num_encoding_parameters": 512 * index,
        "check": _check(name),
        "frequencies": _frequencies(name, index),
        "history": [{"epoch": e, "loss": 2.0 / e + index / 100, "accuracy": 0.1 * e} for e in range(1, 13)],
        "evaluation": rows,
        "timing": {"train_seconds": 20.125, "threads": 1},
    }


@pytest.fixture
def results() -> dict:
    plan = demo(DEMO)
    runs = [_run(job, index) for index, job in enumerate(plan.jobs)]
    return {
        "recipe": "demo",
        "title": plan.title,
        "command": "comrope demo --seed 0",
        "versions": {"comrope": "0.1.0", "torch": "2.14.1", "timm": "1.0.31", "python": "3.11.7"},
        "scale": json.loads(json.dumps(asdict(DEMO))),
        "notes": [*plan.outcome(runs).notes, "Test samples of each run: 450."],
        "tables": [],
        "runs": runs,
    }
