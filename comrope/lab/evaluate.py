"""Measuring a trained classifier: at other resolutions, and with all its coordinates moved."""

import torch
from torch import Tensor

import comrope
from comrope.lab.data import Images
from comrope.lab.vit import ViT


@torch.no_grad()
def predict(
    model: ViT, images: Images, size: tuple[int, int], *, offset: float = 0.0, seed: int = 0, batch_size: int = 150
) -> Tensor:
    """Labels (n,) that `model` gives to `images` at `size`, each image's positions moved by its own N(0, ρ²I) (Eq. 12)."""
    draws = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    positions = model.positions(size)
    if offset:
        positions = comrope.positions.offset(positions, offset, batch_size=len(images), generator=draws)
    labels = []
    for i, pixels in enumerate(images.resized(size).split(batch_size)):
        moved = positions[i * batch_size :][: len(pixels)] if offset else positions
        labels.append(model(pixels.to(device), moved.to(device)).argmax(-1).cpu())
    return torch.cat(labels)


def across_resolutions(model: ViT, images: Images, sizes: list[tuple[int, int]]) -> list[dict]:
    """Correct answers at each (height, width), without retraining."""
    rows = []
    for size in sizes:
        correct = (predict(model, images, size) == images.labels).sum().item()
        rows.append({"size": list(size), "correct": correct, "total": len(images)})
    return rows


def across_offsets(
    model: ViT, images: Images, size: tuple[int, int], offsets: list[float], seed: int = 0
) -> list[dict]:
    """Correct answers under random offsets of each strength ρ, and how many labels differ from those without offset."""
    unmoved = predict(model, images, size)
    rows = []
    for offset in offsets:
        labels = unmoved if offset == 0 else predict(model, images, size, offset=offset, seed=seed)
        rows.append(
            {
                "offset": offset,
                "correct": (labels == images.labels).sum().item(),
                "total": len(images),
                "changed": (labels != unmoved).sum().item(),
            }
        )
    return rows
