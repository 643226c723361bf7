"""`comrope.register`: encodings of other packages are known by name everywhere, and mistakes are told at once."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import comrope
from comrope.encodings import (
    DenseEncoding,
    FixedFrequencies,
    MappedEncoding,
    RopeMixed,
    SpectralEncoding,
    TokenEncoding,
    registry,
)
from comrope.encodings.base import FoldedRope
from comrope.errors import ConfigurationError, InputError, NoSpectrumError
from comrope.lab.styles import label, style
from comrope.testing import laws
from tests.helpers import assert_close, draw
from tests.hosts import tiny_transformers

PACKAGE = Path(__file__).parents[1] / "examples/little_rope"


@pytest.fixture
def no_more_names(monkeypatch):
    """Forgets afterwards what a test registers."""
    comrope.encodings.known_encodings()
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))


@pytest.fixture
def compass(no_more_names):
    """The encoding of the example package, registered."""
    spec = importlib.util.spec_from_file_location("little_rope", PACKAGE / "little_rope.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CompassRope


# One little encoding of each kind that is not spectral.


class Sheared(MappedEncoding):
    """RoPE after a learned shear of the queries and its inverse transpose of the keys."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.shear = torch.nn.Parameter(torch.zeros(self.num_heads, self.num_blocks, **self.factory_kwargs))

    def folded(self) -> FoldedRope:
        maps = (
            torch.eye(self.block_size, dtype=torch.float64, device=self.device)
            .expand(self.num_heads, self.num_blocks, -1, -1)
            .clone()
        )
        inverse = maps.clone()
        maps[..., 0, 1] = self.shear.double()
        inverse[..., 1, 0] = -self.shear.double()
        frequencies = torch.arange(1.0, 1 + self.head_dim // 2, device=self.device).view(1, 1, self.num_blocks, -1)
        return FoldedRope(maps, inverse, frequencies.expand(self.num_axes, self.num_heads, -1, -1))


class Euler(DenseEncoding):
    """Blocks of four: the first axis rotates coordinates 0 and 1, then the second one coordinates 1 and 2."""

    def __init__(self, block_size: int = 4, **sizes):
        super().__init__(block_size=block_size, **sizes)
        self.speeds = torch.nn.Parameter(torch.ones(self.num_heads, self.num_blocks, **self.factory_kwargs))

    def matrices(self, positions: Tensor) -> Tensor:
        generators = torch.zeros(2, 4, 4, dtype=torch.float64, device=positions.device)
        generators[0, 1, 0] = generators[1, 2, 1] = 1
        angles = positions[..., None, None, :] * self.speeds.double().unsqueeze(-1)  # (..., H, m, 2)
        first, second = (angles[..., i, None, None] * (g - g.mT) for i, g in enumerate(generators))
        return torch.linalg.matrix_exp(first) @ torch.linalg.matrix_exp(second)


class Content(TokenEncoding):
    """Plain RoPE at positions that are a learned function of each token."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.reads = torch.nn.Parameter(torch.ones(self.width, **self.factory_kwargs) / self.width)

    def rotation(self, positions, key_positions=None, *, dtype=torch.float32, tokens=None):
        tokens = self.check_tokens(tokens, positions)
        plain = FixedFrequencies(self.num_heads, self.head_dim, 1, device=tokens.device)
        plain.frequencies.fill_(1.0)
        at = (tokens.double() * self.reads.double()).sum(-1, keepdim=True)  # (B, L, 1)
        return plain.rotation(at, dtype=dtype)


KINDS = {"sheared": (Sheared, 2), "euler": (Euler, 2), "content": (Content, 2)}


@pytest.fixture
def kinds(no_more_names):
    for name, (kind, _) in KINDS.items():
        comrope.register(name, label=name.title())(kind)


@pytest.mark.parametrize("block_size", [2, 4, 8])
def test_the_laws_hold_for_a_registered_spectrum(compass, block_size):
    for law in laws.of("compass-rope", block_size=block_size):
        law()


@pytest.mark.parametrize("name", KINDS)
def test_the_laws_of_each_kind_hold(name, kinds):
    found = laws.of(name, num_axes=KINDS[name][1])
    for law in found:
        law()
    assert ("the rope equation holds" in map(str, found)) == (name == "sheared")


def test_a_law_that_does_not_hold_says_which_and_by_how_much(no_more_names):
    @comrope.register("half-cast", about="Wrong: its phases depend on the place in the sequence, and not on positions.")
    class Wrong(RopeMixed):
        def positions_used(self, *positions):
            return tuple(p + torch.arange(p.shape[-2], device=p.device).unsqueeze(-1) ** 2 for p in positions)

    failed = {}
    for law in laws.of("half-cast"):
        try:
            law()
        except AssertionError as error:
            failed[str(law)] = str(error)
    assert set(failed) == {
        "plain rope with maps gives the scores",
        "frozen angles give the scores",
        "scores are those of the angle matrices",
    }
    assert "differ by" in failed["scores are those of the angle matrices"]


def test_a_registered_encoding_is_attached_checked_saved_and_folded(compass, tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32).eval()
    images = draw(2, 3, 32, 32, dtype=torch.float32)
    comrope.attach(model, "compass-rope", base=10.0)
    assert type(model.blocks[1].attn.encoding) is compass and comrope.check(model).holds
    expected = model(images)
    expected.sum().backward()
    assert all(block.attn.encoding.angles.grad.any() for block in model.blocks)
    comrope.save(model, tmp_path / "saved")
    assert torch.equal(comrope.load(tmp_path / "saved").eval()(images), expected)
    assert_close(comrope.fold(model)(images), expected, 1e-5)


def test_maps_of_queries_and_of_keys_are_folded_each_into_its_own(kinds):
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32).eval().double()
    images = draw(2, 3, 32, 32)
    comrope.attach(model, "sheared")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.encoding.shear.normal_(generator=torch.Generator().manual_seed(3))
    expected = model(images)
    frozen = comrope.freeze(__import__("copy").deepcopy(model))
    assert_close(frozen(images), expected, 1e-12)
    assert_close(comrope.fold(model)(images), expected, 1e-12)
    assert type(model.blocks[0].attn.encoding) is FixedFrequencies


def test_an_encoding_that_sees_tokens_gets_those_of_the_layer(kinds):
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32).eval()
    images = draw(2, 3, 32, 32, dtype=torch.float32)
    comrope.attach(model, "content")
    encoding = model.blocks[0].attn.encoding
    assert encoding.width == 192
    tokens = []
    model.blocks[0].attn.register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    q, k = draw(2, 2, 3, 5, 64, dtype=torch.float32)
    model(images)
    expected = encoding(q, k, torch.zeros(5, 2), tokens=tokens[0][:1])[0]
    changed = encoding(q, k, torch.zeros(5, 2), tokens=tokens[0][1:])[0]
    assert not torch.allclose(expected, changed)
    with pytest.raises(NoSpectrumError, match="Content"):
        comrope.fold(model)
    with pytest.raises(ConfigurationError, match="no kernel to show"):
        comrope.show(model)
    assert not comrope.check(model).holds and "depends on the tokens" in repr(comrope.check(model))


def test_a_key_cache_is_refused_where_tokens_decide(kinds):
    model = comrope.attach(tiny_transformers.build("llama"), "content")
    ids = torch.arange(6).unsqueeze(0)
    whole = model(ids, use_cache=False).logits
    first = model(ids[:, :4], use_cache=True)
    assert torch.allclose(first.logits, whole[:, :4], atol=1e-5)
    with pytest.raises(InputError, match="use_cache=False"):
        model(ids[:, 4:], past_key_values=first.past_key_values)


def test_names_and_styles(compass):
    assert comrope.encodings.name_of(compass) == "compass-rope"
    assert comrope.encodings.known_encodings()["compass-rope"] is compass
    assert label("compass-rope") == "Compass RoPE" and style("compass-rope").about.startswith("RoPE's speeds")
    assert style("compass-rope").colour != style("nobody-knows-it").colour


def _plain(**sizes):
    return FixedFrequencies(**sizes)


class _Abstract(SpectralEncoding):
    pass


class _WithoutDevice(RopeMixed):
    def __init__(self, num_heads, head_dim, num_axes):
        super().__init__(num_heads, head_dim, num_axes)


class _WithMore(RopeMixed):
    def __init__(self, more, **sizes):
        super().__init__(**sizes)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("My Rope", RopeMixed, "small letters"),
        (None, RopeMixed, "small letters"),
        ("rope-mixed", FixedFrequencies, "already"),
        ("plain", _plain, "derives from SpectralEncoding"),
        ("linear", torch.nn.Linear, "derives from SpectralEncoding"),
        ("abstract", _Abstract, "does not define spectrum_from, spectrum_inputs"),
        ("bare", _WithoutDevice, "takes no device, dtype"),
        ("more", _WithMore, "needs more"),
    ],
)
def test_what_cannot_be_registered_says_why(name, kind, message, no_more_names):
    with pytest.raises(ConfigurationError, match=message):
        comrope.register(name)(kind)


def test_a_module_that_is_imported_again_replaces_its_own(no_more_names):
    comrope.register("own")(Sheared)
    comrope.register("own")(Sheared)
    with pytest.raises(ConfigurationError, match=r"own.*already.*Sheared"):
        comrope.register("own")(Euler)


@pytest.mark.slow
def test_an_installed_package_is_trained_evaluated_and_shown_without_touching_this_one(tmp_path):
    """The example package, installed beside comrope, by the command line alone."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = tmp_path / "source"
    source.mkdir()
    for file in PACKAGE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(source)], check=True, timeout=120)
    path = os.pathsep.join(filter(None, (str(tmp_path / "site"), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}

    def comrope_command(*arguments: str) -> str:
        command = [sys.executable, "-m", "comrope", *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    sizes = ("--data", "digits", "--num-train", "60", "--num-test", "40", "--model", "tiny", "--image-size", "8", "8")
    length = ("--epochs", "1", "--batch-size", "20")
    options = ("--encoding", "compass-rope", "--max-frequency", "2", "--encoding-options", "base=10")
    comrope_command("train", "images", "--out", "run", *sizes, *length, *options)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["check"] and all(layer["holds"] for layer in result["check"])
    assert result["num_encoding_parameters"] == 2 * 32 // 2
    comrope_command("evaluate", "images", "run", "--resolutions", "16")
    comrope_command("show", "run", "--out", "run.html")
    comrope_command("show", "compass-rope", "--num-heads", "2", "--head-dim", "16", "--axes", "2", "--grid", "4", "4")
    assert "compass-rope" in (tmp_path / "run.html").read_text()
    comrope_command(
        "reproduce", "rivals", "--encodings", "compass-rope", "--seeds", "0", "--epochs", "1", "--out", "rivals"
    )
    assert "Compass RoPE" in (tmp_path / "rivals/tables.md").read_text()


@pytest.mark.slow
def test_a_broken_package_is_named(tmp_path):
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[comrope.encodings]\nbroken = there_is_no_such_module\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))}
    code = "import comrope; comrope.encoding('nobody', num_heads=1, head_dim=4, num_axes=1)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "ConfigurationError" in done.stderr and "of the package broken, there_is_no_such_module" in done.stderr
    code = "import comrope; comrope.encoding('rope', num_heads=1, head_dim=4, num_axes=1)"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
