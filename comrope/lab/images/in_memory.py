"""Images in memory: scikit-learn's digits, and Fashion-MNIST from local files."""

import gzip
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.transforms.v2.functional import to_pil_image

from comrope.errors import DataError
from comrope.lab.data.geometry import cover, crop
from comrope.lab.data.labelled import Labelled


class ImageSet(Labelled, Protocol):
    """The interface of all sets of images with one label each, in a fixed order."""

    @property
    def channels(self) -> int: ...

    @property
    def mirrors(self) -> bool:
        """Whether a mirrored image is of the same class, so that training may flip it."""
        ...

    def pil(self, index: int) -> Image.Image | None:
        """Returns an image of 8 bits per channel; None if it cannot be read and is to be left out."""
        ...


@dataclass(frozen=True)
class Images:
    """Images and their labels at the data set's own resolution."""

    pixels: Tensor
    """(n, channels, height, width), float32 in [−1, 1] (the paper's mean and standard deviation of ½)."""
    labels: Tensor
    """(n,), int64."""
    classes: tuple[str, ...]
    mirrors: bool = False
    """Whether a mirrored image is of the same class."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    def name(self, index: int) -> str:
        return f"image {index}"

    def pil(self, index: int) -> Image.Image:
        """Returns an image of 8 bits per channel: the data set's own values, unless these have more bits."""
        return to_pil_image(((self.pixels[index] + 1) * 127.5).round().to(torch.uint8))

    def take(self, indices: Sequence[int]) -> Self:
        return type(self)(self.pixels[indices], self.labels[indices], self.classes, self.mirrors)

    def covering(self, size: tuple[int, int]) -> Tensor:
        """Returns the pixels (n, channels, ≥ h, ≥ w), resized to the smallest size of their aspect ratio that covers `size`."""
        return cover(self.pixels, size)

    def fitted(self, size: tuple[int, int]) -> Tensor:
        """Returns the centre crops of `covering(size)`, (n, channels, *size)."""
        return crop(self.covering(size), size)


def digits() -> tuple[Images, Images]:
    """Returns scikit-learn's 1,797 handwritten digits of 8 × 8 pixels: 1,347 to train on, 450 to test on.

    They come with the package. The split is stratified and always the same. Source: E. Alpaydin, C. Kaynak, "Optical
    Recognition of Handwritten Digits", UCI Machine Learning Repository.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    classes = tuple(str(c) for c in bunch.target_names)
    pixels = torch.from_numpy(bunch.images).float().unsqueeze(1) / 8 - 1  # 0 … 16 → [−1, 1]
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(range(len(labels)), test_size=450, stratify=bunch.target, random_state=0)
    return Images(pixels[train], labels[train], classes), Images(pixels[test], labels[test], classes)


GARMENTS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FASHION_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
FASHION_FOLDERS = (Path("data/FashionMNIST/raw"), Path("/usr/share/datasets/fashion-mnist"))
"""The folders in which torchvision and Debian put the files."""
HOW_TO_GET = (
    "get them with `apt-get install dataset-fashion-mnist`, or with "
    'torchvision.datasets.FashionMNIST("data", download=True)'
)


def fashion_mnist(folder: Path | None = None) -> tuple[Images, Images]:
    """Returns Fashion-MNIST: grey 28 × 28 images of ten kinds of garment, 60,000 to train on and 10,000 to test on.

    Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms", arXiv:1708.07747.

    Args:
        folder: the folder of the four idx files, gzipped or not; the first of `FASHION_FOLDERS` with any of them if
            None.
    Raises:
        DataError: a file is missing, or damaged.
    """
    folders = FASHION_FOLDERS if folder is None else (folder,)
    names = [f"{name}-ubyte" for name in FASHION_FILES]
    for candidate in folders:
        found = {n: p for n in names for p in (candidate / f"{n}.gz", candidate / n) if p.is_file()}
        if found:
            break
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"Fashion-MNIST: {', '.join(missing)} (.gz or not) expected in {' or '.join(str(p) for p in folders)}: "
            f"{HOW_TO_GET}."
        )
    train_images, train_labels, test_images, test_labels = (found[name] for name in names)
    return _garments(train_images, train_labels), _garments(test_images, test_labels)


def _garments(image_file: Path, label_file: Path) -> Images:
    pixels = _read(image_file, read_image_file).unsqueeze(1).float() / 127.5 - 1  # 0 … 255 → [−1, 1]
    labels = _read(label_file, read_label_file)
    if len(pixels) != len(labels) or labels.max() >= len(GARMENTS):
        raise DataError(
            f"{image_file} has {len(pixels)} images, {label_file} has {len(labels)} labels up to {int(labels.max())}: "
            f"expected as many, up to {len(GARMENTS) - 1}. Remove both; {HOW_TO_GET}."
        )
    return Images(pixels, labels, GARMENTS, mirrors=True)


def _read(path: Path, parse: Callable[[str], Tensor]) -> Tensor:
    """Returns the content of an idx file, gzipped or not; torchvision's parsers take unpacked files only."""
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch, "idx")
        try:
            packed = path.read_bytes()
            plain.write_bytes(gzip.decompress(packed) if path.suffix == ".gz" else packed)
            return parse(str(plain))
        except (AssertionError, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError, zlib.error) as error:
            raise DataError(f"{path} is damaged or cut short ({error}): remove it, then {HOW_TO_GET}.") from error


def crops(pixels: Tensor, images: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the crops of `size` whose upper left corners are (rows, columns) in `pixels[images]`: (n, channels, *size)."""
    windows = pixels.unfold(2, size[0], 1).unfold(3, size[1], 1)  # (images, channels, rows, columns, *size), a view
    return windows[images, :, rows, columns]
