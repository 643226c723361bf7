"""The detector: a stock ViT to start from, and batches in which no image feels another."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from comrope.encodings import ENCODINGS
from comrope.errors import ConfigurationError, DataError
from comrope.lab import runs
from comrope.lab.detection import problem
from comrope.lab.detection.config import DetectionOptions
from comrope.lab.detection.model import MODELS
from comrope.lab.detection.pyramid import Pyramid
from comrope.lab.detection.vit import DetectionViT
from comrope.lab.experiment import Recipe
from tests.helpers import EVERY, LEARNED, assert_close, draw
from tests.lab.detection.helpers import coco_folder, detector, experiment

SHAPE = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2, "img_size": 64}
VIT = {"num_classes": 0, "dynamic_img_size": True, **SHAPE}


def _vit(**more):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **VIT, **more).double().eval()


def _tokens(vit, images):
    """What timm's own model makes of patches, (B, width, rows, columns)."""
    rows, columns = images.shape[2] // 8, images.shape[3] // 8
    return vit.forward_features(images)[:, 1:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["none", "ape", *LEARNED])
def test_zero_angles_are_timms_model_at_any_size(name):
    plain = _vit()
    ours = _vit()
    ours.load_state_dict(plain.state_dict())  # strict: the same names
    trunk = DetectionViT(ours, name, {"init": "identity"}).double().eval()
    for size in ((64, 64), (40, 72)):
        images = draw(2, 3, *size, seed=1)
        assert_close(trunk(images, [size, size]), _tokens(plain, images), 1e-12)
    # Padded, each image is what timm makes of it alone.
    images[0, :, 24:], images[1, :, :, 48:] = 0, 0
    found = trunk(images, [(24, 72), (40, 48)])
    assert_close(found[:1, :, :3], _tokens(plain, images[:1, :, :24]), 1e-12)
    assert_close(found[1:, :, :, :6], _tokens(plain, images[1:, :, :, :48]), 1e-12)


