"""Data sets of images for a DataLoader: augmented images to train on, and plain ones to evaluate on.

The augmentation of an image is random and depends on its key (epoch, index, copy) alone, not on the batch, process or
worker that reads it, nor on earlier images. So training can be interrupted, and is the same in any number of processes.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import timm.data
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import RandAugment
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from comrope.errors import ConfigurationError
from comrope.lab.data.batches import Batch
from comrope.lab.data.streams import Sample
from comrope.lab.images.in_memory import Images, ImageSet, crops
from comrope.lab.images.rows import ImageStream, StreamedImages
from comrope.lab.rng import Stream, generator, seed_for

Key = tuple[int, int, int]
"""(epoch, index, copy)"""
AUGMENTATIONS = ("basic", "deit")


class TrainImages(Dataset):
    """Augmented images: `dataset[[(epoch, index, copy), …]]`, through a DataLoader, is a `Batch`.

    augment="basic" is the paper's: resize to `resize_ratio` times the size, keeping the aspect ratio, crop at random,
    and flip half of the images. augment="deit" is DeiT's (arXiv:2012.12877, Table 9) without mixup and CutMix, which
    need a batch.
    """

    def __init__(
        self,
        images: ImageSet | ImageStream,
        size: tuple[int, int],
        *,
        augment: str = "basic",
        resize_ratio: float = 1.1,
        flip: bool,
        seed: int,
    ):
        """
        Args:
            images: the images to augment.
            size: (height, width) of the augmented images in pixels.
            augment: "basic" or "deit".
            resize_ratio: with "basic", the size of the resized images over `size`; 1 or more.
            flip: whether images are flipped at random.
            seed: the seed that, with an image's key, determines its augmentation.
        Raises:
            ConfigurationError: a setting is out of range.
        """
        if augment not in AUGMENTATIONS:
            raise ConfigurationError(f"augment={augment!r}: expected one of {', '.join(AUGMENTATIONS)}.")
        if not resize_ratio >= 1:
            raise ConfigurationError(
                f"resize_ratio={resize_ratio}: expected 1 or more, or there is nothing to crop from."
            )
        if augment == "deit" and images.channels not in (1, 3):
            raise ConfigurationError(f"augment='deit' is for grey or RGB images: got {images.channels} channels.")
        self.images: Any = images
        self.size, self.flip, self.seed = _checked(size), flip, seed
        self._resized_size = (round(resize_ratio * size[0]), round(resize_ratio * size[1]))
        self._deit = _deit(size, flip) if augment == "deit" else None
        self._pixels = (
            images.covering(self._resized_size) if isinstance(images, Images) and augment == "basic" else None
        )
        self._tables: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[Any]) -> Batch:
        """Returns the batch of `keys`, each of which is (epoch, index, copy)."""
        if self._pixels is not None:
            return self._crops(self._pixels, keys)
        indices = [index for _, index, _ in keys]
        return _gather(self.images, self.size, indices, lambda at, image: self.augmented(keys[at], image))

    def augmented(self, key: Key, image: Image.Image) -> Tensor:
        """Returns the augmented image of a key."""
        return self._basic(key, image) if self._deit is None else self._deit_like(key, image)

    def _crops(self, pixels: Tensor, keys: Sequence[Key]) -> Batch:
        """Returns what `_basic` returns, for all keys at once."""
        uniform = torch.from_numpy(np.stack([self._uniform(key) for key in keys]))  # (n, 3)
        indices = torch.tensor([index for _, index, _ in keys])
        num_offsets = torch.tensor([big - small + 1 for big, small in zip(pixels.shape[-2:], self.size, strict=True)])
        rows, columns = (uniform[:, :2] * num_offsets).long().unbind(1)
        found = crops(pixels, indices, rows, columns, self.size)
        if self.flip:
            found = torch.where((uniform[:, 2] < 0.5)[:, None, None, None], found.flip(-1), found)
        return Batch(found, self.images.labels[indices])

    def _basic(self, key: Key, image: Image.Image) -> Tensor:
        height, width = self._resized_size
        bigger = ImageOps.cover(image, (width, height), Image.Resampling.BILINEAR)
        height, width = self.size
        down, right, mirror = self._uniform(key).tolist()
        row, column = int(down * (bigger.height - height + 1)), int(right * (bigger.width - width + 1))
        crop = _to_tensor(bigger.crop((column, row, column + width, row + height)))
        return crop.flip(-1) if self.flip and mirror < 0.5 else crop

    def _uniform(self, key: Key) -> np.ndarray:
        """Returns numbers in [0, 1) for an image's row, column and flip. Those of all images are cached for an epoch."""
        epoch, index, copy = key
        if (epoch, copy) not in self._tables:
            if any(cached != epoch for cached, _ in self._tables):
                self._tables.clear()
            rng = generator(self.seed, Stream.AUGMENTATION, epoch, copy)
            self._tables[epoch, copy] = torch.rand(len(self), 3, generator=rng).numpy()
        return self._tables[epoch, copy][index]

    def _deit_like(self, key: Key, image: Image.Image) -> Tensor:
        """Returns an image under DeiT's augmentation.

        A grey image is augmented as RGB, and one channel is returned: the three differ only by the noise of random
        erasing.
        """
        assert self._deit is not None
        with _seeded(seed_for(self.seed, Stream.AUGMENTATION, *key)):
            return self._deit(image.convert("RGB"))[: self.images.channels]


