"""The embedded clips: a model without positions cannot tell their classes apart, one with positions can."""

from pathlib import Path

import pytest
import torch

from comrope.errors import ConfigurationError, DataError
from comrope.lab import runs
from comrope.lab.experiment import Recipe
from comrope.lab.video import frames
from comrope.lab.video.loading import EvalClips
from comrope.lab.video.model import MODELS, VideoViT
from comrope.lab.video.motion import CLASSES, images, motion
from comrope.lab.video.problem import Condition
from tests.lab.video.helpers import quick

PAIRS = [("right", "left"), ("clockwise", "anticlockwise")]
MIDDLES = [(i + 0.5) / 8 for i in range(8)]


@pytest.fixture(scope="module")
def variants(tmp_path_factory) -> dict[str, Path]:
    """The same scene, once in each class, in files."""
    folder = tmp_path_factory.mktemp("variants")
    for name in CLASSES:
        video = list(images("train", 5, name))
        frames.write(folder / f"{name}.mp4", video, rate=24, codec="mpeg4", g="1", qmin="4", qmax="4")
    return {name: folder / f"{name}.mp4" for name in CLASSES}


def _model(encoding: str) -> VideoViT:
    """In float64, with weights large enough for attention to matter."""
    torch.manual_seed(0)
    model = VideoViT(encoding, 8, (48, 48), num_classes=4, **MODELS["tiny"]).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def _clip(path: Path) -> torch.Tensor:
    return (frames.read(path, MIDDLES).transpose(0, 1).double() / 127.5 - 1)[None]


@pytest.mark.parametrize(("forward", "backward"), PAIRS)
def test_opposite_classes_are_the_same_film_backward(variants, forward, backward):
    """Bit by bit, out of the files: no frame shows when it is shown."""
    clips = [frames.read(variants[name], MIDDLES) for name in (forward, backward)]
    assert torch.equal(clips[0].flip(0), clips[1])
    assert not torch.equal(clips[0], clips[1])


def test_all_classes_of_a_scene_are_the_same_patches(variants):
    bags = []
    for path in variants.values():
        patches = frames.read(path, MIDDLES).unfold(2, 8, 8).unfold(3, 8, 8)  # (frames, 3, rows, columns, 8, 8)
        bags.append(sorted(map(bytes, patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).numpy())))
    assert all(bag == bags[0] for bag in bags)
    assert len(set(bags[0])) > 100


@pytest.mark.parametrize(("encoding", "tells"), [("none", False), ("ape", True), ("rope", True), ("comrope-ld", True)])
def test_without_positions_all_classes_give_the_same_logits(variants, encoding, tells):
    model = _model(encoding)
    logits = torch.cat([model(_clip(path)) for path in variants.values()])
    differences = (logits - logits[0]).abs().max(-1).values[1:]
    assert (differences > 1e-3).all() if tells else (differences < 1e-10).all()


@pytest.mark.parametrize(("encoding", "tells"), [("none", False), ("ape", True), ("comrope-ap", True)])
def test_without_positions_patches_may_change_places(variants, encoding, tells):
    model, clip = _model(encoding), _clip(variants["right"])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    rolled = clip.roll((16, 24), (-2, -1))
    logits = model(clip)
    for other in (clip[:, :, order], clip.flip(2), rolled):
        assert ((model(other) - logits).abs().max() > 1e-3) == tells


@pytest.mark.slow
def test_trained_briefly_positions_beat_chance_and_their_absence_does_not(tmp_path):
    settings = {"num_train": 256, "num_test": 200, "model": "small", "num_frames": 2}
    recipe = Recipe(epochs=12, batch_size=16, learning_rate=2e-3)
    found = {}
    for encoding in ("none", "comrope-ld"):
        experiment = quick(tmp_path / "motion", encoding=encoding, recipe=recipe, **settings)
        result = runs.run(experiment, [Condition((32, 32), num_frames=2)], tmp_path / encoding)
        found[encoding] = result["evaluation"][0]["correct"] / 200
    # Of 200 answers at random, 25 % right, more than 35 % are right once in a thousand times.
    assert found["none"] < 0.35 < 0.4 < found["comrope-ld"], found


def test_files_are_written_once_and_the_content_is_independent_of_the_class(tmp_path):
    train, test = motion(tmp_path, 9, 5)
    assert train.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0] and test.classes == CLASSES and not train.mirrors
    names = [train.name(i) for i in range(9)]
    assert all(Path(n).is_file() for n in names) and len({Path(n).read_bytes() for n in names}) == 9
    before = {n: Path(n).stat().st_mtime_ns for n in names}
    longer, _ = motion(tmp_path, 12, 5)
    assert [longer.name(i) for i in range(9)] == names
    assert {n: Path(n).stat().st_mtime_ns for n in names} == before
    assert not list(tmp_path.rglob(".*")), "drafts are left"
    pixels = EvalClips(train, 8, (48, 48)).__getitems__([0]).pixels
    assert pixels.shape == (1, 3, 8, 48, 48) and pixels.std() > 0.05


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def broken(path, *arguments, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(frames, "write", broken)
    with pytest.raises(DataError, match=r"000000\.mp4 cannot be written \(disk full\)"):
        motion(tmp_path, 4, 4)
    assert not list(tmp_path.rglob("*.mp4"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        motion(tmp_path / "file", 4, 4)


def test_no_clips_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="num_train=0"):
        motion(tmp_path, 0, 4)
