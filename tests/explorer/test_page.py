"""The page as text: it needs nothing else, says nothing unescaped, and is written whole; and every mistake has its sentence."""

import hashlib
import re
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import nn

import comrope
from comrope.errors import ComropeError, ConfigurationError, DataError, InputError
from comrope.explorer import contents, exploration, page
from comrope.explorer.exploration import explore
from comrope.lab.images.model import MODELS
from comrope.lab.vit import ViT
from tests.explorer.helpers import data_of, encoding, vit

SIZES = {"num_heads": 2, "head_dim": 8, "num_axes": 2}
HOSTILE = "</script><script>alert('$x')</script><img src=x onerror=alert(1)>\"&'"


def test_page_needs_nothing_else(tmp_path):
    text = comrope.show(encoding("comrope-ld"), tmp_path / "new" / "page.html", grid=(4, 4)).read_text(encoding="utf-8")
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"<(link|iframe|object|embed|base|img)\b", outside) and not re.search(
        r"\b(src|href)=", outside
    )
    assert "default-src 'none'" in text and "connect-src" not in text and "http" not in page._script()
    assert "@import" not in text and "url(" not in page._file("page.css")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_hostile_names_stay_text():
    model = vit()
    found = explore(model, name=HOSTILE)
    found["layers"][0]["name"] = HOSTILE
    text = page.render([found, found])
    assert text.count("<script>") == 3 and text.count("<img") == 0 and text.count("</script>") == 4
    assert data_of(text)["models"][0]["name"] == HOSTILE


def test_libraries_are_those_that_are_listed():
    folder = resources.files("comrope.explorer").joinpath("vendor")
    rows = re.findall(
        r"^\| `(\S+)` \|.*\| ([\d.]+) \|.*`(\S+\.LICENSE)` \| `(\w{64})` \|$",
        folder.joinpath("README.md").read_text("utf-8"),
        re.M,
    )
    assert [row[0] for row in rows] == [f"{name}.min.js" for name in page.LIBRARIES]
    for file, version, licence, digest in rows:
        content = folder.joinpath(file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        assert version in content[:200].decode() and b"</script" not in content.lower()
        assert "*/" not in folder.joinpath(licence).read_text("utf-8")
        assert folder.joinpath(licence).read_text("utf-8") in page.render([explore(encoding("rope"), grid=(4, 4))])


def test_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("earlier")

    def full_disk(*_):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(page.os, "replace", full_disk)
    with pytest.raises(DataError, match=r"page.html cannot be written .*no space"):
        comrope.show(encoding("rope"), path, grid=(4, 4))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("page.html", "earlier")]


def test_same_model_gives_the_same_page():
    assert page.render([explore(vit())]) == page.render([explore(vit())])


