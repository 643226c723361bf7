"""Folders of models that were not written by `comrope.save`: each is refused with a named error, and nothing else is read."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

import comrope
from comrope.errors import ComropeError

pytestmark = pytest.mark.area("crafted model folders")

TIMM = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    comrope.save(comrope.attach(timm.create_model("vit_tiny_patch16_224", **TIMM), "comrope-ld"), folder / "timm")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    comrope.save(comrope.attach(transformers.LlamaForCausalLM(config), "comrope-ld"), folder / "llama")
    return {path.name: path for path in folder.iterdir()}


def _changed(source: Path, folder: Path, file: str, change: Any) -> Path:
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(change if isinstance(change, str) else json.dumps(change(found)))
    return folder


def _model_args(**more):
    return lambda found: found | {"model_args": found["model_args"] | more}


def _with(**more):
    return lambda found: found | more


def _without(name):
    return lambda found: {key: value for key, value in found.items() if key != name}


def _attached(**more):
    return lambda found: found | {"attach": found["attach"] | more}


CRAFTED = {
    "timm": {
        "config.json": [
            _with(model_args=[1]),
            _with(num_classes=10**12),
            _with(num_classes="many"),
            _model_args(checkpoint_path="/etc/passwd"),
            _model_args(pretrained_cfg={"file": "/etc/passwd"}),
            _model_args(pretrained_cfg_overlay={"url": "http://localhost/x"}),
            _model_args(pretrained=True),
            _model_args(cache_dir="/tmp/elsewhere"),
            _model_args(depth=1_000_000),
            _model_args(embed_dim=10**9),
            _model_args(embed_dim=-4),
            _model_args(img_size=10**7),
            _model_args(img_size="wide"),
            _model_args(patch_size=0),
            _model_args(num_heads=0),
            _model_args(no_such_argument=1),
            "[" * 100_000 + "]" * 100_000,
            "{}",
            "[]",
            "null",
            "not JSON",
            "",
        ],
        "comrope.json": [
            _with(architecture="hf-hub:someone/model"),
            _with(architecture="local-dir:/etc"),
            _with(architecture="no_such_model"),
            _with(architecture=["vit_tiny_patch16_224"]),
            _with(format=99),
            _with(format="1"),
            _with(library="pickle"),
            _with(attach="comrope-ld"),
            _with(folded="yes"),
            _with(folded=True),
            _with(frozen=True),
            _with(positions=True),
            _without("attach"),
            _without("folded"),
            _without("library"),
            _attached(name="no-such-encoding"),
            _attached(block_size=3),
            _attached(block_size=10**9),
            _attached(layers=[99]),
            _attached(no_such_argument=1),
            "[" * 100_000 + "]" * 100_000,
            "{}",
            "not JSON",
        ],
    },
    "llama": {
        "config.json": [
            _with(num_hidden_layers=100_000),
            _with(hidden_size=10**7),
            _with(vocab_size=10**11),
            _with(num_attention_heads=0),
            _with(hidden_size="wide"),
            "not JSON",
        ],
        "comrope.json": [
            _with(**{"class": "AutoTokenizer"}),
            _with(**{"class": "no_such_class"}),
            _with(**{"class": "load", "module": "transformers.utils"}),
            _with(**{"class": "path", "module": "os"}),
            _with(dtype="float33", dtypes={"model.norm.weight": "os"}),
            _with(dtypes=[1]),
            _without("class"),
        ],
    },
}
CASES = [
    pytest.param(model, file, change, id=f"{model}-{file}-{number}")
    for model, files in CRAFTED.items()
    for file, changes in files.items()
    for number, change in enumerate(changes)
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "file", "change"), CASES)
def test_crafted_settings_are_refused_at_once(model, file, change, saved, tmp_path):
    folder = _changed(saved[model], tmp_path / "crafted", file, change)
    begun = time.process_time()
    with pytest.raises(ComropeError):
        comrope.load(folder)
    assert time.process_time() - begun < 20  # of computing: other processes may be at work


WEIGHTS = {
    "empty": b"",
    "cut": lambda content: content[:200],
    "no header": lambda content: b"\xff" * len(content),
    "long header": lambda content: (2**60).to_bytes(8, "little") + content[8:],
    "html": b"<html>404</html>",
}


@pytest.mark.parametrize("model", ["timm", "llama"])
@pytest.mark.parametrize("damage", WEIGHTS.values(), ids=WEIGHTS)
def test_damaged_weights_are_refused(damage, model, saved, tmp_path):
    folder = _changed(saved[model], tmp_path / "crafted", "config.json", lambda found: found)
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()) if callable(damage) else damage)
    with pytest.raises(ComropeError, match=r"damaged|safetensors"):
        comrope.load(folder)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.int32])
def test_weights_of_a_dtype_that_no_model_has_are_refused(dtype, saved, tmp_path):
    folder = _changed(saved["timm"], tmp_path / "crafted", "config.json", lambda found: found)
    model = comrope.load(folder)
    save_file({name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    with pytest.raises(ComropeError, match="dtype"):
        comrope.load(folder)


def test_an_index_that_names_files_elsewhere_is_refused(saved, tmp_path):
    folder = _changed(saved["llama"], tmp_path / "crafted", "config.json", lambda found: found)
    (folder / "model.safetensors").unlink()
    for names in ({"x": "../../etc/passwd"}, {"x": 3}, [], None):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        with pytest.raises(ComropeError, match=r"names no files|does not exist"):
            comrope.load(folder)
