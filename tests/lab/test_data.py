"""The images: what they are, how they are split, resized and cropped."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from comrope.lab.data import Images, digits, random_crops

FIRST_TEST_LABELS = [2, 0, 4, 9, 4, 1, 2, 4, 6, 7, 9, 1]


@pytest.fixture(scope="module")
def split() -> tuple[Images, Images]:
    return digits()


def _mosaic(n: int, height: int, width: int) -> torch.Tensor:
    """(n, 2, height, width) whose first channel names image, row and column, and whose second is its negative."""
    codes = torch.arange(n * height * width, dtype=torch.float32).view(n, 1, height, width)
    return torch.cat((codes, -codes), dim=1)


def test_digits_have_their_sizes_and_classes(split):
    train, test = split
    assert (len(train), len(test)) == (1347, 450)
    for images in split:
        assert images.pixels.shape == (len(images), 1, 8, 8) and images.pixels.dtype == torch.float32
        assert images.labels.shape == (len(images),) and images.labels.dtype == torch.int64
        assert images.classes == tuple("0123456789")
        assert set(images.labels.tolist()) == set(range(10))


def test_pixels_fill_the_range_from_minus_one_to_one(split):
    for images in split:
        assert images.pixels.min() == -1 and images.pixels.max() == 1
        assert torch.equal(images.pixels * 8, (images.pixels * 8).round())  # 17 grey values, as they were


def test_train_and_test_part_the_data_set(split):
    """Together they are the whole set, each image as often as there: none lies in both, none is lost."""
    bunch = load_digits()
    whole = np.column_stack((bunch.images.reshape(-1, 64), bunch.target))
    parts = [np.column_stack(((s.pixels.flatten(1) + 1) * 8, s.labels)) for s in split]
    ours = np.concatenate(parts)
    assert np.array_equal(ours[np.lexsort(ours.T)], whole[np.lexsort(whole.T)])
    assert len(np.unique(whole, axis=0)) == len(whole)  # so that "in both" would be seen


def test_every_class_keeps_its_share(split):
    train, test = (np.bincount(s.labels, minlength=10) for s in split)
    assert np.abs(test - (train + test) * 450 / 1797).max() < 1


def test_split_is_always_the_same(split):
    np.random.seed(123)
    torch.manual_seed(123)
    for first, again in zip(split, digits(), strict=True):
        assert torch.equal(first.pixels, again.pixels) and torch.equal(first.labels, again.labels)
    assert split[1].labels[:12].tolist() == FIRST_TEST_LABELS


def test_resized_takes_height_then_width(split):
    test = split[1]
    assert test.resized((24, 40)).shape == (450, 1, 24, 40)
    assert torch.allclose(test.resized((8, 8)), test.pixels, atol=1e-6)
    assert test.resized((24, 40)).abs().max() <= 1 + 1e-5
    columns = torch.linspace(-1, 1, 8).expand(1, 1, 8, 8)  # brighter from left to right
    bigger = Images(columns, torch.zeros(1, dtype=torch.int64), ("x",)).resized((24, 40))
    assert torch.allclose(bigger, bigger[:, :, :1].expand(-1, -1, 24, -1), atol=1e-6)
    assert (bigger[0, 0, 0].diff() >= -1e-6).all() and bigger[0, 0, 0, -1] > 0.9


def test_resized_loses_no_pixel():
    """At a quarter of the size, plain bilinear interpolation would skip three rows of four."""
    impulses = Images(torch.eye(64).view(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64), ("x",))
    small = impulses.resized((2, 2))
    assert (small.sum((1, 2, 3)) > 1e-3).all()
    assert torch.allclose(small.sum(0), torch.ones(1, 2, 2))  # every small pixel is an average


@pytest.mark.parametrize("size", [(5, 9), (6, 6), (1, 12)])
def test_random_crops_are_slices(size):
    pixels = _mosaic(200, 7, 12)
    crops = random_crops(pixels, size, torch.Generator().manual_seed(3))
    assert crops.shape == (200, 2, *size)
    corners = set()
    for image, crop in zip(pixels, crops, strict=True):
        row, column = divmod(int(crop[0, 0, 0] - image[0, 0, 0]), 12)
        assert torch.equal(crop, image[:, row : row + size[0], column : column + size[1]])
        corners.add((row, column))
    assert corners == {
        (r, c) for r in range(7 - size[0] + 1) for c in range(12 - size[1] + 1)
    }  # every place, the last too


def test_random_crops_are_reproducible():
    pixels = _mosaic(20, 9, 9)
    first, again, other = (random_crops(pixels, (5, 5), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_crops_differ_between_images_and_between_calls():
    pixels = _mosaic(1, 9, 9).expand(30, -1, -1, -1)
    draws = torch.Generator().manual_seed(0)
    first, second = random_crops(pixels, (5, 5), draws), random_crops(pixels, (5, 5), draws)
    assert len(first.flatten(1).unique(dim=0)) > 10
    assert not torch.equal(first, second)


def test_a_crop_of_the_whole_size_is_the_image():
    pixels = _mosaic(4, 6, 8)
    assert torch.equal(random_crops(pixels, (6, 8), torch.Generator()), pixels)