def test_vanilla_rope_is_no_start_at_zero():
    ours = _vit()
    ours.load_state_dict(_vit().state_dict())
    images = draw(1, 3, 64, 64)
    found = DetectionViT(ours, "rope", {}).double()(images, [(64, 64)])
    assert (found - _tokens(_vit(), images)).abs().max() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_an_image_is_the_same_alone_and_beside_a_larger_one(scenes, name):
    model = detector(name, scenes, head="masks" if name == "comrope-ld" else "boxes", short_edges=(44,), long_edge=200)
    images = [draw(3, *size, seed=at).sigmoid() for at, size in enumerate(((44, 61), (44, 200), (77, 44)))]
    alone = [model([image])[0] for image in images]
    for together in ((0, 1, 2), (1, 0), (2, 0)):
        for at, found in zip(together, model([images[i] for i in together]), strict=True):
            assert len(found["boxes"]) > 5 and found["labels"].tolist() == alone[at]["labels"].tolist()
            for key in found.keys() - {"labels"}:
                assert_close(found[key], alone[at][key], 1e-8, key)
    # So are the maps, and what they are at padded places is nothing.
    batch, _ = model.transform(images)
    maps = model.backbone(batch.tensors, batch.image_sizes)
    for at, image in enumerate(images):
        own = model.backbone(*(lambda one: (one.tensors, one.image_sizes))(model.transform([image])[0]))
        for level, stride in zip(maps, model.backbone.pyramid.strides, strict=True):
            rows, columns = (-(-side // stride) for side in batch.image_sizes[at])
            here, expected = maps[level][at], own[level][0, :, :rows, :columns]
            assert_close(here[:, :rows, :columns], expected, 1e-10, level)
            assert not here[:, rows:].any() and not here[:, :, columns:].any()


def test_padding_is_neither_proposed_nor_learned_from(scenes):
    model = detector("none", scenes)
    batch = model.transform([draw(3, *size) for size in ((40, 200), (96, 96))])[0]
    sizes = batch.image_sizes
    assert sizes == [(25, 128), (96, 96)]
    maps = list(model.backbone(batch.tensors, sizes).values())
    anchors = model.rpn.anchor_generator(batch, maps)
    everywhere = {tuple(a.shape) for a in anchors}
    assert len(everywhere) == 1  # as torchvision has them: the same number for each
    for own, size in zip(anchors, sizes, strict=True):
        there = sum(-(-size[0] // s) * -(-size[1] // s) * 3 for s in model.backbone.pyramid.strides)
        assert int((own[:, 2] > own[:, 0]).sum()) == there < len(own)
    for boxes in (torch.tensor([[0.0, 0.0, 30.0, 30.0]]), torch.zeros(0, 4)):
        labels, _ = model.rpn.assign_targets_to_anchors([a.float() for a in anchors], [{"boxes": boxes}] * 2)
        assert all((own[a[:, 2] == a[:, 0]] == -1).all() for own, a in zip(labels, anchors, strict=True))
        assert all((own[a[:, 2] > a[:, 0]] != -1).any() for own, a in zip(labels, anchors, strict=True))


def test_what_stands_at_padded_places_is_nothing_to_the_pyramid():
    pyramid = Pyramid(16, 8, 8).double()
    sizes = [(20, 36), (48, 24)]  # 3 × 5 and 6 × 3 patches
    clean = draw(2, 16, 6, 6)
    clean[0, :, 3:], clean[0, :, :, 5:], clean[1, :, :, 3:] = 0, 0, 0
    junk = torch.where(clean == 0, 1e3, clean)
    for level, expected in pyramid(clean, sizes).items():
        assert torch.equal(pyramid(junk, sizes)[level], expected)


def test_all_encodings_start_from_the_same_weights(scenes):
    states = {}
    for name in ENCODINGS:
        about = experiment(scenes, name)
        state = problem.build(about, problem.datasets(about)[0]).state_dict()
        states[name] = {key: value for key, value in state.items() if ".encoding." not in key}
    first = states.pop("none")
    assert all(state.keys() == first.keys() for state in states.values())
    assert all(torch.equal(state[key], first[key]) for state in states.values() for key in first)


def test_weights_to_start_from(tmp_path, scenes):
    images = problem.datasets(experiment(scenes))[0]

    def patches(start, **changes):
        model = problem.build(experiment(scenes, start=start, **changes), images, tmp_path)
        return model.backbone.trunk.vit

    # A file of timm's, for images of another size; a classifier of grey digits; another detector.
    shape = MODELS["tiny"]["vit"] | {"img_size": 96, "num_classes": 10}
    vit = timm.create_model("vit_tiny_patch16_224", **shape)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    found = patches(str(tmp_path / "vit.safetensors"))
    assert torch.equal(found.blocks[1].mlp.fc2.weight, vit.blocks[1].mlp.fc2.weight)
    assert found.pos_embed.shape == (1, 17, 32) and torch.equal(found.pos_embed[:, 0], vit.pos_embed[:, 0])
    grey = timm.create_model("vit_tiny_patch16_224", **shape, in_chans=1, dynamic_img_size=True)
    save_file(grey.state_dict(), tmp_path / "grey.safetensors")
    found = patches(str(tmp_path / "grey.safetensors"))
    image = draw(1, 1, 32, 32, dtype=torch.float32)
    assert_close(found.patch_embed(image.expand(1, 3, 32, 32)), grey.patch_embed(image), 1e-5)
    about = experiment(scenes, recipe=Recipe(epochs=1, batch_size=12))
    runs.run(about, [], tmp_path / "earlier")
    trained = runs.load_run(tmp_path / "earlier").backbone.trunk.vit
    assert torch.equal(patches("earlier").blocks[0].attn.qkv.weight, trained.blocks[0].attn.qkv.weight)
    with pytest.raises(DataError, match=r"nowhere.*train that run first"):
        patches("nowhere")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"no weights of this backbone for .*patch_embed|pos_embed|cls_token"):
        patches(str(tmp_path / "other.safetensors"))


def test_settings_that_do_not_fit_are_named(tmp_path, scenes):
    images = problem.datasets(experiment(scenes))[0]
    for changes, message in (
        ({"model": "large"}, "model='large': expected one of tiny"),
        ({"model": "timm:resnet18"}, "no VisionTransformer of timm"),
        ({"head": "points"}, "head='points': expected one of boxes, masks"),
        ({"block_size": 7}, "block_size=7"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            problem.build(experiment(scenes, **changes), images)
    with pytest.raises(ConfigurationError, match="unreadable='maybe'"):
        problem.datasets(experiment(scenes), "maybe")
    root = coco_folder(tmp_path / "coco")
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text().replace('"dog"', '"cat"'))
    with pytest.raises(DataError, match="categories of train and val differ"):
        problem.datasets(experiment(root))
    square = DetectionOptions(resolutions=("64",))
    assert problem.conditions(experiment(scenes), square)[0].long == 85
