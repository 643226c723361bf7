"""Data sets of videos, and the batches that are cut from them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from comrope.errors import ConfigurationError, DataError
from comrope.lab.data.batches import as_is
from comrope.lab.video import frames
from comrope.lab.video.clips import video_folder
from comrope.lab.video.loading import EvalClips, TrainClips
from comrope.lab.video.motion import CLASSES, motion
from tests.lab.video.helpers import numbered, numbers, ucf101

KEYS = [(epoch, index, copy) for epoch in (0, 1) for index in (3, 0, 5) for copy in (0, 1)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return motion(tmp_path_factory.mktemp("motion"), 8, 4)[0]


def _training(clips, num_frames=4, size=(24, 16), **settings):
    return TrainClips(clips, num_frames, size, **({"seed": 7} | settings))


@pytest.mark.parametrize(("lists", "videos"), [("ucfTrainTestlist", "UCF-101"), (".", ".")])
def test_ucf101_as_it_is_unpacked(tmp_path, lists, videos):
    train, test = video_folder(ucf101(tmp_path, lists, videos))
    assert train.classes == test.classes == ("Archery", "Biking") and train.mirrors
    assert train.labels.tolist() == [0] * 4 + [1] * 4 and test.labels.tolist() == [0, 0, 1, 1]
    assert train.name(0).endswith("Archery/v_Archery_g00_c01.avi")
    clip = train.frames(0, [0.0, 0.5, 0.95])
    assert clip is not None and numbers(clip) == [0, 5, 9]


def test_what_is_wrong_with_ucf101_is_said(tmp_path):
    root = ucf101(tmp_path)
    with pytest.raises(DataError, match=r"trainlist02\.txt cannot be read.*crcv\.ucf\.edu"):
        video_folder(root, split=2)
    gone = root / "UCF-101" / "Biking" / "v_Biking_g03_c01.avi"
    gone.unlink()
    with pytest.raises(DataError, match=r"1 of 12 videos of UCF-101 are missing \(the first: .*v_Biking_g03_c01\.avi"):
        video_folder(root)
    for line in ("Biking/v_Biking_g00_c01.avi 1", "Swimming/v.avi 1"):
        (root / "ucfTrainTestlist" / "trainlist01.txt").write_text(f"{line}\n")
        with pytest.raises(DataError, match="does not fit the classes"):
            video_folder(root)


def test_folders_by_class(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for name in ("down", "up"):
            for i in range(count):
                numbered(tmp_path / part / name / f"{i}.mp4", 4)
    train, val = video_folder(tmp_path)
    assert (len(train), len(val), train.classes, train.mirrors) == (6, 4, ("down", "up"), False)
    numbered(tmp_path / "val" / "left" / "0.mp4", 4)
    with pytest.raises(DataError, match=r"1 classes are in one of train and val only \(left"):
        video_folder(tmp_path)
    with pytest.raises(DataError, match="no folder of files by class"):
        video_folder(tmp_path / "val")


def test_a_batch_of_clips(clips):
    batch = _training(clips).__getitems__(KEYS)
    assert batch.pixels.shape == (len(KEYS), 3, 4, 24, 16) and batch.pixels.dtype == torch.float32
    assert batch.pixels.abs().max() <= 1
    assert batch.labels.tolist() == [clips.labels[index] for _, index, _ in KEYS]
    assert EvalClips(clips, 6, (8, 40)).__getitems__([2]).pixels.shape == (1, 3, 6, 8, 40)


def test_the_key_decides_alone(clips):
    whole = _training(clips).__getitems__(KEYS).pixels
    torch.manual_seed(99)
    for at in (11, 0, 6):
        assert torch.equal(_training(clips).__getitems__([KEYS[at]]).pixels[0], whole[at])
    assert len(_training(clips).__getitems__([(e, 0, c) for e in range(3) for c in range(3)]).pixels.unique(dim=0)) > 5
    assert not torch.equal(_training(clips, seed=8).__getitems__(KEYS).pixels, whole)


def test_workers_change_nothing(clips):
    training = pickle.loads(pickle.dumps(_training(clips)))
    batches = [KEYS[:5], KEYS[5:]]
    for workers in (1, 2):
        loader = DataLoader(training, batch_sampler=batches, collate_fn=as_is, num_workers=workers)  # type: ignore
        for keys, batch in zip(batches, loader, strict=True):
            expected = training.__getitems__(keys)
            assert torch.equal(batch.pixels, expected.pixels) and torch.equal(batch.labels, expected.labels)


def test_training_frames_are_jittered_within_their_parts(tmp_path):
    numbered(tmp_path / "train" / "a" / "0.mp4", 24)
    numbered(tmp_path / "val" / "a" / "0.mp4", 24)
    train, val = video_folder(tmp_path)
    feed = _training(train, 4, (32, 48))
    seen = [numbers((feed.__getitems__([(e, 0, 0)]).pixels[0].transpose(0, 1) + 1) * 127.5) for e in range(40)]
    for part, found in enumerate(zip(*seen, strict=True)):
        assert set(found) == set(range(6 * part, 6 * part + 6))
    middle = EvalClips(val, 4, (32, 48)).__getitems__([0]).pixels[0].transpose(0, 1)
    assert numbers((middle + 1) * 127.5) == [3, 9, 15, 21]


def test_all_frames_of_a_clip_are_cut_alike(tmp_path):
    """Of a video that stands still, whatever crop and mirror image is drawn; both mirrored and plain ones come."""
    still = np.zeros((40, 60, 3), dtype=np.uint8)
    still[:, :30], still[:20, :, 1] = 200, 120
    for part in ("train", "val"):
        path = tmp_path / part / "a" / "0.mp4"
        path.parent.mkdir(parents=True)
        frames.write(path, [still] * 8, rate=8, codec="mpeg4", g="1", qmin="2", qmax="2")
    train, _ = video_folder(tmp_path)
    pixels = _training(train, 4, (32, 32), flip=True).__getitems__([(e, 0, 0) for e in range(12)]).pixels
    assert torch.equal(pixels, pixels[:, :, :1].expand_as(pixels))
    brighter_left = pixels[:, 0, 0, :, :8].mean((1, 2)) > pixels[:, 0, 0, :, -8:].mean((1, 2))
    assert 0 < brighter_left.sum() < 12
    assert len(pixels.unique(dim=0)) > 6
    plain = _training(train, 4, (32, 32)).__getitems__([(e, 0, 0) for e in range(12)]).pixels
    assert (plain[:, 0, 0, :, :8].mean((1, 2)) > plain[:, 0, 0, :, -8:].mean((1, 2))).all()


@pytest.mark.parametrize("unreadable", ["fail", "skip"])
def test_damaged_files_are_named(tmp_path, unreadable):
    train, _ = motion(tmp_path, 8, 4, unreadable)
    whole = _training(train).__getitems__([(0, i, 0) for i in range(8)])
    name = train.name(3)
    with open(name, "wb") as file:
        file.write(b"damaged")
    feed = _training(train)
    if unreadable == "fail":
        with pytest.raises(DataError, match=r"000003\.mp4 cannot be read"):
            feed.__getitems__([(0, 3, 0)])
        return
    found = feed.__getitems__([(0, i, 0) for i in range(8)])
    kept = [0, 1, 2, 4, 5, 6, 7]
    assert found.skipped == (name,) and torch.equal(found.pixels, whole.pixels[kept])
    assert found.labels.tolist() == [i % len(CLASSES) for i in kept]
    nothing = EvalClips(train, 4, (8, 8)).__getitems__([3])
    assert nothing.pixels.shape == (0, 3, 4, 8, 8) and nothing.skipped == (name,)


def test_settings_that_cannot_be_are_refused(clips):
    with pytest.raises(ConfigurationError, match=r"resize_ratio=0\.9"):
        _training(clips, resize_ratio=0.9)
    with pytest.raises(ConfigurationError, match="num_frames=0"):
        _training(clips, num_frames=0)
    with pytest.raises(ConfigurationError, match="unreadable='guess'"):
        video_folder(Path(clips.name(0)).parents[2], unreadable="guess")
