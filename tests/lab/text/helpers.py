"""A folder of texts made on the spot, and a small experiment on it."""

from dataclasses import replace
from pathlib import Path

import torch

from comrope.lab.experiment import Recipe
from comrope.lab.text.config import TextConfig

WORDS = ["a", "rose", "is", "no", "nettle", "but", "many", "a", "nettle", "would", "rather", "have", "been", "one"]


def write_texts(folder: Path, num: int = 12, size: int = 700) -> Path:
    """`num` different files of about `size` bytes, in two folders."""
    draws = torch.Generator().manual_seed(0)
    for i in range(num):
        path = folder / ("odd" if i % 2 else "even") / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = torch.randint(len(WORDS), (size // 4,), generator=draws)
        path.write_text(" ".join(WORDS[j] for j in chosen)[:size], encoding="utf-8")
    return folder


def quick(folder: Path, **changes) -> TextConfig:
    """Two epochs of three steps: a second."""
    experiment = TextConfig(
        data=str(folder),
        num_train=24,
        num_test=3,
        length=32,
        test_length=128,
        model="tiny",
        recipe=Recipe(epochs=2, batch_size=8, learning_rate=3e-3),
    )
    return replace(experiment, **changes)