class StreamedTrainImages(TrainImages):
    """Augmented images of a stream: `dataset[[sample, …]]`, through a DataLoader, is a `Batch`.

    A sample is augmented as one of `TrainImages` with the same key, whose index is the sample's number in the epoch.
    """

    def __init__(self, images: ImageStream, *arguments: Any, **settings: Any):
        """
        Args:
            images: the images to augment.
            arguments, settings: see `TrainImages`.
        """
        super().__init__(images, *arguments, **settings)
        self.stream = images

    def __getitems__(self, keys: Sequence[Sample]) -> Batch:
        """Returns the batch of these samples."""
        images = StreamedImages(self.stream, keys)
        return _gather(images, self.size, range(len(keys)), lambda at, image: self.augmented(keys[at][:3], image))


class EvalImages(Dataset):
    """Plain images: `dataset[[index, …]]`, through a DataLoader, is a `Batch`.

    Images are resized, with their aspect ratio, to the smallest size that covers `size`, and cropped at the centre.
    """

    def __init__(self, images: ImageSet, size: tuple[int, int]):
        self.images, self.size = images, _checked(size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Returns the batch of the images at `indices`."""
        if isinstance(self.images, Images):
            images = self.images.take(indices)
            return Batch(images.fitted(self.size), images.labels)
        return _gather(self.images, self.size, indices, lambda at, image: self._fitted(image))

    def _fitted(self, image: Image.Image) -> Tensor:
        height, width = self.size
        return _to_tensor(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))


def _gather(
    images: ImageSet | StreamedImages,
    size: tuple[int, int],
    indices: Sequence[int],
    transform: Callable[[int, Image.Image], Tensor],
) -> Batch:
    """Returns the batch of the images that can be read, each transformed by `transform(index in the batch, image)`."""
    pixels, kept, skipped = [], [], []
    for at, index in enumerate(indices):
        image = images.pil(index)
        if image is None:
            skipped.append(images.name(index))
        else:
            pixels.append(transform(at, image))
            kept.append(index)
    stacked = torch.stack(pixels) if pixels else torch.empty(0, images.channels, *size)
    return Batch(stacked, images.labels[kept], tuple(skipped))


def _checked(size: tuple[int, int]) -> tuple[int, int]:
    if min(size) < 1:
        raise ConfigurationError(f"size={size}: expected (height, width) of at least one pixel.")
    return size


def _to_tensor(image: Image.Image) -> Tensor:
    """Returns an image as (channels, height, width), float32 in [−1, 1]."""
    return pil_to_tensor(image).float() / 127.5 - 1


def _deit(size: tuple[int, int], flip: bool) -> Any:
    """Returns DeiT's augmentation of one RGB image. With RandAugment timm ignores color_jitter, as it did in DeiT."""
    transform: Any = timm.data.create_transform(
        (3, *size),
        is_training=True,
        hflip=0.5 if flip else 0.0,
        color_jitter=0.3,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    (augment,) = (part for part in transform.transforms if isinstance(part, RandAugment))
    for operation in augment.ops:
        if operation.name == "PosterizeIncreasing":
            operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits_to_keep: int, **settings: Any) -> Image.Image:
    """Posterizes like timm, which keeps no bit at the highest magnitude and so makes an image black; Pillow 13 refuses to."""
    return ImageOps.posterize(image, bits_to_keep) if bits_to_keep else Image.new(image.mode, image.size)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of Python, numpy and torch (CPU), which timm uses, and restores their states afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
