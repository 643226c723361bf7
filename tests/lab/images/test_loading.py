"""Batches: what an image's key decides, what augmentation does, and that workers change nothing."""

import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from comrope.errors import ConfigurationError, DataError
from comrope.lab.data.batches import Batch, as_is
from comrope.lab.images import loading
from comrope.lab.images.folder import image_folder
from comrope.lab.images.in_memory import Images, ImageSet, digits
from comrope.lab.images.loading import EvalImages, TrainImages

SIZE = (12, 20)
KEYS = [(epoch, index, copy) for epoch in (0, 1) for index in (3, 0, 17, 5) for copy in (0, 1, 2)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Twenty colourful images in two classes, of several shapes."""
    root = tmp_path_factory.mktemp("files")
    for i in range(20):
        noise = np.random.default_rng(i).integers(256, size=(5 + i % 3, 6, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((30 + i, 40 - i), Image.Resampling.BICUBIC)
        for part in ("train", "val"):
            folder = root / part / f"class {i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{i}.png")
    return root


@pytest.fixture(params=["memory", "folder"])
def images(request, files) -> ImageSet:
    return digits()[0].take(range(20)) if request.param == "memory" else image_folder(files)[0]


def _training(images: ImageSet, augment: str = "basic", seed: int = 7, **settings) -> TrainImages:
    return TrainImages(images, SIZE, augment=augment, seed=seed, **({"flip": True} | settings))


def _same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels) and one[2:] == other[2:]


both = pytest.mark.parametrize("augment", ["basic", "deit"])


@both
def test_a_batch_is_pixels_and_labels(images, augment):
    batch = _training(images, augment).__getitems__(KEYS)
    assert batch.pixels.shape == (len(KEYS), images.channels, *SIZE) and batch.pixels.dtype == torch.float32
    assert batch.labels.tolist() == [images.labels[index] for _, index, _ in KEYS] and batch.labels.dtype == torch.int64
    assert batch.skipped == ()
    if augment == "basic":
        assert batch.pixels.abs().max() <= 1 + 1e-5


@both
def test_the_key_decides_alone(images, augment):
    """Not the batch, nor what came before, nor the global generators."""
    whole = _training(images, augment).__getitems__(KEYS).pixels
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    other = _training(images, augment)
    for at in (11, 23, 0, 22, 5):
        assert torch.equal(other.__getitems__([KEYS[at]]).pixels[0], whole[at]), KEYS[at]


@both
@pytest.mark.parametrize("part", ["epoch", "index", "copy", "seed"])
def test_each_part_of_the_key_matters(images, augment, part):
    same = images.take([4] * 20)  # the index alone is to tell images apart
    keys = [(i if part == "epoch" else 0, i if part == "index" else 0, i if part == "copy" else 0) for i in range(12)]
    seeds = range(12) if part == "seed" else [0] * 12
    found = [_training(same, augment, seed).__getitems__([key]).pixels for key, seed in zip(keys, seeds, strict=True)]
    assert len(torch.cat(found).flatten(1).unique(dim=0)) > 5


@both
def test_workers_change_nothing(images, augment):
    batches = [KEYS[i : i + 5] for i in range(0, len(KEYS), 5)]
    training = _training(images, augment)
    loader = DataLoader(training, batch_sampler=batches, collate_fn=as_is, num_workers=2)
    for keys, batch in zip(batches, loader, strict=True):
        assert isinstance(batch, Batch) and _same(batch, training.__getitems__(keys))


@both
def test_feeds_survive_pickling(images, augment):
    """As workers that are spawned need it."""
    training, testing = _training(images, augment), EvalImages(images, SIZE)
    assert _same(pickle.loads(pickle.dumps(training)).__getitems__(KEYS), training.__getitems__(KEYS))
    assert _same(pickle.loads(pickle.dumps(testing)).__getitems__([3, 1]), testing.__getitems__([3, 1]))
    assert pickle.loads(pickle.dumps(as_is)) is as_is


@both
def test_global_generators_are_left_as_they_were(images, augment):
    draw: Callable = lambda: (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: E731
    expected, found = [], []
    for draws, between in ((expected, []), (found, KEYS)):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        draws.append(draw())
        _training(images, augment).__getitems__(between or KEYS[:1])
        draws.append(draw())
    assert expected == found


def _windows(image: torch.Tensor) -> dict[tuple[int, int], torch.Tensor]:
    height, width = image.shape[-2] - SIZE[0] + 1, image.shape[-1] - SIZE[1] + 1
    return {(r, c): image[:, r : r + SIZE[0], c : c + SIZE[1]] for r in range(height) for c in range(width)}


@pytest.mark.slow
@pytest.mark.parametrize("flip", [True, False])
def test_basic_takes_windows_of_the_enlarged_image(images, flip):
    """Every window comes, mirrored half of the time if at all."""
    index, resize_ratio = 5, 1.2  # (14, 24), in the proportions of the image
    if isinstance(images, Images):
        enlarged = images.covering((14, 24))[index]
    else:
        image: Image.Image = images.pil(index)  # pyright: ignore
        scale = max(14 / image.height, 24 / image.width)
        shape = (max(24, round(image.width * scale)), max(14, round(image.height * scale)))
        pixels = np.array(image.resize(shape, Image.Resampling.BILINEAR))
        enlarged = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    windows = _windows(enlarged)
    training = _training(images, resize_ratio=resize_ratio, flip=flip)
    found = training.__getitems__([(epoch, index, 0) for epoch in range(1000)]).pixels
    seen, mirrored = set(), 0
    for crop in found:
        matches = [
            (place, sign) for place, w in windows.items() for sign in (0, 1) if (w.flip(-1) if sign else w).equal(crop)
        ]
        assert len(matches) == 1
        seen.add(matches[0][0])
        mirrored += matches[0][1]
    assert seen == set(windows)
    assert 400 < mirrored < 600 if flip else mirrored == 0


def test_without_enlargement_the_image_stays_whole():
    images = digits()[0].take(range(20))
    training = TrainImages(images, (12, 12), resize_ratio=1, flip=False, seed=0)
    assert torch.equal(training.__getitems__([(0, i, 0) for i in range(20)]).pixels, images.fitted((12, 12)))


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (32, 8)])
def test_images_in_memory_are_framed_as_files_are(tmp_path, size):
    """The same pictures, once as tensors and once as PNG files, are the same batches but for rounding to 8 bits."""
    memory = digits()[1].take(range(12))
    for part in ("train", "val"):
        for index in range(12):
            folder = tmp_path / part / f"{index:02}"
            folder.mkdir(parents=True)
            memory.pil(index).save(folder / "image.png")
    files, _ = image_folder(tmp_path)
    keys = [(epoch, index, 0) for epoch in range(3) for index in range(12)]
    settings = {"resize_ratio": 1.3, "flip": True, "seed": 5}
    pairs = [[TrainImages(images, size, **settings).__getitems__(keys) for images in (memory, files)]]
    pairs += [[EvalImages(images, size).__getitems__(list(range(12))) for images in (memory, files)]]
    for ours, theirs in pairs:
        difference = (ours.pixels - theirs.pixels).abs()
        assert difference.mean() < 0.01 and difference.max() < 0.2


def test_deit_erases_a_quarter_and_keeps_grey_in_range(images):
    found = _training(images, "deit").__getitems__([(epoch, i, 0) for epoch in range(20) for i in range(20)]).pixels
    erased = (found.abs() > 1 + 1e-6).flatten(1).any(1).sum().item()  # standard normal noise leaves [−1, 1]
    assert 60 < erased < 140


def test_deit_posterizes_at_every_magnitude():
    """At the highest, to black."""
    (augment,) = (part for part in loading._deit((8, 8), False).transforms if hasattr(part, "ops"))
    (operation,) = (op for op in augment.ops if op.name == "PosterizeIncreasing")
    operation.prob, operation.magnitude_std = 1.0, 0
    colours = []
    for operation.magnitude in range(11):
        colours.append(np.asarray(operation(Image.new("RGB", (2, 2), (255, 255, 255)))).max())
    assert colours == sorted(colours, reverse=True) and colours[-1] == 0


def test_testing_resizes_images_in_memory():
    images = digits()[1]
    batch = EvalImages(images, SIZE).__getitems__([7, 3, 3])
    assert torch.allclose(batch.pixels, images.fitted(SIZE)[[7, 3, 3]], atol=1e-6)
    assert torch.equal(batch.labels, images.labels[[7, 3, 3]])


@pytest.mark.parametrize("size", [(10, 10), (30, 30), (10, 20), (64, 4)])
def test_testing_cuts_the_middle_out_of_files(tmp_path, size):
    """Of a row of three squares the middle one, or of one on top of another their meeting."""
    row = np.zeros((30, 90, 3), np.uint8)
    for i in range(3):
        row[:, 30 * i : 30 * i + 30, i] = 255
    for part in ("train", "val"):
        for name in ("lying", "standing"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(row if name == "lying" else row.swapaxes(0, 1)).save(tmp_path / part / name / "x.png")
    pixels = EvalImages(image_folder(tmp_path)[1], size).__getitems__([0, 1]).pixels
    assert pixels.shape == (2, 3, *size)
    middle = pixels[:, :, size[0] // 2 - 1 : size[0] // 2 + 1, size[1] // 2 - 1 : size[1] // 2 + 1]
    assert torch.equal(middle, torch.tensor([-1.0, 1.0, -1.0])[None, :, None, None].expand(2, 3, 2, 2))
    assert torch.allclose(pixels, pixels.flip(-1)[:, [2, 1, 0]], atol=1e-6) if size == (10, 20) else True
    if size[0] == size[1]:
        assert (pixels[:, 1] > 0.4).all() and (pixels[:, 1] == 1).float().mean() > 0.6


@pytest.fixture
def damaged(files, tmp_path) -> Path:
    """Image 3 is cut short."""
    for part in ("train", "val"):
        for path in files.glob(f"{part}/*/*"):
            copy = tmp_path / path.relative_to(files)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    path = Path(image_folder(tmp_path)[0].name(3))
    path.write_bytes(path.read_bytes()[:60])
    return tmp_path


@both
def test_unreadable_images_are_left_out_and_named(files, damaged, augment, caplog):
    images = image_folder(damaged, unreadable="skip")[0]
    name = images.name(3)
    found, whole = (_training(i, augment).__getitems__(KEYS) for i in (images, image_folder(files)[0]))
    readable = [at for at, (_, index, _) in enumerate(KEYS) if index != 3]
    assert found.skipped == (name,) * (len(KEYS) - len(readable))
    assert torch.equal(found.pixels, whole.pixels[readable]) and torch.equal(found.labels, whole.labels[readable])
    tested = EvalImages(images, SIZE).__getitems__([2, 3, 4])
    assert tested.skipped == (name,) and tested.pixels.shape == (2, 3, *SIZE)
    nothing = EvalImages(images, SIZE).__getitems__([3])
    assert nothing.pixels.shape == (0, 3, *SIZE) and nothing.labels.shape == (0,) and nothing.skipped == (name,)
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert all(f"skipped {name}, which cannot be read" in record.message for record in caplog.records)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_fail_by_name(damaged, workers):
    images = image_folder(damaged)[0]
    loader = DataLoader(_training(images), batch_sampler=[[(0, 3, 0)]], collate_fn=as_is, num_workers=workers)
    with pytest.raises(DataError, match="cannot be read") as caught:
        next(iter(loader))
    assert images.name(3) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "mixup"}, "augment='mixup': expected one of basic, deit"),
        ({"resize_ratio": 0.9}, "resize_ratio=0.9: expected 1 or more"),
        ({"resize_ratio": float("nan")}, "resize_ratio=nan: expected 1 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(images, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        _training(images, **settings)
    with pytest.raises(ConfigurationError, match=r"size=\(0, 4\)"):
        EvalImages(images, (0, 4))


def test_deit_refuses_other_channels():
    images = Images(torch.zeros(2, 2, 8, 8), torch.zeros(2, dtype=torch.int64), ("x",))
    with pytest.raises(ConfigurationError, match="grey or RGB images: got 2 channels"):
        _training(images, "deit")