def test_looking_changes_nothing():
    model = vit().train()
    state = torch.random.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    explore(model, image=torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(module.training for module in model.modules()) and torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"model": "rope"}, "got str"),
        (lambda _: {"model": nn.Linear(2, 2)}, "Linear holds no rotary encoding"),
        (lambda _: {"model": comrope.encoding("ape", **SIZES, grid=(4, 4))}, "ape.* rotates nothing"),
        (lambda _: {"model": encoding("rope"), "grid": None}, r"Rope alone .*grid=\(14, 14\)"),
        (lambda _: {"model": encoding("rope"), "grid": (4,)}, "grid=.*expected 2 whole numbers"),
        (lambda _: {"model": encoding("rope"), "grid": (4, 0)}, "grid=.*expected 2 whole numbers"),
        (lambda _: {"model": encoding("rope"), "grid": (4, True)}, "grid=.*expected 2 whole numbers"),
        (lambda _: {"model": encoding("rope"), "grid": "44"}, "grid=.*expected 2 whole numbers"),
        (lambda _: {"model": encoding("rope"), "grid": (1, 1)}, "has 1 patches"),
        (lambda _: {"model": encoding("rope"), "grid": (10**4, 10**4)}, "has 100000000 patches"),
        (lambda _: {"model": encoding("rope", 4), "grid": (2, 2, 2, 2)}, "4 axes, and a page can show 1, 2 or 3"),
        (lambda _: {"against": encoding("rope", 1), "grid": None, "model": vit()}, "of 2 and 1 axes"),
        (lambda _: {"names": "ab"}, "names='ab': expected 1"),
        (lambda _: {"names": ("a", "b")}, "names=.*expected 1"),
        (lambda _: {"image": "x.png"}, "ComRoPELD, which has no queries and keys"),
        (lambda _: {"model": vit(), "grid": None, "image": "nowhere.png"}, "nowhere.png cannot be read as an image"),
        (lambda here: {"model": vit(), "grid": None, "image": here / "text.png"}, "text.png cannot be read as an image"),
        (lambda _: {"model": vit(), "grid": None, "image": 3}, "image: got int"),
        (lambda _: {"model": vit(), "grid": None, "image": torch.zeros(2, 3, 32, 32)}, "expected one image"),
        (lambda _: {"model": vit(), "grid": None, "image": torch.zeros(3, 32, 32, dtype=torch.int64)}, "expected one image"),
        (lambda _: {"model": vit(), "grid": (4, 5), "image": torch.zeros(3, 32, 32)}, "not the patches of a grid of 4 × 5"),
        (lambda here: {"path": here}, "is a folder: name a file"),
        (lambda here: {"path": here / "text.png" / "page.html"}, "text.png is a file"),
        (lambda _: {"path": 3}, "path: got 3"),
    ],
)  # fmt: skip
def test_mistakes(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    given = {"model": encoding("comrope-ld"), "grid": (4, 4)} | change(tmp_path)
    with pytest.raises(ComropeError, match=message):
        comrope.show(**given)
    assert [path.name for path in tmp_path.iterdir()] == ["text.png"]


def _zeros() -> torch.Tensor:
    return torch.zeros(3, 32, 32)


def test_images_that_a_page_cannot_show(monkeypatch, tmp_path):
    model = vit()
    model.blocks[0].attn.fused_attn = False
    with pytest.raises(ConfigurationError, match=r"blocks.0.attn does not call scaled_dot_product_attention"):
        explore(model, image=_zeros())
    model = vit()
    model.blocks[1].attn.register_forward_pre_hook(
        lambda _, args, given: (args, given | {"attn_mask": torch.zeros(17, 17)}), with_kwargs=True
    )
    with pytest.raises(ConfigurationError, match=r"blocks.1.attn adds a mask or a bias"):
        explore(model, image=_zeros())
    monkeypatch.setattr(contents, "MOST_BYTES", 10)
    with pytest.raises(ConfigurationError, match=r"would make a page of .* smaller image"):
        explore(vit(), image=_zeros())
    (tmp_path / "image.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigurationError, match="pip install pillow"):
        explore(vit(), image=tmp_path / "image.png")


def test_text_models_have_no_image():
    from tests.hosts import tiny_transformers

    with pytest.raises(ConfigurationError, match="1-dimensional positions: expected one of images"):
        explore(comrope.attach(tiny_transformers.build("llama"), "rope-mixed"), image=_zeros())


def test_models_that_do_not_tell_their_grid(monkeypatch):
    own = ViT("comrope-ld", (16, 16), num_classes=3, in_chans=1, **MODELS["tiny"])
    with pytest.raises(ConfigurationError, match=r"ViT does not say how many patches .*--grid 14 14"):
        explore(own)
    assert explore(own, grid=(4, 4), image=torch.zeros(1, 16, 16))["image"]["prefix"] == 1
    with pytest.raises(ConfigurationError, match="ViT does not say of what size its images are"):
        explore(own, grid=(4, 4), image="image.png")
    with pytest.raises(ConfigurationError, match="layers of 2 different grids"):
        explore(nn.ModuleList([vit(), vit(side=48)]))
    monkeypatch.setattr(exploration, "MOST_HEADS", 3)
    with pytest.raises(ConfigurationError, match="more than 3 heads"):
        explore(vit())
    with pytest.raises(InputError, match="meta device"):
        explore(encoding("comrope-ld", device="meta"), grid=(4, 4))


def test_weights_behind_norms_are_not_known():
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 2, "num_classes": 3}
    model = timm.create_model("vit_tiny_patch16_224", qk_norm=True, **sizes)
    layer = explore(comrope.attach(model, "comrope-ld"))["layers"][0]
    assert "weights" not in layer["weights"] and "normalised" in layer["why"]["weights"]


def test_path_may_be_text_and_replaces_an_earlier_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert comrope.show(encoding("rope", 1)) == Path("show.html")
    first = Path("show.html").read_text(encoding="utf-8")
    comrope.show(encoding("comrope-mt", 1), "show.html")
    assert Path("show.html").read_text(encoding="utf-8") != first
