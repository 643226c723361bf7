"""What the laboratory's tests share: made-up results, whose structure is the demo's and whose numbers mean nothing."""

import numpy as np
import pytest

from tests.lab.helpers import ENCODINGS


def _frequencies(name: str, index: int) -> list | None:
    """[layer][axis][head][block][plane]: 2 layers, 2 axes, 4 heads, 2 blocks (STRING: a wide one), 4 planes."""
    if name in ("ape", "liere"):
        return None
    values = np.random.default_rng(index).normal(scale=4, size=(2, 2, 4, 2, 4)) * (name != "none")
    return (values.reshape(2, 2, 4, 1, 8) if name == "string" else values).tolist()


def _check(name: str) -> list[dict]:
    size = 0.4 if name == "liere" else 0.0 if name == "none" else 2e-15
    layer = {"commutator": size / 8, "equation": size, "offset_drift": size / 2, "holds": name != "liere"}
    return [] if name == "ape" else [{"name": f"blocks.{i}", **layer, "equation": size * (i + 1)} for i in range(2)]


def _run(name: str, index: int) -> dict:
    trained = 390 + 6 * index
    far = {"ape": 45, "liere": 130}.get(name, trained)
    return {
        "encoding": name,
        "num_parameters": 208_000 + 512 * index,
        "num_encoding_parameters": 512 * index,
        "history": [{"epoch": e, "loss": 2.0 / e + index / 100, "accuracy": 0.1 * e} for e in range(1, 6)],
        "resolutions": [
            {"size": [s, s], "correct": trained - abs(s - 32) - index % 2, "total": 450} for s in (24, 28, 40, 48)
        ]
        + [{"size": [32, 32], "correct": trained, "total": 450}],
        "offsets": [
            {"offset": 0.0, "correct": trained, "total": 450, "changed": 0},
            {"offset": 0.5, "correct": (trained + far) // 2, "total": 450, "changed": (trained - far) // 2},
            {"offset": 4.0, "correct": far, "total": 450, "changed": trained - far},
        ],
        "check": _check(name),
        "frequencies": _frequencies(name, index),
    }


@pytest.fixture
def results() -> dict:
    return {
        "command": "comrope demo --seed 0",
        "versions": {"comrope": "0.1.0", "torch": "2.14.1", "timm": "1.0.31", "python": "3.11.7"},
        "settings": {
            "seed": 0,
            "epochs": 5,
            "batch_size": 64,
            "learning_rate": 0.001,
            "perturbation": 1.0,
            "width": 64,
            "depth": 2,
            "num_heads": 4,
            "patch_size": 4,
            "block_size": 8,
            "training_size": [32, 32],
            "num_train": 1347,
            "num_test": 450,
            "data": "scikit-learn's digits, upsampled from 8 x 8",
        },
        "runs": [_run(name, index) for index, name in enumerate(ENCODINGS)],
        "timing": {"threads": 2, "seconds": 212.3, "train_seconds": dict.fromkeys(ENCODINGS, 20.1)},
    }
