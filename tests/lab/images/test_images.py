"""Images in memory: what they are, how they are split, resized and cropped, and what is taken from them."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from comrope.errors import ConfigurationError, DataError
from comrope.lab.images.data import load
from comrope.lab.images.in_memory import Images, digits, fashion_mnist

FIRST_TEST_LABELS = [2, 0, 4, 9, 4, 1, 2, 4, 6, 7, 9, 1]


@pytest.fixture(scope="module")
def split() -> tuple[Images, Images]:
    return digits()


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


def test_fitted_takes_height_then_width(split):
    test = split[1]
    assert test.covering((24, 40)).shape == (450, 1, 40, 40)
    assert test.fitted((24, 40)).equal(test.covering((24, 40))[:, :, 8:32])
    assert torch.allclose(test.fitted((8, 8)), test.pixels, atol=1e-6)
    assert test.fitted((24, 40)).abs().max() <= 1 + 1e-5
    columns = torch.linspace(-1, 1, 8).expand(1, 1, 8, 8)  # brighter from left to right
    bigger = Images(columns, torch.zeros(1, dtype=torch.int64), ("x",)).fitted((24, 40))
    assert torch.allclose(bigger, bigger[:, :, :1].expand(-1, -1, 24, -1), atol=1e-6)
    assert (bigger[0, 0, 0].diff() >= -1e-6).all() and bigger[0, 0, 0, -1] > 0.9


def test_resized_loses_no_pixel():
    """At a quarter of the size, plain bilinear interpolation would skip three rows of four."""
    impulses = Images(torch.eye(64).view(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64), ("x",))
    small = impulses.fitted((2, 2))
    assert (small.sum((1, 2, 3)) > 1e-3).all()
    assert torch.allclose(small.sum(0), torch.ones(1, 2, 2))  # every small pixel is an average


def test_pil_gives_the_pixels_back():
    """8 bits a channel hold any image that came with 8 bits: grey, and with colours in their order."""
    levels = torch.arange(256, dtype=torch.float32).view(1, 1, 16, 16) / 127.5 - 1
    labels = torch.zeros(1, dtype=torch.int64)
    grey = Images(levels, labels, ("x",)).pil(0)
    assert grey.mode == "L" and np.array_equal(np.asarray(grey), np.arange(256).reshape(16, 16))
    red = torch.cat((levels, -torch.ones_like(levels), -torch.ones_like(levels)), dim=1)
    colour = Images(red, labels, ("x",)).pil(0)
    assert colour.mode == "RGB" and np.array_equal(np.asarray(colour)[..., 0], np.asarray(grey))
    assert not np.asarray(colour)[..., 1:].any()


# Subsets


@pytest.mark.parametrize("num", [1, 10, 57, 450])
def test_a_subset_has_as_many_of_each_class(num):
    train, test = load("digits", num_train=num, num_test=num)
    for images in (train, test):
        assert len(images) == num and images.classes == tuple("0123456789")
    counts = np.bincount(train.labels, minlength=10)
    assert counts.max() - counts.min() <= 1


def test_a_subset_is_always_the_same_images_in_their_order(split):
    np.random.seed(5)
    first = load("digits", num_train=100)[0]
    np.random.seed(6)
    again = load("digits", num_train=100)[0]
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.labels, again.labels)
    same = (first.pixels.flatten(1)[:, None] == split[0].pixels.flatten(1)).all(-1)  # (100, 1347)
    where = same.nonzero()[:, 1]
    assert len(where) == 100 and (where.diff() > 0).all()
    assert where.max() > 600  # from all over the set
    assert torch.equal(first.labels, split[0].labels[where])


def test_a_subset_can_be_the_whole(split):
    for num in (None, 450):
        test = load("digits", num_test=num)[1]
        assert torch.equal(test.pixels, split[1].pixels) and torch.equal(test.labels, split[1].labels)


@pytest.mark.parametrize("num", [0, -1, 451])
def test_a_subset_that_cannot_be_is_refused(num):
    with pytest.raises(ConfigurationError, match=rf"num_test, digits: got {num}, expected 1 to 450"):
        load("digits", num_test=num)


def test_an_unknown_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"'digit'.*digits, fashion-mnist, or a folder"):
        load("digit")
    with pytest.raises(ConfigurationError, match=r"unreadable='ignore'.*fail, skip"):
        load("digits", unreadable="ignore")


# Fashion-MNIST

FILES = [f"{name}-ubyte" for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")]


def _idx(values: np.ndarray) -> bytes:
    """The format of the MNIST files: two zeros, 8 for bytes, the number of axes, their big-endian lengths, the bytes."""
    return bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path) -> Path:
    """Three images to train on and two to test, not gzipped but for one file."""
    rng = np.random.default_rng(0)
    arrays = (
        rng.integers(256, size=(3, 28, 28)),
        np.array([9, 0, 4]),
        rng.integers(256, size=(2, 28, 28)),
        np.array([1, 1]),
    )
    arrays[0][0, 0, :3] = (0, 255, 51)
    for name, values in zip(FILES, arrays, strict=True):
        (tmp_path / name).write_bytes(_idx(values))
    gzipped = tmp_path / FILES[2]
    (tmp_path / f"{FILES[2]}.gz").write_bytes(gzip.compress(gzipped.read_bytes()))
    gzipped.unlink()
    return tmp_path


def test_fashion_mnist_reads_what_the_files_say(fashion):
    train, test = fashion_mnist(fashion)
    assert train.pixels.shape == (3, 1, 28, 28) and train.pixels.dtype == torch.float32
    assert train.pixels[0, 0, 0, :3].tolist() == pytest.approx([-1, 1, -0.6])
    assert train.labels.tolist() == [9, 0, 4] and train.labels.dtype == torch.int64
    assert test.pixels.shape == (2, 1, 28, 28) and test.labels.tolist() == [1, 1]
    expected = np.random.default_rng(0).integers(256, size=(3, 28, 28))[2]
    assert np.array_equal(np.asarray(train.pil(2)), expected)
    assert len(train.classes) == 10 and train.mirrors and not digits()[0].mirrors


def test_fashion_mnist_is_found_where_torchvision_puts_it(fashion, monkeypatch):
    monkeypatch.chdir(fashion)
    shutil.copytree(fashion, fashion / "data/FashionMNIST/raw", ignore=shutil.ignore_patterns("data"))
    assert torch.equal(load("fashion-mnist")[0].pixels, fashion_mnist(fashion)[0].pixels)


def test_missing_files_are_named(fashion, tmp_path):
    (fashion / FILES[1]).unlink()
    with pytest.raises(DataError, match=rf"{FILES[1]} .*expected in {fashion}.*apt-get.*torchvision") as caught:
        fashion_mnist(fashion)
    assert FILES[0] not in str(caught.value)
    with pytest.raises(DataError, match=", ".join(FILES)):
        fashion_mnist(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [FILES[0], f"{FILES[2]}.gz", FILES[3]])
@pytest.mark.parametrize("left", [0, 6, 9, -1])
def test_a_damaged_file_is_named(fashion, name, left):
    (fashion / name).write_bytes((fashion / name).read_bytes()[:left])
    with pytest.raises(DataError, match=rf"{name} is damaged.*apt-get"):
        fashion_mnist(fashion)


@pytest.mark.parametrize("labels", [[1, 2], [1, 2, 10]])
def test_labels_that_do_not_fit_are_refused(fashion, labels):
    (fashion / FILES[1]).write_bytes(_idx(np.array(labels)))
    with pytest.raises(DataError, match=rf"3 images.*{len(labels)} labels up to {labels[-1]}"):
        fashion_mnist(fashion)


DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_as_debian_has_it():
    train, test = fashion_mnist(DEBIAN)
    for images, each in ((train, 6000), (test, 1000)):
        assert images.labels.bincount().tolist() == [each] * 10
        assert images.pixels.shape == (10 * each, 1, 28, 28)
    assert test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert train.pixels.min() == -1 and train.pixels.max() == 1
