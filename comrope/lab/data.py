"""Images to train and test on. Every data set is a pair of `Images`, in memory and in a fixed order."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images and their labels at the data set's own resolution."""

    pixels: Tensor
    """(n, channels, height, width), float32 in [−1, 1] (the paper's mean and standard deviation of ½)."""
    labels: Tensor
    """(n,), int64."""
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def resized(self, size: tuple[int, int]) -> Tensor:
        """The pixels at (height, width) = `size`, bilinear and antialiased: (n, channels, *size)."""
        return F.interpolate(self.pixels, size=size, mode="bilinear", antialias=True, align_corners=False)


def digits() -> tuple[Images, Images]:
    """scikit-learn's 1,797 handwritten digits, 8 × 8, which come with the package: 1,347 to train on, 450 to test.

    The split is stratified and always the same. Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten
    Digits", UCI Machine Learning Repository.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    classes = tuple(str(c) for c in bunch.target_names)
    pixels = torch.from_numpy(bunch.images).float().unsqueeze(1) / 8 - 1  # 0 … 16 → [−1, 1]
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(range(len(labels)), test_size=450, stratify=bunch.target, random_state=0)
    return Images(pixels[train], labels[train], classes), Images(pixels[test], labels[test], classes)


def random_crops(pixels: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """One random crop of `size` from each image: (n, channels, height, width) to (n, channels, *size)."""
    n, _, height, width = pixels.shape
    rows = torch.randint(height - size[0] + 1, (n, 1), generator=generator) + torch.arange(size[0])
    columns = torch.randint(width - size[1] + 1, (n, 1), generator=generator) + torch.arange(size[1])
    return pixels[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
